"""What a command line asks of a study."""

import subprocess
import sys

import pytest

from ablations.request import parse
from dsv2.config import ConfigError


def test_the_command_line_is_split():
    request, overrides = parse(["sweep=balance_losses", "seeds=[0,1]", "dry_run=true", "optim.lr=1e-3"])
    assert (request.sweep, request.seeds, request.dry_run, overrides) == (
        "balance_losses",
        (0, 1),
        True,
        ["optim.lr=1e-3"],
    )
    assert (request.scales, request.workers, request.launcher) == (("smoke",), None, "local")


def test_several_scales_are_a_ladder():
    request, overrides = parse(["sweep=kv_rank", "scale=[smoke,tiny]", "+model.x={a: 1}", "data=files"])
    assert request.scales == ("smoke", "tiny")
    assert overrides == ["+model.x={a: 1}", "data=files"]


@pytest.mark.parametrize("name", ["2024", "1e-3", "no", "null", "无", "2024-01-01", "a: b", "~/x (1).yaml"])
def test_names_are_text(name):
    for word in (name, f"'{name}'", f'"{name}"'):
        request, _ = parse([f"sweep={word}", f"scale={word}"])
        assert (request.sweep, request.scales) == (name, (name,))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("scale=[]", r"scale=\(\) is not valid: at least one, without duplicates"),
        ("scale=[tiny,tiny]", "scale=.* is not valid: at least one, without duplicates"),
        ("workers=0", "workers=0 is not valid: at least 1"),
        ("workers=two", "workers='two' is not valid"),
        ("seeds=3", "seeds=3 is not valid"),
        ("seeds=[0.5]", "seeds=.* is not valid"),
        ("seeds=[0", r"seeds='\[0' is not valid: a word, or a list as in"),
        ("dry_run=maybe", "dry_run='maybe' is not valid"),
        ("launcher=cloud", "launcher='cloud' is not valid"),
        ("sweep=aa", "sweep='aa' is not valid: one value; it is given twice"),
        ("seeds=", "seeds='' is not valid: a value after the equals sign"),
        ("seeds=3", r"a list of whole numbers or null, as in seeds=\[3\]"),
        ("seeds=" + "9" * 5000, "seeds='9*[.]{3}9*' is not valid: a word, or a list"),
        ("workers=1001", "workers=1001 is not valid: at least 1, and at most 1000"),
        ("--flag", "argument='--flag' is not valid: key=value, as in sweep=balance_losses"),
        ("model.dim", "argument='model.dim' is not valid"),
    ],
)
def test_a_bad_word_is_refused(word, message):
    with pytest.raises(ConfigError, match=message):
        parse(["sweep=balance_losses", word])


def test_a_study_has_to_be_named():
    with pytest.raises(ConfigError, match=r"sweep=None is not valid: name a study, .*; there are aa, alignment_tax"):
        parse(["scale=smoke"])
    with pytest.raises(ConfigError, match="sweep='' is not valid: a value after"):
        parse(["sweep="])


@pytest.mark.parametrize("module", ["ablations.request", "ablations.run"])
def test_asking_costs_nothing(module):
    """A worker imports the command again, and Ctrl-C during slow imports would come too early."""
    heavy = "{'torch', 'lightning', 'matplotlib.pyplot', 'pandas', 'hydra'}"
    code = f"import sys, {module}; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_formats_of_figures_and_hardware_are_parts_of_the_request():
    request, overrides = parse(["sweep=aa", "report.formats=[svg,pdf]", "dry_run=true", "hardware=h100", "price=2.5"])
    assert (request.report.formats, request.hardware, request.price) == (("svg", "pdf"), "h100", 2.5)
    assert overrides == []
    assert parse(["sweep=aa"])[0].report.formats == ("png",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report.formats=[gif]"], r"report\.formats=.*png, svg or pdf"),
        (["report.formats=[svg]", "report.formats=[pdf]"], r"report\.formats='\[pdf\]' is not valid: one value"),
        (["price=-1", "dry_run=true"], r"price=-1.* is not valid: 0 or more"),
        (["price=2"], r"price=2.* is not valid: given with dry_run=true alone"),
        (["hardware=h100"], r"hardware='h100' is not valid: given with dry_run=true alone"),
    ],
)
def test_what_does_not_fit_is_one_line(words, message):
    with pytest.raises(ConfigError, match=message):
        parse(["sweep=aa", *words])
