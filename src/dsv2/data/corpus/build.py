"""Building a corpus, and opening one.

documents/00000.parquet  text, domain, held_out, and what is known of each document
tokenizer.json           byte-level BPE, the one that tokens are counted with
card.json, card.md       what went in and out of every step
manifest.json            written last: settings, counts, SHA-256 of the contents, of itself and of the other files
"""

import hashlib
import itertools
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet

from dsv2.data.corpus.annotate import Plan, annotate
from dsv2.data.corpus.card import make_card
from dsv2.data.corpus.page import markdown
from dsv2.data.corpus.select import Kept, Selected, Tally, select
from dsv2.data.corpus.settings import Selection
from dsv2.data.corpus.stored import CARD, CARD_PAGE, DOCUMENTS, FORMAT, MANIFEST, Corpus, open_corpus
from dsv2.data.documents import entry, text_digest
from dsv2.data.tokenizer import Tokenizer
from dsv2.printing import complain
from dsv2.storage.files import new_directory, write_json, write_text
from dsv2.storage.locks import hold_when_free
from dsv2.storage.rundir import TOKENIZER
from dsv2.storage.sealed import file_hash, write_sealed

FILE_DOCUMENTS = 20_000
SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("domain", pa.string()),
        ("held_out", pa.bool_()),
        ("source", pa.string()),
        ("language", pa.string()),
        ("probability", pa.float64()),
        ("score", pa.float64()),
        ("words", pa.float64()),
        ("tokens", pa.int64()),
    ]
)


class Order(NamedTuple):
    """What is to be built."""

    plan: Plan
    selection: Selection
    annotations: Path  # where they are kept for other corpora of the same sources
    settings: dict[str, Any]  # JSON-ready, for the manifest
    key: str  # the same for the same sources and settings


def build(order: Order, out: Path, *, replace: bool = False, vocabularies: Sequence[int] = ()) -> Corpus:
    """Build a corpus as the directory `out`, whole or not at all; annotations stay for the next one.

    `vocabularies` are sizes of tokenizers that are trained on it, for the card's table of bytes per token. `replace` as
    for `new_directory`. Raises `ConfigError`, and ValueError if `out` is taken.
    """
    order.annotations.parent.mkdir(parents=True, exist_ok=True)
    lock = order.annotations.with_suffix(".lock")
    with hold_when_free(lock, "the annotations", lambda text: complain(f"corpus: {text}")):
        shards = annotate(order.plan, order.annotations)
        scratch = order.annotations / "selected"
        shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
        with new_directory(out, replace=replace) as folder:
            selected = select(order.annotations, shards, order.selection, scratch)
            _write(order, selected, folder, vocabularies)
        shutil.rmtree(scratch)
    return open_corpus(out)


def _write(order: Order, selected: Selected, folder: Path, vocabularies: Sequence[int]) -> None:
    (folder / DOCUMENTS).mkdir()
    tally, content = Tally(), hashlib.sha256()
    for number, rows in enumerate(_batches(selected.documents(tally))):
        for row in rows:
            content.update(entry(text_digest(row["text"]), row["domain"]) + bytes([row["held_out"]]))
        table = pa.Table.from_pylist(rows, SCHEMA)
        parquet.write_table(table, folder / DOCUMENTS / f"{number:05d}.parquet", compression="zstd")
    shutil.copyfile(order.annotations / TOKENIZER, folder / TOKENIZER)
    tokenizer = Tokenizer.load(folder / TOKENIZER, order.plan.vocab_size)
    card = make_card(order.plan, selected, tally, order.annotations, folder, vocabularies)
    write_json(folder / CARD, card)
    write_text(folder / CARD_PAGE, markdown(card))
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    manifest = {
        "format": FORMAT,
        "key": order.key,
        "content": content.hexdigest(),
        "settings": order.settings,
        "vocab_size": order.plan.vocab_size,
        "tokenizer": tokenizer.hash,
        "files": {name: file_hash(folder / name) for name in files},
    }
    write_sealed(folder / MANIFEST, manifest)


def _batches(documents: Iterable[Kept]) -> Iterator[list[dict[str, Any]]]:
    """Yield what is stored of the documents, FILE_DOCUMENTS at a time."""
    stream = ({"text": d.text, "domain": d.domain, "tokens": d.tokens} | _known(d.row) for d in documents)
    while batch := list(itertools.islice(stream, FILE_DOCUMENTS)):
        yield batch


def _known(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("held_out", "source", "language", "probability", "score", "words")}
