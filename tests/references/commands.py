"""Commands called in this process: what they print, and that mistakes end in one line."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsv2.__main__ import main
from dsv2.train import main as train
from dsv2.training import fit

PAIR = Path(__file__).parents[1] / "ablations" / "pair.yaml"  # a study of two arms
LONG, BYTES = "x" * 5000, "\udcff"  # the latter is how Python passes on a byte that is not UTF-8
Entry = Callable[..., Any]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the one line with which the command refuses; nothing is on stdout."""
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err.removeprefix("error: ").strip()


class Caller:
    """Calls commands in which no run may start."""

    def __init__(self, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self.capsys, self.patch = capsys, patch
        patch.setenv("HYDRA_FULL_ERROR", "0")  # which `train` sets
        patch.setattr(fit, "fit", lambda *_: pytest.fail("a run started"))

    def call(self, entry: Entry, *words: object) -> int:
        arguments = [*map(str, words)]
        if entry is train:
            self.patch.setattr(sys, "argv", ["dsv2.train", *arguments])
        try:
            return int((entry() if entry is train else entry(arguments)) or 0)
        except SystemExit as end:
            return int(end.code or 0)

    def refusal(self, entry: Entry, *words: object) -> tuple[str, str]:
        """Call a command that must refuse in one line besides warnings; return it, and all that was printed."""
        self.capsys.readouterr()
        status = self.call(entry, *words)
        said = self.capsys.readouterr()
        lines = [line for line in said.err.splitlines() if not line.startswith("warning: ")]
        assert (status, len(lines)) == (2, 1), (status, said)
        assert lines[0].startswith("error: ")
        assert lines[0].isprintable()
        assert "Traceback" not in said.out + said.err
        return lines[0], said.out + said.err


class Place(Caller):
    """A working directory with a file, a folder and a store, in which commands are called."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        super().__init__(capsys, patch)
        self.root = root
        (root / "folder").mkdir(parents=True)
        (root / "folder" / "inside.txt").write_text("text")
        (root / "file").write_text("text")
        (root / "binary.txt").write_bytes(b"\xff\xfe\x00")
        (root / "study.yaml").write_text(PAIR.read_text())
        patch.chdir(root)

    def refused(self, entry: Entry, *words: str) -> str:
        """Call a command that must refuse and write nothing; return its line."""
        before = self.files()
        line, _ = self.refusal(entry, *words)
        assert len(line) < 1500
        assert self.files() == before
        return line

    def files(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.root.rglob("*") if path.is_file()}
