"""A full disk is told apart from other errors, whichever library meets it, and named with its free space."""

import errno
import os
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from dsv2.storage import space
from dsv2.storage.space import MARGIN, DiskFull, has_space, naming_full_disk
from tests.references.faults import small_disk

NUMBERS = np.random.default_rng(0).random(300_000)


def torch_save(path: Path) -> None:
    with path.open("wb") as file:
        torch.save({"a": torch.from_numpy(NUMBERS)}, file)


WRITERS = {
    "text": lambda path: path.write_text("a" * NUMBERS.nbytes),
    "torch": torch_save,
    "safetensors": lambda path: save_file({"a": torch.from_numpy(NUMBERS)}, path),
    "parquet": lambda path: pd.DataFrame({"a": NUMBERS}).to_parquet(path),
    "csv": lambda path: pd.DataFrame({"a": NUMBERS}).to_csv(path),
    "npz": lambda path: np.savez(path.with_suffix(".npz"), a=NUMBERS),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_library_that_meets_a_full_disk_is_understood(tmp_path: Path, name: str) -> None:
    """On a real file system that is too small."""
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        path = disk / "file"
        words = rf"{path}: no space left on the disk \([0-9.]+ (bytes|kB|MB) free\)"
        with pytest.raises(DiskFull, match=words), naming_full_disk(path):
            WRITERS[name](path)


@pytest.mark.parametrize(
    ("number", "usage", "words"),
    [
        (errno.ENOSPC, {"f_bavail": 3}, "no space left on the disk (12.3 kB free)"),
        (
            errno.ENOSPC,
            {"f_bavail": 10**6, "f_favail": 0},
            "the disk can hold no more files (no inodes left, 4.1 GB free)",
        ),
        (errno.ENOSPC, {"f_bavail": 0, "f_files": 0, "f_favail": 0}, "no space left on the disk (0 bytes free)"),
        (errno.EDQUOT, {"f_bavail": 10**9}, "the disk quota is used up (4.1 TB free on the disk itself)"),
    ],
    ids=["space", "inodes", "no inodes at all", "quota"],
)
def test_the_message_says_what_is_used_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, usage: dict[str, int], words: str
) -> None:
    usual = {"f_frsize": 4096, "f_files": 100, "f_favail": 50}
    monkeypatch.setattr(os, "statvfs", lambda _: types.SimpleNamespace(**(usual | usage)))
    path = tmp_path / "missing" / "file"
    with pytest.raises(DiskFull) as full, naming_full_disk(path):
        raise OSError(number, os.strerror(number))
    assert str(full.value) == f"{path}: {words}"
    assert (full.value.errno, full.value.path) == (number, path)


def test_the_innermost_name_is_kept(tmp_path: Path) -> None:
    outer, inner = naming_full_disk(tmp_path / "outer"), naming_full_disk(tmp_path / "inner")
    with pytest.raises(DiskFull, match="inner: "), outer, inner:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), ValueError("space"), RuntimeError("left"), KeyboardInterrupt()]
)
def test_other_errors_pass(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, naming_full_disk(tmp_path):
        raise error
    assert raised.value is error


def test_more_must_be_free_than_did_not_suffice(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for name in "ab":
        (scratch / name).write_bytes(bytes(500))
    for path, needed in ((tmp_path / "none", MARGIN), (scratch, MARGIN + 2000), (scratch / "a", MARGIN + 1000)):
        with pytest.raises(DiskFull) as full, naming_full_disk(tmp_path / "final", path):
            raise OSError(errno.ENOSPC, "No space left on device")
        assert full.value.needed == needed


def test_space_is_tried_and_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        assert has_space(disk, 3 << 20)
        assert not has_space(disk, 5 << 20)
        assert has_space(disk, 3 << 20)
        assert [*disk.iterdir()] == []
        assert has_space(disk / "missing", 1)  # whoever writes there gets the true error

    def fail(*_: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(space.os, "posix_fallocate", fail)
    assert not has_space(tmp_path, 1)
