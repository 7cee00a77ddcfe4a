"""Directories that appear complete or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsv2.files import sync


@contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """A directory beside `path` to write in, renamed to `path` at the end, synced to disk; removed after an error.

    ValueError where `path` exists and is anything but an empty directory.
    """
    final = Path(path).absolute()
    require_free(final)
    partial = final.with_name(f".{final.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process that had this number
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in (*partial.rglob("*"), partial):
            sync(file)
        require_free(final)
        partial.replace(final)
        sync(final.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def require_free(path: Path) -> None:
    """Raise ValueError unless nothing, or an empty directory, lies at `path`."""
    if path.is_symlink() or (path.exists() and not path.is_dir()) or (path.is_dir() and any(path.iterdir())):
        raise ValueError(f"{path}: exists already and is not an empty directory; nothing was written")
