"""Prepared corpora on disk: `<runs>/.data/<key>/`, made once, shared by all runs and processes.

    tokenizer.json  trained on the training split
    train.bin       token ids, uint16 (uint32 from 65,537 ids on); each document is followed by <|endoftext|>
    val.bin
    documents.npz   per split, `<split>_starts` int64 (first token of each document) and `<split>_domains` int8
    manifest.json   written last: identity, counts, sha256 of the other files

A folder is made under another name and renamed when it is complete, with a lock held; so whatever bears the name of a
key is whole, and a preparation that was killed is done again.
"""

import hashlib
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np

from dsv2.config import digest
from dsv2.data.documents import Document, Survey, take_survey
from dsv2.data.tokenizer import TOKENIZER, Tokenizer
from dsv2.storage.files import new_directory, write_json
from dsv2.storage.rundir import runs_root

MANIFEST = "manifest.json"
FILES = (TOKENIZER, "train.bin", "val.bin", "documents.npz")
SPLITS = ("train", "val")
_CHUNK = 1 << 20  # characters tokenized at a time


class Split(NamedTuple):
    """One side of a prepared corpus: N tokens in n documents."""

    tokens: np.ndarray  # (N,) uint16 or uint32, memory-mapped
    starts: np.ndarray  # (n,) int64, first token of each document
    domains: np.ndarray  # (n,) int8, index into `Store.domains`


class Store(NamedTuple):
    """A prepared corpus, opened."""

    train: Split
    val: Split
    domains: tuple[str, ...]
    tokenizer: Tokenizer
    manifest: dict[str, Any]
    folder: Path


