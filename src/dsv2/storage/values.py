"""Plain values from YAML and JSON files that others wrote."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

MOST_BYTES = 1_000_000  # of a YAML file
MOST_VALUES = 100_000  # in a YAML file, an alias counting as what it stands for
# Control characters, which a terminal obeys, and those that reverse the order of a text.
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069]")


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Return the object in a JSON text. Raises ValueError, in one line, for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


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
