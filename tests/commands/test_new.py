"""`python -m dsv2 new study`: a file, and what to do with it."""

from pathlib import Path

from ablations.run import main as run
from dsv2.__main__ import main
from tests.references.commands import refusal


def test_the_file_is_accepted_by_the_command_that_runs_it(tmp_path: Path, capsys, runs: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert main(["new", "study", "mine", "--out", str(path)]) == 0
    first, following = capsys.readouterr().out.splitlines()
    assert first == str(path)
    assert f"python -m ablations.run sweep={path} dry_run=true" in following
    assert run([f"sweep={path}", "dry_run=true"]) == 0
    assert "Prediction: The load becomes more even" in capsys.readouterr().out


def test_a_taken_name_is_one_line(capsys) -> None:
    assert "name='aa' is not valid: a new name" in refusal(capsys, "new", "study", "aa")