def open_store(
    documents: Iterable[Document],
    survey: Survey,
    chosen: set[bytes],
    *,
    vocab_size: int,
    identity: dict[str, str],
    tokenizer: Tokenizer | None = None,
) -> Store:
    """Open the prepared corpus that `identity` names, and prepare it first if it is not there or damaged.

    `documents` is iterated twice, and must give what the survey `found`; `chosen` are the digests of the validation
    documents. A `tokenizer` that is given is not trained. Raises RuntimeError if the documents change in between.
    """
    folder = runs_root() / ".data" / digest(identity)
    if not _complete(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            if not _complete(folder):
                with new_directory(folder, replace=True) as scratch:
                    _prepare(scratch, documents, survey, chosen, vocab_size, identity, tokenizer)
    return _open(folder, vocab_size, tokenizer)


def find_store(identity: dict[str, str], places: Iterable[Path], vocab_size: int) -> Store | None:
    """Open the prepared corpus that `identity` names from the first of `places` that has it whole, or return None."""
    folders = (place / ".data" / digest(identity) for place in places)
    return next((_open(folder, vocab_size) for folder in folders if folder.is_dir() and _complete(folder)), None)


def _open(folder: Path, vocab_size: int, tokenizer: Tokenizer | None = None) -> Store:
    manifest = json.loads((folder / MANIFEST).read_text())
    tables = np.load(folder / "documents.npz")

    def side(name: str) -> Split:
        tokens = np.memmap(folder / f"{name}.bin", dtype=manifest["dtype"], mode="r")
        return Split(tokens, tables[f"{name}_starts"], tables[f"{name}_domains"])

    tokenizer = tokenizer or Tokenizer.load(folder / TOKENIZER, vocab_size)
    return Store(side("train"), side("val"), tuple(manifest["domains"]), tokenizer, manifest, folder)


def _complete(folder: Path) -> bool:
    """Whether every file is there with the content that the manifest says; reads all of them, about 1 s a GB."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return False
    except ValueError:
        manifest = {}
    kept = manifest.get("files", {})
    if all((folder / name).is_file() and kept.get(name) == _sha256(folder / name) for name in FILES):
        return True
    print(f"data: {folder} is damaged and will be prepared again", file=sys.stderr)
    return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _locked(path: Path) -> filelock.AcquireReturnProxy:
    """Hold the lock, saying so where that means waiting. The system frees it when its holder dies."""
    lock = filelock.FileLock(path)
    try:
        return lock.acquire(blocking=False)
    except filelock.Timeout:
        print("data: another process is preparing this corpus; waiting for it", file=sys.stderr)
        return lock.acquire()


def _prepare(
    folder: Path,
    documents: Iterable[Document],
    survey: Survey,
    chosen: set[bytes],
    vocab_size: int,
    identity: dict[str, str],
    tokenizer: Tokenizer | None,
) -> None:
    progress = _Progress(survey)
    in_val = [text in chosen for text in survey.digests]

    def training_texts() -> Iterator[str]:
        for document, held_out in zip(documents, in_val, strict=False):
            progress.step("learning the tokenizer", document)
            if not held_out:
                yield document.text

    tokenizer = tokenizer or Tokenizer.train(training_texts(), vocab_size)
    tokenizer.save(folder / TOKENIZER)
    names = sorted(set(survey.domains))
    dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
    writers = {name: _Writer(folder / f"{name}.bin", tokenizer, dtype) for name in SPLITS}
    progress.restart()

    def written() -> Iterator[Document]:
        for document, held_out in zip(documents, in_val, strict=False):
            progress.step("tokenizing", document)
            writers["val" if held_out else "train"].add(document.text, names.index(document.domain))
            yield document

    # A change between the survey and here would put documents on the wrong side and give the folder a wrong name.
    if take_survey(written()).content_hash != survey.content_hash:
        raise RuntimeError("the corpus changed while it was being prepared; start again")
    splits = {name: writer.close() for name, writer in writers.items()}
    tables = {f"{name}_starts": np.array(writer.starts, dtype=np.int64) for name, writer in writers.items()}
    tables |= {f"{name}_domains": np.array(writer.domains, dtype=np.int8) for name, writer in writers.items()}
    np.savez(folder / "documents.npz", **tables)  # type: ignore[arg-type]
    manifest = {
        "identity": identity,
        "tokenizer": tokenizer.hash,
        "domains": names,
        "dtype": dtype.name,
        "splits": splits,
        "files": {name: _sha256(folder / name) for name in FILES},
    }
    write_json(folder / MANIFEST, manifest)
    progress.end()


class _Writer:
    """Tokenizes documents in chunks and appends them to one split's file."""

    def __init__(self, path: Path, tokenizer: Tokenizer, dtype: np.dtype) -> None:
        self.file, self.tokenizer, self.dtype = path.open("wb"), tokenizer, dtype
        self.starts, self.domains = list[int](), list[int]()
        self.tokens, self.bytes = 0, 0
        self._waiting, self._size = list[str](), 0

    def add(self, text: str, domain: int) -> None:
        self._waiting.append(text)
        self._size += len(text)
        self.domains.append(domain)
        if self._size >= _CHUNK:
            self._flush()

    def _flush(self) -> None:
        for text, ids in zip(self._waiting, self.tokenizer.encode_batch(self._waiting), strict=True):
            self.starts.append(self.tokens)
            self.file.write(np.array([*ids, self.tokenizer.end_id], dtype=self.dtype).data)
            self.tokens += len(ids) + 1
            self.bytes += len(text.encode())
        self._waiting, self._size = [], 0

    def close(self) -> dict[str, int]:
        """Counts for the manifest."""
        self._flush()
        self.file.close()
        return {"tokens": self.tokens, "documents": len(self.starts), "bytes": self.bytes}


class _Progress:
    """Says on stderr how far a preparation is, every 2 seconds, so that a short one says nothing."""

    def __init__(self, survey: Survey) -> None:
        self.total, self.said = survey.num_bytes, False
        self.restart()

    def restart(self) -> None:
        self.done, self.last = 0, time.monotonic()

    def step(self, what: str, document: Document) -> None:
        self.done += len(document.text)
        if time.monotonic() - self.last >= 2:
            share = min(self.done / max(self.total, 1), 1)  # characters of bytes: behind for other alphabets
            print(f"data: {what}, {share:.0%} of {self.total / 1e6:.1f} MB", file=sys.stderr, flush=True)
            self.last, self.said = time.monotonic(), True

    def end(self) -> None:
        if self.said:
            print("data: prepared; later runs find it at once", file=sys.stderr, flush=True)
