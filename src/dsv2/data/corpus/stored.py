"""A corpus that was built; `build` lists its files. Reading it needs no package of the extra `corpus`."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from dsv2.data.documents import Document
from dsv2.storage.sealed import Damaged, changed, read_object, read_sealed

DOCUMENTS, CARD, CARD_PAGE, MANIFEST = "documents", "card.json", "card.md", "manifest.json"
FORMAT = 1  # increment when the same sources and settings give other documents


class Corpus(NamedTuple):
    """An intact corpus."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def content(self) -> str:
        """SHA-256 of the texts, domains and sides of all documents, in order."""
        return str(self.manifest["content"])

    @property
    def card(self) -> dict[str, Any]:
        """What went in and out of every step; `card.make_card` says what it holds."""
        return read_object(self.folder / CARD)

    def documents(self) -> Iterator[Document]:
        """Yield every document, in a fixed order."""
        from pyarrow import parquet

        for path in sorted((self.folder / DOCUMENTS).glob("*.parquet")):
            for batch in parquet.ParquetFile(path).iter_batches(columns=["text", "domain", "held_out"]):
                for row in batch.to_pylist():
                    yield Document(row["text"], row["domain"], row["held_out"])


def open_corpus(folder: Path) -> Corpus:
    """Open a corpus and verify all its files. Raises ValueError naming what is missing or damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder}: not a corpus, it has no {MANIFEST}; python -m dsv2 corpus build makes one")
    return _opened(folder, path.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _opened(folder: Path, modified: int) -> Corpus:
    manifest = read_sealed(folder / MANIFEST)
    if not manifest.keys() >= {"format", "key", "content", "settings", "vocab_size", "tokenizer", "files"}:
        raise Damaged(f"{folder / MANIFEST}: damaged, or not of a corpus")
    if manifest["format"] != FORMAT:
        raise ValueError(f"{folder}: a corpus in format {manifest['format']}, not {FORMAT}; build it again")
    if damaged := changed(folder, manifest["files"]):
        raise Damaged(f"{damaged[0]}: damaged or missing; build the corpus again")
    stored = {f"{DOCUMENTS}/{path.name}" for path in (folder / DOCUMENTS).glob("*.parquet")}
    if unlisted := sorted(stored - manifest["files"].keys()):
        raise Damaged(f"{folder / unlisted[0]}: not in {MANIFEST}; remove it, or build the corpus again")
    return Corpus(folder, manifest)
