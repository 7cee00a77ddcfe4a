"""Fixtures of the tests of hostile files and of mistakes."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.references.commands import Place
from tests.references.traps import SECRET, Trap, unsealed


@pytest.fixture
def trap(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Trap:
    trap = Trap(tmp_path / "trap", capsys, monkeypatch)
    for folder in (trap.here, trap.outside, trap.root / "modules"):
        folder.mkdir(parents=True)
    (trap.outside / "secret.txt").write_text(SECRET)
    (trap.outside / "secret.json").write_text(json.dumps({"key": SECRET}))
    (trap.root / "modules" / "hostile_payload.py").write_text(
        f"def run(*_, **__):\n    open({str(trap.mark)!r}, 'w').close()\n"
    )
    monkeypatch.syspath_prepend(str(trap.root / "modules"))
    monkeypatch.delitem(sys.modules, "hostile_payload", raising=False)
    monkeypatch.setenv("DSV2_RUNS", str(trap.runs))
    monkeypatch.setenv("DSV2_SECRET", SECRET)
    monkeypatch.chdir(trap.here)
    return trap


@pytest.fixture
def trial(trap: Trap, trained_once: Path) -> Path:
    """A trained run in the store of the trap."""
    shutil.copytree(trained_once, trap.runs)
    (folder,) = (trap.runs / "toy" / "smoke" / "trials").iterdir()
    unsealed(folder / "result.json")
    return folder


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path / "here", capsys, monkeypatch)
