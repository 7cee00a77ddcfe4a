"""Prepared corpora on disk: `<runs>/.data/<key>/`, written once, shared by all runs and processes.

    tokenizer.json  trained on the training split
    train.bin       token ids, uint16 (uint32 above 65,536 ids); each document is followed by <|endoftext|>
    val.bin
    documents.npz   per split, `<split>_starts` int64 (first token of each document) and `<split>_domains` int8; with
                    documents that are more than their text, also `<split>_scored` uint8 (a bit per token: whether it
                    is to be learned) and `<split>_notes` uint8 (JSON lines, one per document) and
                    `<split>_numbers` int64 (place of each document in the corpus)
    manifest.json   written last: identity, counts, SHA-256 of itself and of the other files

A folder is written under another name and renamed when complete, under a lock, so a folder named by its key is always
complete, and a killed preparation is repeated.

A copy is kept under `<cache>/corpora/<key>/`, so that another `<runs>` copies it instead of preparing it again. The
cache is DSV2_CACHE, else dsv2/ of the user's caches; DSV2_CACHE=off keeps none. Copies are checked like the original.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from dsv2.caches import cache_folder
from dsv2.config import ConfigError, digest
from dsv2.data.documents import Document, Survey, take_survey
from dsv2.data.tokenizer import Tokenizer
from dsv2.printing import complain
from dsv2.storage.files import new_directory
from dsv2.storage.locks import hold_when_free
from dsv2.storage.rundir import TOKENIZER, runs_root
from dsv2.storage.sealed import Damaged, file_hash, read_sealed, write_sealed

MANIFEST = "manifest.json"
FILES = (TOKENIZER, "train.bin", "val.bin", "documents.npz")
KEYS = {"identity", "tokenizer", "domains", "dtype", "splits", "files"}  # of the manifest
SPLITS = ("train", "val")
DTYPES = ("uint16", "uint32")
_CHUNK = 1 << 20  # characters tokenized at a time


class Split(NamedTuple):
    """One split of a prepared corpus: N tokens in n documents."""

    tokens: np.ndarray  # (N,) uint16 or uint32, memory-mapped
    starts: np.ndarray  # (n,) int64, first token of each document
    domains: np.ndarray  # (n,) int8, index into `Store.domains`
    scored: np.ndarray | None = None  # (N,) bool, whether a token is to be learned; None: all are
    notes: tuple[str, ...] = ()  # n, what else the `Form` keeps of each document, in JSON; empty if it keeps nothing
    numbers: np.ndarray | None = None  # (n,) int64, place of each document in the corpus, where there are notes


class Encoded(NamedTuple):
    """A document in tokens."""

    ids: list[int]
    scored: list[bool] | None = None  # of each token, whether it is to be learned; None: all are
    note: str = "null"  # what else is kept, one line of JSON


class Form(Protocol):
    """How a document is tokenized."""

    def shown(self, text: str) -> str:
        """Return of a document's text what a tokenizer is trained on. Raises ValueError."""

    def encode(self, tokenizer: Tokenizer, texts: list[str]) -> Iterator[Encoded]:
        """Yield the tokens of each document's text. Raises ValueError for one that cannot be used."""


class PlainText:
    """The text, followed by <|endoftext|>."""

    def shown(self, text: str) -> str:
        return text

    def encode(self, tokenizer: Tokenizer, texts: list[str]) -> Iterator[Encoded]:
        return (Encoded([*ids, tokenizer.end_id]) for ids in tokenizer.encode_batch(texts))


