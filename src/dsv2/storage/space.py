"""A full disk: recognised whichever library meets it, and reported with the path and the free space."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsv2.printing import FULL

MARGIN = 1 << 20  # bytes that must be free before a failed write is tried again, beside those of the file


class DiskFull(OSError):
    """No space is left for a file, or its owner's quota is used up; the message has its path and the free space.

    `needed` is the number of bytes that should be free before the write is tried again, at least `MARGIN`.
    """

    def __init__(self, path: Path, number: int, needed: int = MARGIN) -> None:
        super().__init__(f"{path}: {_reason(path, number)}")
        self.errno, self.path, self.needed = number, path, needed


@contextmanager
def naming_full_disk(path: Path, scratch: Path | None = None) -> Iterator[None]:
    """Raise DiskFull for `path` if the body fails for lack of space; `scratch` is what it writes first, if not `path`.

    Libraries report a full disk in several ways: PyTorch with a RuntimeError raised while the OSError was handled,
    safetensors only in the message.
    """
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        if (number := _disk_errno(error)) is None:
            raise
        # Less than what was written did not suffice; twice as much converges to the size of the file.
        raise DiskFull(path, number, MARGIN + 2 * _size(scratch or path)) from error


def has_space(folder: Path, num_bytes: int) -> bool:
    """Whether a file of `num_bytes` fits into `folder` now, tried with an unnamed file."""
    try:
        with tempfile.TemporaryFile(dir=folder) as scratch:
            os.posix_fallocate(scratch.fileno(), 0, num_bytes)
    except OSError as error:
        return error.errno not in FULL
    return True


def _disk_errno(error: BaseException | None) -> int | None:
    """Return ENOSPC or EDQUOT if that is what the error, or one that it followed, reports."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error.errno
        for number in FULL:
            if not isinstance(error, OSError) and os.strerror(number) in str(error):
                return number
        error = error.__cause__ or error.__context__
    return None


def _reason(path: Path, number: int) -> str:
    usage = os.statvfs(next(folder for folder in path.absolute().parents if folder.is_dir()))
    free = f"{_amount(usage.f_bavail * usage.f_frsize)} free"
    if number == errno.EDQUOT:
        return f"the disk quota is used up ({free} on the disk itself)"
    if usage.f_files and not usage.f_favail:
        return f"the disk can hold no more files (no inodes left, {free})"
    return f"no space left on the disk ({free})"


def _amount(num_bytes: int) -> str:
    """Format a number of bytes, as in 12.3 MB."""
    amount = float(num_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.1f} {unit}" if unit != "bytes" else f"{num_bytes} bytes"
        amount /= 1000
    return f"{amount:.1f} TB"


def _size(path: Path) -> int:
    """Return the bytes of a file or of all files in a folder; 0 if it does not exist."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
