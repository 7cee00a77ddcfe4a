"""pyproject.toml is the one source of dependencies; constraints.txt pins them; environment.yml only points at both."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#")


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!~\[; ]", requirement)[0].lower().replace("_", "-")


def test_every_dependency_is_pinned():
    extras = {name: wanted for name, wanted in PROJECT["optional-dependencies"].items() if name != "all"}
    names = {name_of(wanted) for group in (PROJECT["dependencies"], *extras.values()) for wanted in group}
    assert not names - PINS.keys()


def test_the_pins_are_what_is_installed():
    for requirement in PROJECT["dependencies"]:
        name = name_of(requirement)
        assert importlib.metadata.version(name).split("+")[0] == PINS[name], name


def test_the_extras_are_the_promised_ones():
    assert set(PROJECT["optional-dependencies"]) == {
        "corpus",
        "docs",
        "explore",
        "notebooks",
        "hf",
        "launchers",
        "eval",
        "serve",
        "gpu",
        "wandb",
        "dev",
        "all",
    }


def test_everything_is_all_but_what_needs_a_cluster():
    (everything,) = PROJECT["optional-dependencies"]["all"]
    extras = set(re.fullmatch(r"dsv2\[(.*)\]", everything)[1].split(","))
    assert extras == PROJECT["optional-dependencies"].keys() - {"all", "launchers"}


def test_environment_yml_points_at_both():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip == ["--constraint constraints.txt", "--editable .[all]"]
    assert "--editable '.[all]'" in (ROOT / "Makefile").read_text()


def test_the_demo_installs_what_studies_need_alone():
    """And the tests, the notebooks and the site install the rest."""
    plan = {target: make("--dry-run", "--always-make", target) for target in ("demo", "test", "lab", "docs", "setup")}
    assert "--editable ." in plan["demo"]
    assert "[all]" not in plan["demo"]
    assert all("--editable '.[all]'" in plan[target] for target in ("test", "lab", "docs", "setup"))


def make(*arguments: str) -> str:
    return subprocess.run(["make", "-C", ROOT, *arguments], capture_output=True, text=True, check=True).stdout


def test_the_console_script_is_the_module(capsys):
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="dsv2")
    with pytest.raises(SystemExit):
        script.load()(["--help"])
    assert "account" in capsys.readouterr().out


@pytest.mark.slow
def test_a_wheel_works_outside_the_checkout(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT], check=True
    )
    (wheel,) = tmp_path.glob("dsv2-*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import ablations, dsv2, pathlib; s = ablations.study('balance_losses');"
        "print(dsv2.__file__, len(s.trials), dsv2.load(['model=v2']).model.num_layers)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site), "DSV2_RUNS": str(tmp_path / "runs"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    where, trials, layers = done.stdout.split()
    assert where.startswith(str(site))
    assert (int(trials), int(layers)) == (30, 60)


def test_running_a_notebook_leaves_the_checkout_clean(tmp_path):
    """`make lab` opens copies: one that was run and saved is kept, and git sees none of it."""
    checkout, bin_ = tmp_path / "checkout", tmp_path / "bin"
    shutil.copytree(ROOT / "notebooks", checkout / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name in ("Makefile", ".gitignore"):
        shutil.copy(ROOT / name, checkout)
    bin_.mkdir()
    jupyter = bin_ / "jupyter"
    save = 'for path in "$2"/*.ipynb; do echo run >> "$path"; done; mkdir -p "$2/.ipynb_checkpoints" "$DSV2_RUNS/study"'
    jupyter.write_text(f'#!/bin/sh\n{save}\ntouch "$2/.ipynb_checkpoints/00" "$DSV2_RUNS/study/00"\n')
    jupyter.chmod(0o755)
    identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=checkout, check=True)
    environment = {key: value for key, value in os.environ.items() if key != "DSV2_RUNS"}
    for times in (1, 2):
        subprocess.run(["make", "-o", "setup", "lab", f"BIN={bin_}"], cwd=checkout, env=environment, check=True)
        copies = list((checkout / "lab").glob("*.ipynb"))
        assert len(copies) == len(list((ROOT / "notebooks").glob("*.ipynb")))
        assert all(path.read_text().count("run\n") >= times for path in copies)
    status = subprocess.run(["git", "status", "--porcelain"], cwd=checkout, check=True, capture_output=True, text=True)
    assert status.stdout == ""