class Store(NamedTuple):
    """An open prepared corpus."""

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
    form: Form | None = None,
) -> Store:
    """Open the prepared corpus with this `identity`; prepare it first if it is missing or damaged.

    `documents` is iterated twice and must match `survey`; `chosen` holds the digests of the validation documents.
    Without a `tokenizer`, one is trained; without a `form`, documents are `PlainText`. Raises RuntimeError if the
    documents change in between, ConfigError for one that the form cannot use, DiskFull, and Busy if another process has
    stopped while preparing it.
    """
    folder = runs_root() / ".data" / digest(identity)
    if not _complete(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with hold_when_free(folder.with_suffix(".lock"), "the data", lambda text: complain(f"data: {text}")):
            if not _complete(folder):
                with new_directory(folder, replace=True) as scratch:
                    copied = _copied(scratch, identity)
                    if not copied:
                        _prepare(
                            scratch, documents, survey, chosen, vocab_size, identity, tokenizer, form or PlainText()
                        )
                if not copied:
                    _keep_copy(folder, identity)
    return _open(folder, vocab_size, tokenizer)


def find_store(
    identity: dict[str, str], places: Iterable[Path], vocab_size: int, tokenizer: Tokenizer | None = None
) -> Store | None:
    """Open the prepared corpus with this `identity` in the first of `places` that has it intact, or return None.

    `tokenizer` is the one that it was prepared with, if that was not trained on it.
    """
    folders = (place / ".data" / digest(identity) for place in places)
    whole = (folder for folder in folders if folder.is_dir() and _complete(folder))
    return next((_open(folder, vocab_size, tokenizer) for folder in whole), None)


def _open(folder: Path, vocab_size: int, tokenizer: Tokenizer | None = None) -> Store:
    manifest = read_sealed(folder / MANIFEST)
    tables = np.load(folder / "documents.npz", allow_pickle=False)

    def side(name: str) -> Split:
        tokens = np.memmap(folder / f"{name}.bin", dtype=manifest["dtype"], mode="r")
        split = Split(tokens, tables[f"{name}_starts"], tables[f"{name}_domains"])
        if f"{name}_scored" not in tables:
            return split
        scored = np.unpackbits(tables[f"{name}_scored"], count=len(tokens)).astype(bool)
        notes = tuple(tables[f"{name}_notes"].tobytes().decode().split("\n")[:-1])
        return split._replace(scored=scored, notes=notes, numbers=tables[f"{name}_numbers"])

    tokenizer = tokenizer or Tokenizer.load(folder / TOKENIZER, vocab_size)
    return Store(side("train"), side("val"), tuple(manifest["domains"]), tokenizer, manifest, folder)


def _cached(identity: dict[str, str]) -> Path | None:
    """Return the folder of the copy that stores share, or None if none shall be kept."""
    try:
        kept = cache_folder("corpora")
    except ValueError as error:
        raise ConfigError("DSV2_CACHE", os.environ["DSV2_CACHE"], str(error)) from None
    return None if kept is None else kept / digest(identity)


def _copied(scratch: Path, identity: dict[str, str]) -> bool:
    """Copy the shared prepared corpus to `scratch`; return whether there is one and the copy is intact."""
    cached = _cached(identity)
    try:
        if cached is None or not (cached / MANIFEST).is_file():
            return False
        for name in (MANIFEST, *FILES):
            shutil.copyfile(cached / name, scratch / name)
        intact = _is_of(scratch, identity, cached)
    except OSError as error:
        complain(f"data: the copy in {cached} cannot be read: {error.strerror}")
        intact = False
    if not intact:
        for path in scratch.iterdir():
            path.unlink()
    return intact


def _keep_copy(folder: Path, identity: dict[str, str]) -> None:
    """Keep a copy that other stores can use; where none can be written, say so and go on without."""
    cached = _cached(identity)
    if cached is None:
        return
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with hold_when_free(cached.with_suffix(".lock"), "the copy", lambda text: complain(f"data: {text}")):
            if not (cached.is_dir() and _is_of(cached, identity, cached)):
                with new_directory(cached, replace=True) as scratch:
                    for name in (*FILES, MANIFEST):
                        shutil.copyfile(folder / name, scratch / name)
    except OSError as error:
        complain(f"data: no copy was kept for other stores in {cached.parent}: {error.strerror}")


def _is_of(folder: Path, identity: dict[str, str], named: Path) -> bool:
    """Whether the folder is an intact prepared corpus with this identity; `named` is what messages call it."""
    return _complete(folder, named) and read_sealed(folder / MANIFEST)["identity"] == identity


def _complete(folder: Path, named: Path | None = None) -> bool:
    """Whether every file exists with the checksum in the manifest; reads all files, about 1 s per GB."""
    try:
        manifest = read_sealed(folder / MANIFEST)
    except FileNotFoundError:
        return False
    except Damaged:
        manifest = {}
    kept: Any = manifest["files"] if manifest.keys() >= KEYS and manifest["dtype"] in DTYPES else None
    whole = ((folder / name).is_file() and kept.get(name) == file_hash(folder / name) for name in FILES)
    if isinstance(kept, dict) and all(whole):
        return True
    complain(f"data: {named or folder} is damaged and will be prepared again")
    return False


def _prepare(
    folder: Path,
    documents: Iterable[Document],
    survey: Survey,
    chosen: set[bytes],
    vocab_size: int,
    identity: dict[str, str],
    tokenizer: Tokenizer | None,
    form: Form,
) -> None:
    progress = _Progress(survey)
    in_val = [text in chosen for text in survey.digests]

    def training_texts() -> Iterator[str]:
        for document, held_out in zip(documents, in_val, strict=False):
            progress.step("training the tokenizer", document)
            if not held_out:
                with _naming(document):
                    text = form.shown(document.text)
                yield text

    tokenizer = tokenizer or Tokenizer.train(training_texts(), vocab_size)
    tokenizer.save(folder / TOKENIZER)
    names = sorted(set(survey.domains))
    dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
    writers = {name: _Writer(folder / f"{name}.bin", tokenizer, dtype, form) for name in SPLITS}
    progress.restart()

    def written() -> Iterator[Document]:
        for number, (document, held_out) in enumerate(zip(documents, in_val, strict=False)):
            progress.step("tokenizing", document)
            writers["val" if held_out else "train"].add(document, names.index(document.domain), number)
            yield document

    # A change since the survey would put documents in the wrong split and give the folder a wrong name.
    if take_survey(written()).content_hash != survey.content_hash:
        raise RuntimeError("the corpus changed while it was being prepared; start again")
    splits = {name: writer.close() for name, writer in writers.items()}
    tables: dict[str, np.ndarray] = {
        f"{name}_starts": np.array(writer.starts, dtype=np.int64) for name, writer in writers.items()
    }
    tables |= {f"{name}_domains": np.array(writer.domains, dtype=np.int8) for name, writer in writers.items()}
    if any(writer.scored for writer in writers.values()):
        for name, writer in writers.items():
            tables[f"{name}_scored"] = np.packbits(np.frombuffer(writer.scored, dtype=bool))
            notes = "".join(f"{note}\n" for note in writer.notes)
            tables[f"{name}_notes"] = np.frombuffer(notes.encode(), dtype=np.uint8)
            tables[f"{name}_numbers"] = np.array(writer.numbers, dtype=np.int64)
    np.savez(folder / "documents.npz", **tables)  # type: ignore[arg-type]
    manifest = {
        "identity": identity,
        "tokenizer": tokenizer.hash,
        "domains": names,
        "dtype": dtype.name,
        "splits": splits,
        "files": {name: file_hash(folder / name) for name in FILES},
    }
    write_sealed(folder / MANIFEST, manifest)
    progress.end()


class _Writer:
    """Tokenizes documents in chunks and appends them to one split's file."""

    def __init__(self, path: Path, tokenizer: Tokenizer, dtype: np.dtype, form: Form) -> None:
        self.file, self.tokenizer, self.dtype, self.form = path.open("wb"), tokenizer, dtype, form
        self.starts, self.domains, self.numbers, self.notes = list[int](), list[int](), list[int](), list[str]()
        self.tokens, self.bytes, self.scored = 0, 0, bytearray()  # one byte per token
        self._buffer, self._size = list[Document](), 0

    def add(self, document: Document, domain: int, number: int) -> None:
        self._buffer.append(document)
        self.numbers.append(number)
        self._size += len(document.text)
        self.domains.append(domain)
        if self._size >= _CHUNK:
            self._flush()

    def _flush(self) -> None:
        encoded = self.form.encode(self.tokenizer, [document.text for document in self._buffer])
        for document in self._buffer:
            with _naming(document):
                ids, scored, note = next(encoded)
            self.starts.append(self.tokens)
            self.file.write(np.array(ids, dtype=self.dtype).data)
            self.tokens += len(ids)
            self.bytes += len(document.text.encode())
            if scored is not None:
                self.scored += bytes(scored)
                self.notes.append(note)
        self._buffer, self._size = [], 0

    def close(self) -> dict[str, int]:
        """Flush, and return the counts for the manifest."""
        self._flush()
        self.file.close()
        return {"tokens": self.tokens, "documents": len(self.starts), "bytes": self.bytes}


@contextmanager
def _naming(document: Document) -> Iterator[None]:
    """Turn the ValueError of a document that cannot be used into a ConfigError that says where it is."""
    try:
        yield
    except ValueError as error:
        raise ConfigError("data", document.place or document.domain, str(error)) from None


class _Progress:
    """Prints the progress of a preparation on stderr every 2 seconds; a short one prints nothing."""

    def __init__(self, survey: Survey) -> None:
        self.total, self.printed = survey.num_bytes, False
        self.restart()

    def restart(self) -> None:
        self.done, self.last = 0, time.monotonic()

    def step(self, what: str, document: Document) -> None:
        self.done += len(document.text)
        if time.monotonic() - self.last >= 2:
            share = min(
                self.done / max(self.total, 1), 1
            )  # characters over bytes: an underestimate for non-Latin scripts
            print(f"data: {what}, {share:.0%} of {self.total / 1e6:.1f} MB", file=sys.stderr, flush=True)
            self.last, self.printed = time.monotonic(), True

    def end(self) -> None:
        if self.printed:
            print("data: prepared; later runs reuse it", file=sys.stderr, flush=True)
