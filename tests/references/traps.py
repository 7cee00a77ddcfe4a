"""Traps for files from strangers: what they would change, run or steal if they could."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.references import commands
from tests.references.commands import Caller, Entry
from tests.references.twins import twin

SECRET = "hunter2-5f1be0c4"
TRIAL = "toy/smoke/moe/0"  # the run that the fixture `trial` puts into the trap
PAIR = yaml.safe_load(commands.PAIR.read_text())


class Payload:
    """Leaves a mark when it is unpickled."""

    def __reduce__(self) -> Any:
        import hostile_payload  # type: ignore[import-not-found]

        return hostile_payload.run, ()


class Trap(Caller):
    """A working directory, a folder `outside` that nothing may change, and a mark that a payload would leave."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        super().__init__(capsys, patch)
        self.root = root
        self.here, self.outside, self.mark = root / "here", root / "outside", root / "ran"
        self.runs = root / "here" / "runs"

    def text(self, text: str) -> str:
        """Fill in where things lie."""
        return text.replace("OUTSIDE", str(self.outside)).replace("HERE", str(self.here))

    def file(self, content: str | bytes | dict[str, Any], name: str = "evil.yaml") -> Path:
        path = self.here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(self.text(content if isinstance(content, str) else yaml.safe_dump(content)))
        return path

    def refused(self, entry: Entry, *words: object) -> str:
        """Call a command that must refuse; return its line."""
        before = self.files(store=False)
        line, said = self.refusal(entry, *words)
        self.nothing_happened(before)
        assert SECRET not in said
        assert len(said) < 2000
        return line

    def nothing_happened(self, before: dict[Path, bytes]) -> None:
        assert not self.mark.exists(), "code of the file ran"
        assert self.files(store=False) == before, "something was written outside the store"
        kept = [path for path, data in self.files(store=True).items() if SECRET.encode() in data]
        assert not kept, "the secret was stored"

    def files(self, *, store: bool) -> dict[Path, bytes]:
        """Every file in the store, or every file outside it."""
        files = (path for path in self.root.rglob("*") if path.is_file() and not path.is_symlink())
        return {
            path: path.read_bytes()
            for path in files
            if path.is_relative_to(self.runs) == store and path.suffix != ".pyc"
        }


def unsealed(path: Path) -> None:
    """Remove the checksums from a file, as somebody would who changes what they cover."""
    value = json.loads(path.read_text())
    path.write_text(json.dumps({key: value[key] for key in value if key not in ("sha256", "files")}))


def raw(name: str, content: bytes) -> Callable[[Trap, Path], None]:
    return lambda trap, folder: (folder / name).write_bytes(content) and None


def pickled(path: Path) -> None:
    with path.open("wb") as file:
        pickle.dump({"state_dict": Payload()}, file)


def bomb(merge: str = "") -> str:
    """Nine of nine of nine ..., in a kilobyte."""
    first = "a0: &a0 {x: 1}\n" if merge else "a0: &a0 [x, x]\n"
    each = "a{0}: &a{0} {{<<: [{1}]}}\n" if merge else "a{0}: &a{0} [{1}]\n"
    return first + "".join(each.format(n, ", ".join([f"*a{n - 1}"] * 9)) for n in range(1, 12))


def saved_twin(trap: Trap) -> Path:
    folder = trap.here / "hf"
    twin().save_pretrained(folder)
    return folder
