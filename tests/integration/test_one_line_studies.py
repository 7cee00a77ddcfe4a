"""Mistakes in commands on studies end in one line; see `test_one_line_config.py`."""

from typing import Any

import pytest
import yaml

from ablations.report import main as report
from ablations.run import main as run
from ablations.wandb_sweeps import main as sweeps
from ablations.wandb_workspace import main as workspace
from dsv2.__main__ import main as command
from dsv2.study import REQUEST_KEYS
from dsv2.train import main as train
from dsv2.training import fit
from tests.references.commands import BYTES, LONG, PAIR, Entry, Place

STUDY = "sweep=study.yaml"
REQUESTS = [
    *([], ["x"], ["--flag"], ["=x"], ["sweep"], ["sweep="], ["study=aa"], ["sweep=null"], ["sweep=[1,2]"]),
    *([f"sweep={name}"] for name in ("balance_loses", "file", "folder", "nothing.yaml", BYTES, LONG, "..", "a b")),
    *([f"sweep={name}.yaml"] for name in (LONG, "file/x", BYTES)),
    *([STUDY, f"scale={scale}"] for scale in ("", "smok", "3", "[]", "[smoke,smoke]", "{a: 1}", "nan", LONG, BYTES)),
    *([STUDY, f"seeds={seeds}"] for seeds in ("", "0", "nan", "[]", "[0.5]", "[-1]", "[0,0]", "[null]", "[true]")),
    *([STUDY, f"seeds={seeds}"] for seeds in ("x", "{a: 1}", "[0", "[[0]]", "[" + "9" * 30 + "]", "9" * 5000)),
    *([STUDY, f"workers={workers}"] for workers in ("", "0", "-1", "1.5", "nan", "two", "[1]", "9" * 30, "9" * 5000)),
    *([STUDY, f"launcher={name}"] for name in ("", "lokal", "null", "3", "[local]")),
    *(
        [STUDY, f"{key}={value}"]
        for key in ("dry_run", "until_decided", "mixed_kernels")
        for value in ("", "maybe", "1", "null", "[true]")
    ),
    *([STUDY, word] for word in ("dryrun=true", "worker=1", "seed=0", "seed=null", "arm=none", "scales=smoke")),
    *([STUDY, word] for word in ("benchmarks=null", "model=3", "model=null", "loss.expert=0", "optim.lr=1,2")),
    *([STUDY, word] for word in ("trainer.accelerator=gpu", "mesh.dp=2", "+x=1", "~model", "model.dim")),
    *([STUDY, STUDY], [STUDY, "dry_run=true", "dry_run=true"]),
]


@pytest.mark.parametrize("words", REQUESTS, ids=lambda words: " ".join(words)[:40].encode("ascii", "replace").decode())
def test_running_a_study(place: Place, words: list[str]) -> None:
    place.patch.setattr("ablations.running.runner.run_trials", lambda *_, **__: pytest.fail("a trial started"))
    place.patch.setattr("torch.cuda.is_available", lambda: False)
    place.refused(run, *words)


def test_requests_are_explained(place: Place) -> None:
    assert "there are aa, alignment_tax" in place.refused(run)
    for word, meant in (("dryrun=true", "dry_run"), ("worker=1", "workers"), ("scales=tiny", "scale")):
        keys = ", ".join(REQUEST_KEYS)
        assert f"did you mean {meant!r}? a study's own keys are {keys}" in place.refused(run, STUDY, word)


@pytest.mark.parametrize("entry", [run, report, workspace])
def test_help_names_what_there_is(entry: Entry, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry(["--help"]) == 0
    said = capsys.readouterr().out
    assert "studies: aa, alignment_tax" in said
    assert "scales:  base, paper, small, smoke, tiny" in said


GRIDS: list[Any] = [None, {}, [], "x", 3, {"loss.expert": None}, {"loss.expert": []}, {"loss.expert": [None, 1]}]
GRIDS += [{"loss.expert": 3}, {"loss.expert": [[1], [2]]}, {"loss.expert": [{"a": 1}, 2]}, {"loss.expert": [1, 1]}]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_grids(place: Place, grid: Any) -> None:
    node = yaml.safe_load(PAIR.read_text()) | {"grid": grid, "arms": None}
    (place.root / "grid.yaml").write_text(yaml.safe_dump(node))
    place.refused(run, "sweep=grid.yaml", "dry_run=true")


REPORTS = [[], ["x"], ["--tabel"], ["sweep=aa"], ["sweep=balance_loses"], ["sweep=aa", "scale=smok"], [STUDY]]
REPORTS += [["sweep=aa", word] for word in ("seeds=[0]", "dry_run=true", "sweep=aa", "scale=", f"scale={LONG}")]
REPORTS += [[f"sweep={name}"] for name in ("", LONG, BYTES, "file", "folder", "nothing.yaml", f"{LONG}.yaml")]


@pytest.mark.parametrize("words", REPORTS, ids=lambda words: " ".join(words)[:40].encode("ascii", "replace").decode())
def test_reporting_a_study(place: Place, words: list[str]) -> None:
    place.refused(report, *words)
    place.refused(report, *words, "--table")


WORKSPACES = [[], ["x"], ["--x", "sweep=aa"], ["sweep="], ["sweep=balance_loses"], ["sweep=aa", "entity="]]
WORKSPACES += [["sweep=aa", "project="], ["sweep=aa", "sweep=aa"], ["sweep=aa", "x=1"], [f"sweep={LONG}"]]


@pytest.mark.parametrize("words", WORKSPACES, ids=lambda words: " ".join(words)[:40])
def test_a_workspace(place: Place, words: list[str]) -> None:
    place.refused(workspace, *words)
    place.refused(sweeps, "x", *words)


@pytest.mark.parametrize("root", ["", "~", "~/runs", "file", "file/runs"])
def test_a_store_that_cannot_be(place: Place, root: str) -> None:
    place.patch.setenv("DSV2_RUNS", root)
    place.patch.setattr(fit, "fit", lambda run, folder: folder.mkdir(parents=True))
    place.refused(train, "trainer.accelerator=cpu")
    place.refused(run, STUDY, "trainer.accelerator=cpu")
    place.refused(report, STUDY)
    place.refused(command, "generate", "toy/smoke/moe/0", "--prompt", "x")
