"""`python -m dsv2 tasks`: how hard the instructions of a run's data are for its model."""

import json
from pathlib import Path

import pytest

import dsv2
from dsv2.__main__ import main
from dsv2.training import fit, machine
from tests.references.commands import refusal


@pytest.fixture
def taught(quick: list[str], runs: Path) -> Path:
    """A run of two steps on instructions."""
    machine.prepare()
    kept = [word for word in quick if not word.startswith(("data", "trainer.sequence_length", "trainer.tokens"))]
    data = ["data=instructions", "data.vocab_size=300", "data.instances=90", "data.held_out=30"]
    data += ["data.tasks=[copy,brackets]", "data.sizes=[1,2]", "trainer.sequence_length=64", "trainer.tokens=512"]
    run = dsv2.load([*kept, *data])
    folder = runs / "train" / run.fingerprint()
    fit.fit(run, folder)
    return folder


def test_every_task_has_its_row(taught: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["tasks", str(taught), "--prompts", "10", "--samples", "3", "--max-new-tokens", "4"]
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["task"] for row in rows] == ["brackets", "copy", "all"]
    assert [row["prompts"] for row in rows] == [5, 5, 10]
    for row in rows:
        assert set(row) == {"task", "prompts", "p_at_1", "pass_at_g", "zero_variance", "teaches"}
        assert 0 <= row["p_at_1"] <= row["pass_at_g"] <= 1
        assert row["p_at_1"] > 0 or (row["zero_variance"], row["teaches"]) == (1, False)
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "pass@3" in printed
    assert printed.splitlines()[-1].startswith("Groups without variance teach nothing; tasks with p@1 from 0.2 to 0.8")


def test_other_data_can_be_asked_for(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["tasks", str(trained), "--prompts", "2", "--samples", "2", "--max-new-tokens", "2", "--json"]
    data = ["data=instructions", "data.instances=20", "data.held_out=6", "data.tasks=[copy]", "data.sizes=[1,1]"]
    capsys.readouterr()
    assert main([*arguments, "--text", *data]) == 0
    assert [json.loads(line)["task"] for line in capsys.readouterr().out.splitlines()] == ["copy"]


def test_what_cannot_be_is_one_line(trained: Path, taught: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "conversations with verifiers, such as --text data=instructions" in refusal(capsys, "tasks", trained)
    assert "--samples=0 is not valid: 1 or more" in refusal(capsys, "tasks", taught, "--samples", 0)
    assert "temperature=-1.0 is not valid" in refusal(capsys, "tasks", taught, "--temperature", -1)
