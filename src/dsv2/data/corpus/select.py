"""The cheap half of a corpus: which annotated documents are in it, and what each filter dropped."""

import heapq
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pyarrow import parquet

from dsv2.data.corpus import duplicates
from dsv2.data.corpus.annotate import SIGNATURES
from dsv2.data.corpus.mixture import BINS, Take, mix, place_of
from dsv2.data.corpus.settings import Selection
from dsv2.data.documents import text_digest

SIDES = ("training", "held_out")
OVERLAP, MIXTURE = "held-out", "mixture"
FUNNEL = ("language", "quality", "contentious", OVERLAP, "duplicates", MIXTURE)  # what can drop a document, in order
KEPT = len(FUNNEL)
CONTENTIOUS = "contentious"  # domain of such documents that were set aside
SAMPLES = 20
SHOWN = 300  # characters of a sample


class Kept(NamedTuple):
    """A document of the corpus."""

    row: dict[str, Any]  # as annotated
    text: str
    domain: str
    tokens: int


class Tally:
    """Documents and tokens in and out of every step, and samples of what each dropped."""

    def __init__(self) -> None:
        self.seen: Counter[tuple[str, int, str, str]] = Counter()  # side, step, domain, "documents" or "tokens"
        self.samples: dict[str, list[tuple[int, int, dict[str, Any]]]] = {step: [] for step in FUNNEL}
        self.reasons: Counter[str] = Counter()  # of the quality rules
        self.repeated: Counter[str] = Counter()  # domain -> tokens of copies after the first

    def add(self, kept: Kept, dropped: int) -> None:
        """Count a document that step number `dropped` drops; KEPT: none."""
        row, side = kept.row, SIDES[kept.row["held_out"]]
        for step in range(dropped + 1):
            self.seen[side, step, kept.domain, "documents"] += 1
            self.seen[side, step, kept.domain, "tokens"] += row["tokens"] if step <= 1 else kept.tokens
        if dropped < KEPT:
            self._sample(FUNNEL[dropped], kept)
            if FUNNEL[dropped] == "quality":
                self.reasons[row["quality"]] += 1

    def _sample(self, step: str, kept: Kept) -> None:
        """Keep the samples with the smallest hashes, which do not depend on the order of documents."""
        order = -int.from_bytes(text_digest(kept.row["text"])[16:24])
        shown = {name: kept.row[name] for name in ("source", "language", "probability", "quality", "score", "words")}
        item = (order, len(self.samples[step]), {"text": kept.row["text"][:SHOWN], "domain": kept.domain} | shown)
        push = heapq.heappush if len(self.samples[step]) < SAMPLES else heapq.heappushpop
        push(self.samples[step], item)

    def steps(self, side: str) -> list[dict[str, Any]]:
        """Return one entry per step: documents and tokens that enter and leave it, in all and by domain."""
        domains = sorted({domain for at, _, domain, _ in self.seen if at == side})

        def counts(step: int) -> dict[str, dict[str, int]]:
            each = {d: {what: self.seen[side, step, d, what] for what in ("documents", "tokens")} for d in domains}
            total = {what: sum(part[what] for part in each.values()) for what in ("documents", "tokens")}
            return {"total": total} | each

        return [{"step": step, "in": counts(i), "out": counts(i + 1)} for i, step in enumerate(FUNNEL)]


class Selected(NamedTuple):
    """What `select` decided, to be streamed by `documents`."""

    folder: Path  # of the annotations
    scratch: Path  # a file per shard: what drops each row
    shards: int
    selection: Selection
    takes: dict[str, Take]
    found: dict[str, duplicates.Found]  # by side

    def documents(self, tally: Tally) -> Iterator[Kept]:
        """Yield the documents of the corpus: all of them once, then what is repeated; count the first pass."""
        most = max((take.times(0) for take in self.takes.values()), default=1)
        held_out = set[bytes]()
        for copy in range(most):
            for shard in range(self.shards):
                codes = np.load(self.scratch / f"{shard:05d}.npy", allow_pickle=False)
                for kept, code in zip(_rows(self.folder, shard, self.selection), codes.tolist(), strict=True):
                    yield from self._one(kept, code, copy, tally, held_out)

    def _one(self, kept: Kept, code: int, copy: int, tally: Tally, held_out: set[bytes]) -> Iterator[Kept]:
        if code == KEPT and not kept.row["held_out"]:
            digest = text_digest(kept.text)
            if self.takes[kept.domain].times(place_of(digest)) <= copy:
                code = FUNNEL.index(MIXTURE)
        elif copy:
            return
        if copy == 0:
            tally.add(kept, code)
        if code == KEPT:
            tally.repeated[kept.domain] += kept.tokens if copy else 0
            yield kept


