"""Paths that stay under their root, and plain values from files that others wrote."""

import os
import re
from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 1_000_000  # of a YAML file
MOST_VALUES = 100_000  # in a YAML file, an alias counting as what it stands for
# Control characters, which a terminal obeys, and those that reverse the order of a text.
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069]")


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


class Loader(yaml.SafeLoader):
    """YAML of bounded size without control characters.

    Refuses duplicate keys: a copied arm that kept its name would silently replace the first.
    """

    def compose_document(self) -> Any:
        node = super().compose_document()
        if node is not None and _size(node, {}) > MOST_VALUES:
            raise yaml.constructor.ConstructorError(None, None, f"more than {MOST_VALUES:,} values", node.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        built = super().construct_mapping(node, deep)
        if len(built) < len(node.value):
            keys = [self.construct_object(key) for key, _ in node.value]
            again = ", ".join(sorted({str(key) for key in keys if keys.count(key) > 1}))
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key {again}", node.start_mark)
        return built


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Count the values under a node; one that contains itself counts as too many."""
    if isinstance(node, yaml.ScalarNode):
        if UNSEEN.search(node.value):
            raise yaml.constructor.ConstructorError(None, None, "control characters in a text", node.start_mark)
        return 1
    if id(node) not in sizes:
        sizes[id(node)] = MOST_VALUES
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        sizes[id(node)] = 1 + sum(_size(part, sizes) for part in parts)
    return sizes[id(node)]


def read_yaml(path: Path) -> Any:
    """Return the plain values in a YAML file. Raises ValueError, in one line, for anything else."""
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path}: larger than {MOST_BYTES:,} bytes")
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse_yaml(text: str) -> Any:
    """Return the plain values in a YAML text. Raises ValueError, in one line, for anything else."""
    try:
        return yaml.load(text, Loader)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a number of thousands of digits
        raise ValueError(UNSEEN.sub("?", " ".join(str(error).split()))) from None
