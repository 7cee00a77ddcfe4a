"""`python -m dsv2 ls`: what is listed, and mistakes in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from dsv2.__main__ import main
from dsv2.storage.files import write_json
from dsv2.storage.rundir import write_result
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
