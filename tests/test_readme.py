"""Every command and code block of the README runs as written."""

import re
from pathlib import Path

import pytest

from tests.references.markdown import blocks, commands
from tests.references.processes import run_line

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = blocks(README)
COMMANDS = [line for line in commands(README) if line.startswith("python -m")]


def test_the_readme_has_commands():
    assert len(COMMANDS) >= 9
    assert {"make demo", "make test"} <= set(commands(README))


@pytest.mark.parametrize("command", [line for line in COMMANDS if "dry_run" in line or "account" in line])
def test_plans_and_accounts_print(command, tmp_path):
    assert run_line(command, tmp_path).strip()


def test_the_python_block_runs(tmp_path, capsys):
    (code,) = [block for language, block in BLOCKS if language == "python"]
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.startswith("96\n")  # (24 + 8) cached elements in each of 3 layers
    assert "paper_limited" in printed


@pytest.mark.slow
def test_every_command_runs_in_order(tmp_path):
    places = {"OUT": "exported", "PATH": "exported"}
    for command in COMMANDS:
        if "import-hf" in command:
            places["OUT"] = "imported"
        for name, place in places.items():
            command = re.sub(rf"\b{name}\b", place, command)
        printed = run_line(command, tmp_path)
        if "dsv2.train" in command:
            places["RUN"] = printed.splitlines()[-1]
    assert (tmp_path / "exported" / "model.safetensors").is_file()
    assert (tmp_path / "imported" / "model.safetensors").is_file()
