"""`python -m dsv2 ls`, `show` and `compare`: what they print, and mistakes in one line."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from dsv2.__main__ import main
from dsv2.commands.runs import number
from dsv2.storage.files import write_json
from dsv2.storage.locks import hold
from dsv2.storage.rundir import write_result
from dsv2.storage.runs import list_runs
from tests.references.commands import refusal


def stored(folder: Path, **result: Any) -> Path:
    """A run of the store; with a result if there is any."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("model: {}\n")
    if result:
        write_result(folder, {"status": "finished", "ended": "2026-11-27T10:12:13+00:00"} | result)
    return folder


@pytest.fixture
def store(runs: Path) -> Path:
    """A study of two arms with one finished trial and one that is left, and a single run that failed."""
    trials = runs / "mine" / "tiny" / "trials"
    stored(trials / "aaaa000000000000", metrics={"val/loss": 2.51234, "val/bpb": 1.5}, tokens=51_200, seconds=1234.5)
    stored(trials / "aaaa111111111111")
    listed = [["mla", 0, None, "aaaa000000000000"], ["mha", 0, None, "aaaa111111111111"]]
    write_json(runs / "mine" / "tiny" / "study.json", {"trials": listed})
    stored(runs / "train" / "9999000000000000", status="failed", error="OSError: disk")
    return runs


# ---- ls --------------------------------------------------------------------------------------------------------------


def test_runs_are_listed_in_columns(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in shown[2:]] == [
        *("mine/tiny/mla/0", "mine/tiny/mha/0", "9999000000000000"),
        "3 runs: 1 finished, 1 unfinished, 1 failed",
    ]
    assert shown[2].split() == [
        *("mine/tiny/mla/0", "aaaa000000000000", "finished", "2.5123", "51,200"),
        *("1,234", "2026-11-27", "10:12"),
    ]
    loss = shown[0].index("validation loss (nats/token)") + len("validation loss (nats/token)")
    assert shown[2][:loss].endswith(" 2.5123")


def test_a_study_is_listed_alone_and_an_unknown_one_refused(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "mine"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 runs: 1 finished, 1 unfinished"
    assert refusal(capsys, "ls", "mime").endswith(f"with runs under {store}; those are mine")


def test_lists_can_be_read_by_programs(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--json"]) == 0
    first, *others = map(json.loads, capsys.readouterr().out.splitlines())
    assert len(others) == 2
    assert first["metrics"] == {"val/loss": 2.51234, "val/bpb": 1.5}
    assert Path(first["folder"]) == store / "mine" / "tiny" / "trials" / "aaaa000000000000"


def test_an_empty_store_says_how_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls"]) == 0
    assert capsys.readouterr().out.startswith("no runs yet: `python -m ablations.run sweep=NAME` runs a study")


# ---- show and compare ------------------------------------------------------------------------------------------------


def test_a_run_is_shown_with_its_metrics_and_loads(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "moe/0"]) == 0
    shown = capsys.readouterr().out
    result = json.loads((trained / "result.json").read_text())
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in shown.splitlines()[:6])
    assert facts["name"] == "toy/smoke/moe/0"
    assert facts["folder"] == str(trained)
    assert facts["status"] == "finished"
    assert facts["trained"].startswith("1,536 tokens, 12 steps, ")
    assert re.search(rf"validation loss \(nats/token\) +{result['metrics']['val/loss']:.4f}", shown)
    assert re.search(r"^ 1 +[▁▂▃▄▅▆▇█]{8} +\d\.\d\dx", shown, flags=re.M)
    assert "train/lr" not in shown
    assert main(["show", "moe/0", "--config"]) == 0
    assert capsys.readouterr().out == (trained / "config.yaml").read_text()


def test_a_run_without_metrics_says_how_it_ended(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "9999"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[2:4]] == [["status", "failed"], ["error", "OSError:", "disk"]]
    assert main(["show", "mha/0"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["status", "unfinished"]


def test_two_runs_are_shown_side_by_side(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = trained.with_name("ffff000000000000")
    shutil.copytree(trained, other)
    (other / "config.yaml").write_text((other / "config.yaml").read_text().replace("expert: 0.003", "expert: 0.3"))
    result = json.loads((other / "result.json").read_text())
    del result["files"], result["sha256"]
    result["metrics"]["val/loss"] += 0.25
    write_result(other, result)
    assert main(["compare", "moe/0", "ffff"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("first   moe/0\nsecond  ffff\n")
    assert re.search(r"loss\.expert +0\.003 +0\.3\b", shown)
    before = result["metrics"]["val/loss"] - 0.25
    assert re.search(rf"validation loss \(nats/token\) +{before:.4f} +{before + 0.25:.4f} +\+0\.2500", shown)
    assert "One difference of two runs is no evidence" in shown
    assert re.search(r"^ 1 +([▁▂▃▄▅▆▇█]{8}) +(\d\.\d\dx) +\1 +\2", shown, flags=re.M)


def test_what_cannot_be_compared_is_said(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "mla/0", "mha/0"]) == 0
    shown = capsys.readouterr().out
    assert "No setting differs." in shown
    assert shown.endswith("mha/0 is unfinished: there are no metrics to compare\n")
    assert refusal(capsys, "compare", "mla/0", "mla/1").endswith("did you mean mine/tiny/mla/0?")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0000"), (2.51234, "2.5123"), (-0.0004567, "-4.567e-04"), (12345.6, "12,346"), (999.96, "999.9600")],
)
def test_numbers_have_digits_that_say_something(value: float, text: str) -> None:
    assert number(value) == text


# ---- rm --------------------------------------------------------------------------------------------------------------


def test_runs_are_removed_after_asking(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = store / "train" / "9999000000000000"
    asked = list[str]()
    for answer in ("", "n", "no", "yes"):
        assert folder.is_dir()
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: asked.append(question) or answer)
        assert main(["rm", "9999"]) == 0
    assert asked == ["Remove 1 run, 0.0 MB? [y/N] "] * 4
    shown = capsys.readouterr().out
    assert shown.count("nothing was removed") == 3
    assert shown.endswith(f"removed {folder}\n")
    assert not folder.exists()


def test_nothing_is_removed_without_a_terminal_or_if_one_run_is_refused(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = store / "mine" / "tiny" / "report"
    report.mkdir()
    (report / "trials.csv").write_text("arm,seed\nmla,0\n")
    assert main(["rm", "9999"]) == 2
    assert capsys.readouterr().err.startswith("error: --yes: required where standard input is no terminal")
    assert f"mine/tiny/mla/0: named by the report in {report}" in refusal(capsys, "rm", "9999", "mla/0", "--yes")
    assert len(list_runs()) == 3
    assert main(["rm", "9999", "mla/0", "--yes", "--force"]) == 0
    assert [run.name for run in list_runs()] == ["mine/tiny/mha/0"]


def test_a_run_that_is_trained_is_not_removed(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with hold(store / "train/9999000000000000/lock", "this run"):
        assert "nothing was removed" in refusal(capsys, "rm", "9999", "--yes", "--force")
    assert main(["rm", "9999", "--yes"]) == 0
