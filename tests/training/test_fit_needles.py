"""A run that is trained on needles: what it stores, opens again and scores."""

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

import dsv2
from dsv2.__main__ import main
from dsv2.data.needles import Needles
from dsv2.evaluation.needle import COLUMNS
from dsv2.storage.rundir import NEEDLES, finished
from dsv2.training import fit
from dsv2.training.run import Run
from dsv2.training.saved import open_run
from tests.references.commands import refusal
from tests.references.haystacks import instead_of_speeches
from tests.references.tolerances import FLOAT32_MODULE

SIZES = ["data=needles", "data.vocab_size=451", "data.shortest=100", "trainer.sequence_length=100"]
GRID = ["benchmarks=needle", "benchmarks.trained_length=100", "benchmarks.multiples=[1,2]", "benchmarks.depths=2"]
GRID += ["benchmarks.questions=3"]


@pytest.fixture
def run(quick: list[str]) -> Iterator[Run.Config]:
    """A run of four steps on a small corpus in place of the English one."""
    kept = [word for word in quick if not word.startswith(("data", "trainer.sequence_length"))]
    with instead_of_speeches():
        yield dsv2.load([*kept, *SIZES, *GRID, "trainer.tokens=1600", "trainer.validation_tokens=800"])


@pytest.fixture
def folder(run: Run.Config, runs: Path) -> Path:
    folder = runs / "train" / run.fingerprint()
    fit.fit(run, folder)
    return folder


def test_every_question_is_stored_and_protected(run: Run.Config, folder: Path) -> None:
    table, metrics = pd.read_parquet(folder / NEEDLES), json.loads((folder / "result.json").read_text())["metrics"]
    assert table.columns.tolist() == COLUMNS
    assert table.groupby(["length", "depth"]).size().tolist() == [3] * 4
    assert metrics["bench/needle"] == pytest.approx(table["correct"].mean())
    assert metrics["bench/needle_nats"] == pytest.approx(table["nats"].mean())
    assert {"bench/needle_1x", "bench/needle_2x"} <= metrics.keys()
    assert 0 <= metrics["val/accuracy"] <= 1
    assert "val/bpb" not in metrics
    table.iloc[1:].to_parquet(folder / NEEDLES)
    assert finished(folder) is None


def test_its_needles_are_opened_again(folder: Path) -> None:
    opened = open_run(folder)
    source = opened.source
    assert isinstance(source, Needles)
    assert torch.equal(
        source.validation().inputs,
        opened.config.data.open(sequence_length=100, seed=0, validation_tokens=800).validation().inputs,
    )


def test_eval_scores_it_as_the_run_did_and_draws_the_grid(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, figure = tmp_path / "scores.json", tmp_path / "grid.png"
    assert main(["eval", str(folder), "--tasks", "needle", "--out", str(out), "--figure", str(figure)]) == 0
    scores = {row["metric"]: row for row in json.loads(out.read_text())["scores"]}
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    assert scores.keys() == {name for name in metrics if name.startswith("bench/")}
    for name, row in scores.items():
        assert row["value"] == pytest.approx(metrics[name], rel=FLOAT32_MODULE, abs=1e-9)
        assert row["stderr"] is not None
        assert row["task"] == "needle"
    assert scores["bench/needle_2x"]["chance"] == 1 / 64
    assert figure.read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert main(["eval", str(folder), "--tasks", "needle,cloze", "--lengths", "120"]) == 0
    shown = capsys.readouterr().out
    assert "bench/needle_120" in shown
    assert "bench/needle_1x" not in shown
    assert "bench/cloze" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["needle"], "benchmarks.trained_length=32 is not valid: 32 tokens: must be at least "),
        (["needle", "--lengths", "8"], "8 tokens: must be at least "),
        (["needle", "--lengths", "-8"], "-8 tokens: must be at least "),
        (["needle", "--lengths", "99999"], "99999 tokens: the text has only "),
        (["needle", "--figure", "/nowhere/grid.png"], "--figure /nowhere/grid.png: no folder /nowhere"),
        (["cloze", "--lengths", "100"], "--lengths: only for --tasks needle"),
        (["copying", "--figure", "grid.png"], "--figure: only for --tasks needle"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(
    trained: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert refusal(capsys, "eval", trained, "--tasks", *arguments).startswith(message)


def test_lengths_that_are_no_numbers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["eval", "RUN", "--tasks", "needle", "--lengths", "12,x"])
    assert end.value.code == 2
    message = "error: argument --lengths: '12,x' is not a list of whole numbers, as in 512,1024"
    assert capsys.readouterr().err.startswith(message)
