"""JSON files that detect damage to themselves, and hashes that detect damage to the files beside them."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dsv2.storage.files import write_json
from dsv2.storage.values import parse_object

SEAL = "sha256"  # the key in a sealed file with the hash of all its other contents


class Damaged(ValueError):
    """A stored file is damaged; the message names it."""


def read_object(path: Path, most_bytes: int | None = None) -> dict[str, Any]:
    """Read a JSON object. Raises FileNotFoundError, and Damaged for any other content or one that is too large."""
    if most_bytes is not None and path.stat().st_size > most_bytes:
        raise Damaged(f"{path}: damaged, larger than {most_bytes:,} bytes")
    try:
        return parse_object(path.read_bytes())
    except ValueError as error:
        raise Damaged(f"{path}: damaged, {error}") from None


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with its own hash, atomically and durably."""
    plain = json.loads(json.dumps(value))
    write_json(path, plain | {SEAL: _digest(plain)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote, or an older file without a hash. Raises FileNotFoundError and Damaged."""
    value = read_object(path)
    seal = value.pop(SEAL, None)
    if seal is not None and seal != _digest(value):
        raise Damaged(f"{path}: damaged, its contents do not match its checksum")
    return value


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Map each of the files that exist in `folder` to its hash."""
    return {name: file_hash(folder / name) for name in names if (folder / name).is_file()}


def changed(folder: Path, expected: Mapping[str, str]) -> list[Path]:
    """Return the files that are missing from `folder` or do not have the expected hash."""
    paths = {folder / name: value for name, value in expected.items()}
    return [path for path, value in paths.items() if not path.is_file() or file_hash(path) != value]


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
