"""Atomic writes: after a crash or a full disk, and for any reader, a file has its old content or its new."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsv2.storage.space import naming_full_disk

SCRATCH = ".tmp"  # suffix of files being written; `sweep` removes those of killed processes
PARTIAL = ".partial"  # suffix of directories being written


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a scratch path beside `path` to write to; on success it replaces `path`, durably. Raises DiskFull."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}{SCRATCH}")
    try:
        with naming_full_disk(path, scratch):
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


def append(path: Path, text: str) -> None:
    """Append to a file all of `text` or, on an error, nothing. Raises DiskFull."""
    with naming_full_disk(path), path.open("ab", buffering=0) as file:
        size, left = file.seek(0, os.SEEK_END), memoryview(text.encode())
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(size)
            raise


@contextmanager
def new_directory(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a new directory beside `path` to write in; on success it is renamed to `path`, durably.

    On an error it is removed. With `replace`, for which the caller must hold a lock, whatever is at `path` is removed;
    otherwise raises ValueError unless that is an empty directory. Raises DiskFull.
    """
    final = Path(path).absolute()
    if replace:
        for orphan in final.parent.glob(f".{final.name}.*{PARTIAL}"):
            shutil.rmtree(orphan)
    else:
        require_free(final)
    partial = final.with_name(f".{final.name}.{os.getpid()}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process with the same PID
    try:
        with naming_full_disk(final, partial):
            partial.mkdir(parents=True)
            yield partial
            for file in (*partial.rglob("*"), partial):
                sync(file)
            if replace:
                shutil.rmtree(final, ignore_errors=True)
            else:
                require_free(final)
            partial.replace(final)
            sync(final.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def require_free(path: Path) -> None:
    """Raise ValueError unless `path` is free or an empty directory."""
    if path.is_symlink() or (path.exists() and not path.is_dir()) or (path.is_dir() and any(path.iterdir())):
        raise ValueError(f"{path}: already exists and is not an empty directory; nothing was written")
    require_folder("path", path)


def require_folder(name: str, path: Path) -> None:
    """Raise ValueError, naming the option, unless `path` is a folder or can become one."""
    taken = next((part for part in (path, *path.parents) if part.exists() or part.is_symlink()), path)
    if not taken.is_dir():
        raise ValueError(f"{name} {path}: must be a folder, but {taken} is a file")
    if not os.access(taken, os.W_OK):
        raise ValueError(f"{name} {path}: must be a folder that can be written, unlike {taken}")


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's renames, to disk, so that they survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove scratch files of killed processes from `folder`."""
    for scratch in folder.glob(f".*{SCRATCH}"):
        scratch.unlink(missing_ok=True)
