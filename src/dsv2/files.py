"""Writing files so that a reader, a crash or a full disk sees the old content or the new, never half of it."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCRATCH = ".tmp"  # suffix of files being written; what a killed process left behind may be swept


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a scratch path beside `path` to write to; on success it takes the place of `path`, durably."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}{SCRATCH}")
    try:
        yield scratch
        sync(scratch)
        scratch.replace(path)
        sync(path.parent)
    finally:
        scratch.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as scratch:
        scratch.write_text(text)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def sync(path: Path) -> None:
    """Make what was written to a file, or renamed in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left behind in `folder`."""
    for scratch in folder.glob(f".*{SCRATCH}"):
        scratch.unlink(missing_ok=True)
