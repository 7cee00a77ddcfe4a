"""Paths that stay under their root, also through symbolic links."""

import os
from pathlib import Path


def as_path(name: str, value: str | Path) -> Path:
    """Return a path. Raises TypeError, naming the argument, for what is none, and ValueError for empty text."""
    if not isinstance(value, str | Path):
        raise TypeError(f"{name}={value!r}: must be a path, as text or a Path")
    if value == "":  # which `Path` takes for the current folder
        raise ValueError(f"{name}='': must be a path; the current folder is '.'")
    return Path(value)


def within(root: Path, path: Path) -> Path:
    """Return `path`. Raises ValueError if it leads out of `root`, by `..` or through a symbolic link."""
    target = Path(os.path.realpath(path))  # Path.resolve raises for a link to itself
    if path.is_symlink() and target.is_symlink():
        raise ValueError(f"{path}: a symbolic link that leads to itself; delete it")
    if not target.is_relative_to(os.path.realpath(root)):
        raise ValueError(f"{path}: leads to {target}, outside {root}; nothing there is read or written")
    return path


def home_of(folder: Path) -> Path:
    """Return where links in a folder from elsewhere may lead: the folder or, in a cache of the Hub, its repository."""
    for snapshot in (folder.absolute(), *folder.absolute().parents):
        if snapshot.parent.name == "snapshots" and (snapshot.parents[1] / "blobs").is_dir():
            return snapshot.parents[1]
    return folder


def require_own_files(folder: Path, root: Path | None = None) -> None:
    """Raise ValueError if a symbolic link under `folder` leads out of `root`, by default `folder` itself.

    What W&B keeps in its folder is left alone: nothing there is read, and it links to its own logs elsewhere.
    """
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if (path := Path(parent, name)).is_symlink():
                within(root or folder, path)
        folders[:] = [name for name in folders if name != "wandb"]
