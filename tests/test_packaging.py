"""pyproject.toml is the one source of dependencies; constraints.txt pins them; environment.yml only points at both."""

import re
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
    wanted = [*PROJECT["dependencies"], *(one for extra in PROJECT["optional-dependencies"].values() for one in extra)]
    assert not [name_of(requirement) for requirement in wanted if name_of(requirement) not in PINS]


def test_the_pins_are_what_is_installed():
    import importlib.metadata

    for requirement in PROJECT["dependencies"]:
        name = name_of(requirement)
        assert importlib.metadata.version(name).split("+")[0] == PINS[name], name


def test_the_extras_are_the_promised_ones():
    assert set(PROJECT["optional-dependencies"]) == {
        "docs",
        "explore",
        "notebooks",
        "hf",
        "launchers",
        "eval",
        "gpu",
        "wandb",
        "dev",
    }


def test_environment_yml_points_at_both():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pip == ["--constraint constraints.txt", "--editable .[dev,docs,eval,explore,hf,notebooks,wandb]"]
    makefile = (ROOT / "Makefile").read_text()
    assert "--constraint constraints.txt --editable '.[dev,docs,eval,explore,hf,notebooks,wandb]'" in makefile


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