def select(folder: Path, shards: int, selection: Selection, scratch: Path) -> Selected:
    """Decide what is in a corpus of the annotations in `folder`; `scratch` must be free and is needed afterwards."""
    scratch.mkdir(parents=True)
    for shard in range(shards):
        codes = np.array([_dropped(kept.row, selection) for kept in _rows(folder, shard, selection)], dtype=np.uint8)
        np.save(scratch / f"{shard:05d}.npy", codes)
    found = _search(folder, shards, selection, scratch)
    available: dict[str, np.ndarray] = {}
    for shard in range(shards):
        codes = np.load(scratch / f"{shard:05d}.npy", allow_pickle=False)
        for kept, code in zip(_rows(folder, shard, selection), codes.tolist(), strict=True):
            if code == KEPT and not kept.row["held_out"]:
                tokens = available.setdefault(kept.domain, np.zeros(BINS, dtype=np.int64))
                tokens[place_of(text_digest(kept.text))] += kept.tokens
    return Selected(folder, scratch, shards, selection, mix(available, selection.shares), found)


def contested(row: dict[str, Any], selection: Selection) -> bool:
    """Whether the score of a document, or its words of the list, are beyond what is allowed."""
    return row["score"] >= selection.contentious.threshold or row["words"] > selection.contentious.most_words


def _dropped(row: dict[str, Any], selection: Selection) -> int:
    """Return the first step that drops a document by what it says itself."""
    filters = selection.held_out_filters if row["held_out"] else selection.filters
    if row["exempt"]:
        return KEPT
    unknown = row["language"] not in selection.languages or row["probability"] < selection.least_probability
    drops = {"language": unknown, "quality": bool(row["quality"]), "contentious": contested(row, selection)}
    return next((i for i, step in enumerate(FUNNEL) if step in filters and drops.get(step)), KEPT)


def _rows(folder: Path, shard: int, selection: Selection) -> Iterator[Kept]:
    """Yield the rows of a shard, each with the text, domain and tokens that it would have in the corpus."""
    for row in parquet.read_table(folder / f"{shard:05d}.parquet").to_pylist():
        filters = selection.held_out_filters if row["held_out"] else selection.filters
        edits = "quality" in filters and row["edited"] is not None and not row["quality"]
        domain = row["domain"] if row["exempt"] else row["language"]
        if row["held_out"] and not row["exempt"] and contested(row, selection):
            domain = CONTENTIOUS
        text, tokens = (row["edited"], row["edited_tokens"]) if edits else (row["text"], row["tokens"])
        yield Kept(row, text, domain, tokens)


def _search(folder: Path, shards: int, selection: Selection, scratch: Path) -> dict[str, duplicates.Found]:
    """Mark near-duplicates: among the held-out documents, of these in training, and among the training documents.

    No training document stays whose cluster has a held-out one, whatever the filters.
    """
    config, found = selection.duplicates, dict[str, duplicates.Found]()
    for side in reversed(SIDES):
        signatures, held_out = scratch / side, side == "held_out"
        for shard in range(shards):
            codes = np.load(scratch / f"{shard:05d}.npy", allow_pickle=False)
            sides = np.array(parquet.read_table(folder / f"{shard:05d}.parquet", columns=["held_out"])["held_out"])
            rows = np.flatnonzero((codes == KEPT) & (sides == held_out))
            duplicates.pick(folder / SIGNATURES, signatures, shard, rows, config)
        index = None if held_out else scratch / "index"
        found[side] = duplicates.find(signatures, scratch / "search", config, index)
        if held_out:
            duplicates.build_index(signatures, scratch / "index", config)
        marks = {OVERLAP: found[side].indexed}
        if "duplicates" in (selection.held_out_filters if held_out else selection.filters):
            marks["duplicates"] = found[side].removed
        for step, rows_of in marks.items():
            for shard, rows in rows_of.items():
                codes = np.load(scratch / f"{shard:05d}.npy", allow_pickle=False)
                codes[rows] = FUNNEL.index(step)
                np.save(scratch / f"{shard:05d}.npy", codes)
    for name in (*SIDES, "index"):
        shutil.rmtree(scratch / name, ignore_errors=True)
    return found
