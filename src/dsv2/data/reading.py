"""Documents from the user's files: .txt, .jsonl and .parquet."""

import glob
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dsv2.config import ConfigError
from dsv2.data.documents import Document
from dsv2.storage.paths import home_of, within

NO_DOMAIN = "text"


def find(key: str, pattern: str) -> list[Path]:
    """Return the files that match a glob, sorted by path. `key` is the setting named in errors."""
    expanded = str(Path(pattern).expanduser())
    paths = sorted(map(Path, glob.glob(expanded, recursive=True)))  # noqa: PTH207 - Path.glob takes no absolute pattern
    if not paths:
        raise ConfigError(key, pattern, f"a glob that matches files; nothing does in {Path.cwd()}")
    if paths == [Path(pattern).expanduser()] and paths[0].is_dir():
        raise ConfigError(key, pattern, f"a glob of files; this is a directory: use {pattern.rstrip('/')}/*.txt")
    files = [path for path in paths if path.is_file()]
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), Path(expanded).parts)
    root = home_of(Path(*fixed))  # the user named this part, links included
    try:
        for path in files:
            within(root, path)
    except ValueError as error:
        raise ConfigError(key, pattern, f"text in its own folder; {error}") from None
    for path in files:
        if path.suffix not in READERS:
            raise ConfigError(key, pattern, f"only {', '.join(READERS)} files; it also matches {path}")
    if not files:
        raise ConfigError(key, pattern, "a glob that matches files; it matches only directories")
    return files


def stamp(key: str, pattern: str) -> tuple[tuple[str, int, int], ...]:
    """Return path, size and mtime of every file."""
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in find(key, pattern))


def read(key: str, pattern: str) -> Iterator[Document]:
    """Yield every document that is not blank. Raises `ConfigError`, naming a file that cannot be used."""
    for path in find(key, pattern):
        empty = True
        try:
            for text, domain in READERS[path.suffix](path):
                if text.strip():
                    empty = False
                    yield Document(valid_text(text), domain or NO_DOMAIN)
        except _Unreadable as error:
            raise ConfigError(key, pattern, str(error)) from None
        if empty:
            raise ConfigError(key, pattern, f"files with text; {path} has none")


class _Unreadable(Exception):
    """A file cannot be read; the message says why."""


def valid_text(text: str) -> str:
    """Replace lone surrogates, which JSON can contain but UTF-8 cannot encode, by question marks."""
    return text.encode(errors="replace").decode()


def _txt(path: Path) -> Iterator[tuple[str, str | None]]:
    try:
        yield path.read_bytes().decode(), None
    except UnicodeDecodeError as error:
        raise _Unreadable(f"text in UTF-8; {path} is not, from byte {error.start} on") from None


def _jsonl(path: Path) -> Iterator[tuple[str, str | None]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                why = "nested too deeply" if isinstance(error, RecursionError) else error
                raise _Unreadable(f"one JSON object per line; {path}, line {number}: {why}") from None
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                keys = f"it has {', '.join(row)}" if isinstance(row, dict) else f"it is {type(row).__name__}"
                raise _Unreadable(f"objects with a string `text`; {path}, line {number}: {keys}")
            yield row["text"], _name(row.get("domain"))


def _parquet(path: Path) -> Iterator[tuple[str, str | None]]:
    from pyarrow import ArrowInvalid, parquet

    try:
        table = parquet.ParquetFile(path)
    except ArrowInvalid as error:
        raise _Unreadable(f"Parquet files; {path} is not: {error}") from None
    names = table.schema_arrow.names
    if "text" not in names:
        raise _Unreadable(f"a column `text`; {path} has {', '.join(names)}")
    for batch in table.iter_batches(columns=[name for name in ("text", "domain") if name in names]):
        for row in batch.to_pylist():
            if row["text"] is not None and not isinstance(row["text"], str):
                raise _Unreadable(
                    f"a column `text` of strings; that of {path} is {table.schema_arrow.field('text').type}"
                )
            yield row["text"] or "", _name(row.get("domain"))


def _name(domain: Any) -> str | None:
    return None if domain is None else str(domain)


READERS: dict[str, Callable[[Path], Iterator[tuple[str, str | None]]]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
