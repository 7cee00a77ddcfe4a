"""Whoever reads a file sees its old content or its new one, whatever stops the writer."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dsv2.storage import files
from dsv2.storage.files import append, new_directory, replacing, require_free, sweep, sync, write_json, write_text
from dsv2.storage.space import DiskFull
from tests.references.faults import full_disk, small_disk

KILLED = """
import os, signal, sys
from pathlib import Path
from dsv2.storage.files import append, new_directory, replacing
with {call} as scratch:
    file = scratch / "part" if scratch.is_dir() else scratch
    file.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_within(call: str) -> None:
    """Run a process that is killed while it writes."""
    killed = subprocess.run([sys.executable, "-c", KILLED.format(call=call)], check=False)
    assert killed.returncode == -signal.SIGKILL


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a much longer old content")
    with replacing(path) as scratch:
        scratch.write_text("new")
        assert scratch.parent == tmp_path  # a rename is atomic within a file system only
        assert path.read_text() == "a much longer old content"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("old", ["old", None])
@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt(), SystemExit(1)], ids=lambda error: repr(error))
def test_an_error_while_writing_leaves_what_was_there(tmp_path: Path, old: str | None, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    if old is not None:
        path.write_text(old)
    with pytest.raises(type(error)), replacing(path) as scratch:  # noqa: PT012
        scratch.write_text("half")
        raise error
    assert names(tmp_path) == (["a.txt"] if old else [])
    assert old is None or path.read_text() == old


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(OSError, match="File too large"), full_disk(4096):
        write_text(path, "x" * 10_000)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("stage", ["sync", "rename"])
def test_a_file_that_cannot_be_made_durable_or_renamed_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(*(files, "sync") if stage == "sync" else (Path, "replace"), fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_content_is_durable_before_it_has_the_name_and_the_name_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other order leaves an empty file under the final name after a power cut."""
    path, events = tmp_path / "a.txt", []
    synced = files.sync

    def record(what: Path) -> None:
        events.append((what.name, path.exists()))
        synced(what)

    monkeypatch.setattr(files, "sync", record)
    with replacing(path) as scratch:
        scratch.write_text("new")
    assert events == [(scratch.name, False), (tmp_path.name, True)]


def test_what_a_killed_writer_leaves_is_swept(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    kill_within(f"replacing(Path({str(path)!r}))")
    assert path.read_text() == "old"
    (orphan,) = set(names(tmp_path)) - {"a.txt"}
    assert orphan.startswith(".a.txt.")
    for kept in ("b.tmp", ".hidden", ".directory.1.partial"):
        (tmp_path / kept).touch()
    sweep(tmp_path)
    assert names(tmp_path) == [".directory.1.partial", ".hidden", "a.txt", "b.tmp"]


def test_json_is_read_back_and_what_is_none_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": [1, None], "a": 0.1})
    assert path.read_text() == '{\n  "b": [\n    1,\n    null\n  ],\n  "a": 0.1\n}\n'
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(path, {"a": {1, 2}})
    assert path.read_text().startswith('{\n  "b"')


def test_sync_of_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "none")


def test_what_is_appended_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    append(path, "old\n")
    with pytest.raises(OSError, match="File too large"), full_disk(10):
        append(path, "0123456789\n")
    assert path.read_text() == "old\n"
    append(path, "δ\n")
    assert path.read_text() == "old\nδ\n"


def test_a_full_disk_is_named_with_its_space(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64 << 10) as disk:
        for path, write in [
            (disk / "a", lambda: append(disk / "a", "x" * 100_000)),
            (disk / "b", lambda: write_text(disk / "b", "x" * 100_000)),
            (disk / "c", lambda: filled(disk / "c")),
        ]:
            with pytest.raises(DiskFull, match=rf"^{path}: no space left on the disk \([0-9.]+ (bytes|kB) free\)$"):
                write()
        assert [path.stat().st_size for path in disk.iterdir()] == [0]  # what is appended to


def filled(folder: Path) -> None:
    with new_directory(folder) as partial:
        for name in "ab":
            (partial / name).write_bytes(bytes(50_000))


# ---- directories -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [False, True])
def test_a_directory_appears_whole(tmp_path: Path, there: bool) -> None:
    final = tmp_path / "deep" / "store"
    if there:
        final.mkdir(parents=True)  # an empty one is as good as none
    with new_directory(final) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "file").write_text("content")
        assert partial.parent == final.parent
        assert not there or not names(final)
    assert (final / "sub" / "file").read_text() == "content"
    assert names(final.parent) == ["store"]


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_removes_what_was_begun_and_nothing_else(
    tmp_path: Path, replace: bool, error: type[BaseException]
) -> None:
    final = tmp_path / "store"
    final.mkdir()
    if replace:
        (final / "old").touch()
    with pytest.raises(error), new_directory(final, replace=replace) as partial:  # noqa: PT012
        (partial / "new").touch()
        raise error
    assert names(tmp_path) == ["store"]
    assert names(final) == (["old"] if replace else [])


def test_what_is_there_is_replaced_only_on_demand(tmp_path: Path) -> None:
    final = tmp_path / "store"
    with new_directory(final) as partial:
        (partial / "old").touch()
    with pytest.raises(ValueError, match="store: already exists and is not an empty directory; nothing was written"):
        new_directory(final).__enter__()
    assert names(final) == ["old"]
    with new_directory(final, replace=True) as partial:
        (partial / "new").touch()
    assert names(final) == ["new"]
    assert names(tmp_path) == ["store"]


def test_what_another_writer_put_there_meanwhile_stays(tmp_path: Path) -> None:
    final = tmp_path / "store"
    with pytest.raises(ValueError, match="already exists"), new_directory(final) as partial:  # noqa: PT012
        (partial / "mine").touch()
        final.mkdir()
        (final / "theirs").touch()
    assert names(final) == ["theirs"]
    assert names(tmp_path) == ["store"]


def test_what_a_killed_writer_of_a_directory_leaves_is_no_obstacle(tmp_path: Path) -> None:
    final = tmp_path / "store"
    for _ in range(2):
        kill_within(f"new_directory({str(final)!r})")
        assert not final.exists()
    (tmp_path / ".other.1.partial").mkdir()
    assert len(names(tmp_path)) == 3
    with new_directory(final, replace=True):
        pass
    assert names(tmp_path) == [".other.1.partial", "store"]


def test_a_directory_left_by_a_process_of_this_number_is_not_mixed_in(tmp_path: Path) -> None:
    with new_directory(tmp_path / "store") as partial:
        left = partial
    left.mkdir()
    (left / "stale").touch()
    (tmp_path / "store").rmdir()
    with new_directory(tmp_path / "store") as partial:
        assert partial == left
        (partial / "fresh").touch()
    assert names(tmp_path / "store") == ["fresh"]


def test_every_file_of_a_directory_is_durable_before_it_has_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final, events = tmp_path / "store", []
    monkeypatch.setattr(files, "sync", lambda path: events.append((path.name, final.exists())))
    with new_directory(final) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "file").touch()
    assert sorted(events[:-1]) == sorted([("sub", False), ("file", False), (partial.name, False)])
    assert events[-1] == (tmp_path.name, True)


@pytest.mark.parametrize("kind", ["nothing", "empty", "file", "filled", "link", "dangling link"])
def test_free_is_nothing_or_an_empty_directory(tmp_path: Path, kind: str) -> None:
    path, target = tmp_path / "x", tmp_path / "target"
    if kind in ("empty", "filled"):
        path.mkdir()
    if kind == "file":
        path.touch()
    elif kind == "filled":
        (path / "y").touch()
    elif "link" in kind:
        path.symlink_to(target)
    if kind == "link":
        target.mkdir()
    if kind in ("nothing", "empty"):
        require_free(path)
    else:
        with pytest.raises(ValueError, match="x: already exists"):
            require_free(path)
