"""The costly half of a corpus: every document of every source, with what each filter says of it.

    tokenizer.json    byte-level BPE, trained on the beginning of each source
    classifier.npz    of contentious content
    00000.parquet     SHARD_DOCUMENTS documents, in the order of the sources
    signatures/       of near-duplicates, per shard
    00000.json        written last: the shard is complete

Nothing here depends on which filters are applied, so that corpora with other filters, thresholds and shares reuse it. A
preparation that was killed goes on with the first shard that is missing.
"""

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet
from tqdm.auto import tqdm

from dsv2.data.corpora import MB
from dsv2.data.corpus import duplicates
from dsv2.data.corpus.contentious import Classifier, WordList, density
from dsv2.data.corpus.language import identify
from dsv2.data.corpus.quality import Judge
from dsv2.data.corpus.settings import Duplicates, Quality
from dsv2.data.corpus.sources import Size, read_source
from dsv2.data.documents import Document, fraction, text_digest
from dsv2.data.tokenizer import Tokenizer
from dsv2.storage.files import replacing, write_json
from dsv2.storage.rundir import TOKENIZER

SHARD_DOCUMENTS = 5_000
LEARNED_MB = 50.0  # of each source, for the tokenizer and the classifier
CLASSIFIER, SIGNATURES = "classifier.npz", "signatures"
SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("edited", pa.string()),  # without the lines that C4's rules remove; null: the same
        ("source", pa.string()),
        ("domain", pa.string()),  # the document's own; of prose the language counts instead
        ("held_out", pa.bool_()),
        ("exempt", pa.bool_()),  # no prose: its text is not judged
        ("language", pa.string()),
        ("probability", pa.float64()),  # of the language
        ("quality", pa.string()),  # the rule that drops it; "": none
        ("score", pa.float64()),  # contentious, from 0 to 1
        ("words", pa.float64()),  # contentious, per 1,000
        ("tokens", pa.int64()),
        ("edited_tokens", pa.int64()),
    ]
)


class Plan(NamedTuple):
    """What annotations depend on."""

    sources: dict[str, Size]
    most_mb: float | None
    exempt: tuple[str, ...]
    val_ratio: float
    vocab_size: int
    quality: Quality.Config
    words: WordList
    duplicates: Duplicates.Config

    def documents(self, most_mb: float | None = None) -> Iterator[tuple[str, Document]]:
        """Yield each document with its source, of each source `most_mb` megabytes at most."""
        limits = [limit for limit in (self.most_mb, most_mb) if limit is not None]
        for source in self.sources:
            for document in read_source(source, min(limits, default=None)):
                yield source, document

    def held_out(self, document: Document) -> bool:
        """Whether a document is set aside: by its text alone, unless it names its side."""
        if document.held_out is not None:
            return document.held_out
        return fraction(text_digest(document.text)) < self.val_ratio

    def training(self) -> Iterator[Document]:
        """Yield what tokenizer and classifier learn from."""
        return (document for _, document in self.documents(LEARNED_MB) if not self.held_out(document))


def annotate(plan: Plan, folder: Path) -> int:
    """Write what is missing of the annotations to `folder`; return the number of shards."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, classifier = _tokenizer(plan, folder), _classifier(plan, folder)
    shards, judge = complete(folder), Judge(plan.quality)
    stream = itertools.islice(plan.documents(), shards * SHARD_DOCUMENTS, None)
    total = sum(size.documents for size in plan.sources.values())
    with _bar("annotating", total, shards * SHARD_DOCUMENTS) as bar:
        while batch := list(itertools.islice(stream, SHARD_DOCUMENTS)):
            rows = _rows(batch, plan, tokenizer, judge, classifier, bar)
            with replacing(folder / f"{shards:05d}.parquet") as scratch:
                parquet.write_table(pa.Table.from_pylist(rows, SCHEMA), scratch, compression="zstd")
            duplicates.sign((row["text"] for row in rows), shards, folder / SIGNATURES, plan.duplicates)
            write_json(folder / f"{shards:05d}.json", {"documents": len(rows)})
            shards += 1
    return shards


def complete(folder: Path) -> int:
    """Return how many shards are complete, from the first on."""
    return next(number for number in itertools.count() if not (folder / f"{number:05d}.json").is_file())


def _rows(
    batch: Sequence[tuple[str, Document]],
    plan: Plan,
    tokenizer: Tokenizer,
    judge: Judge,
    classifier: Classifier,
    bar: tqdm,
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for source, document in batch:
        exempt, text = document.domain in plan.exempt, document.text
        language = ("", 1.0) if exempt else identify(text)
        reason, edited = ("", text) if exempt else judge.judge(text, language[0])
        rows.append(
            {
                "text": text,
                "edited": None if edited == text else edited,
                "source": source,
                "domain": document.domain,
                "held_out": plan.held_out(document),
                "exempt": exempt,
                "language": language[0],
                "probability": language[1],
                "quality": reason,
                "score": 0.0,
                "words": 0.0 if exempt else density(text, language[0], plan.words),
            }
        )
        bar.update()
    for name in sorted({row["language"] for row in rows}):
        chosen = [row for row in rows if row["language"] == name]
        for row, score in zip(chosen, classifier.scores([row["text"] for row in chosen], name), strict=True):
            row["score"] = score
    for column, counted in (("text", "tokens"), ("edited", "edited_tokens")):
        texts = [row["text"] if row[column] is None else row[column] for row in rows]
        for row, ids in zip(rows, tokenizer.encode_batch(texts), strict=True):
            row[counted] = len(ids) + 1  # <|endoftext|>
    return rows


def _tokenizer(plan: Plan, folder: Path) -> Tokenizer:
    path = folder / TOKENIZER
    if not path.is_file():
        texts = (document.text for document in _counted("training the tokenizer", plan.training()))
        trained = Tokenizer.train(texts, plan.vocab_size)
        with replacing(path) as scratch:
            trained.save(scratch)
    return Tokenizer.load(path, plan.vocab_size)


def _classifier(plan: Plan, folder: Path) -> Classifier:
    path = folder / CLASSIFIER
    if not path.is_file():
        documents = _counted("training the classifier", plan.training())
        prose = ((d.text, identify(d.text).name) for d in documents if d.domain not in plan.exempt)
        trained = Classifier().train(prose, plan.words)
        with replacing(path) as scratch:
            trained.save(scratch)
    return Classifier.load(path)


def _counted(what: str, documents: Iterable[Document]) -> Iterator[Document]:
    with _bar(what, None, 0) as bar:
        for document in documents:
            yield document
            bar.update(len(document.text) / MB)


def _bar(what: str, total: int | None, initial: int) -> tqdm:
    """Open a bar with rate and, where the total is known, time left; in a file it prints nothing."""
    unit = " documents" if total else " M characters"
    return tqdm(total=total, initial=initial, desc=what, unit=unit, disable=None, file=sys.stderr, leave=False)
