"""`dsv2 judge`: two runs compared by a rule and by a model behind our own server."""

import json
from pathlib import Path

import pytest

import dsv2
from dsv2.__main__ import main
from dsv2.training import fit
from tests.references.commands import refusal


@pytest.fixture
def runs_of_chats(quick: list[str], tmp_path: Path) -> tuple[Path, Path]:
    kept = [word for word in quick if not word.startswith(("data", "trainer.tokens", "trainer.sequence_length"))]
    data = ["data=instructions", "data.vocab_size=300", "data.instances=100", "data.held_out=20", "data.tasks=[copy]"]
    sizes = ["trainer.sequence_length=64", "trainer.validation_tokens=256"]
    folders = []
    for name, steps in (("first", 4), ("second", 8)):
        folders.append(tmp_path / name)
        fit.fit(dsv2.load([*kept, *data, *sizes, f"trainer.tokens={steps * 4 * 64}"]), folders[-1])
    return folders[0], folders[1]


def test_two_runs_by_a_rule_and_by_nobody(runs_of_chats: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A judge that cannot be reached loses every judgement, and takes nothing from the other."""
    first, second = map(str, runs_of_chats)
    words = ["judge", first, second, "--prompts", "5", "--max-new-tokens", "4"]
    assert main([*words, "--by", "rule", "http://127.0.0.1:9/v1", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [(row["judge"], row["n"], row["errors"]) for row in rows] == [
        ("rule", 5, 0),
        ("http://127.0.0.1:9/v1", 0, 5),
    ]
    assert rows[0]["rate"] == 0.5, "both are wrong"
    assert main(words) == 0
    assert "0.500" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompts", "0"], "--prompts=0 is not valid: 1 or more"),
        (["--by", "somebody"], "--by='somebody' is not valid: rule, or http:// or https:// and a host"),
        (["--by", "http://x", "--model", ""], "--model='' is not valid: the name of a model at that endpoint"),
    ],
)
def test_bad_options_are_refused(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert message in refusal(capsys, "judge", "a", "b", *words)


def test_runs_without_conversations_are_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "judging needs conversations with verifiers" in refusal(capsys, "judge", trained, trained)
