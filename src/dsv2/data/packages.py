"""Texts inside installed packages, read without importing these."""

import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from dsv2.config import ConfigError


def package_folder(name: str, *, key: str = "data", extra: str | None = None) -> Path:
    """Return the folder of an installed package. Raises `ConfigError`, which says how to install it.

    `extra` is the extra of dsv2 that has it; None: it is installed by its own name.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        what = name if extra is None else f"'dsv2[{extra}]'"
        raise ConfigError(key, name, f"needs the package {name!r}, whose files it reads: pip install {what}")
    return Path(spec.origin).parent


def python_sources(name: str, *, key: str = "data") -> list[Path]:
    """Return the Python files of a package without its tests, sorted. Raises `ConfigError`."""
    return sorted(path for path in package_folder(name, key=key).rglob("*.py") if "tests" not in path.parts)


def scattered(paths: list[Path]) -> Iterator[str]:
    """Yield the files' texts in the order of a hash of their names, so that any prefix is a random sample."""
    for path in sorted(paths, key=lambda path: hashlib.sha256("/".join(path.parts[-2:]).encode()).digest()):
        yield path.read_text(encoding="utf-8")
