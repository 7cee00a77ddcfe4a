"""Building a corpus: whole or not at all, the same again, in memory that does not grow."""

import json
import tracemalloc
from pathlib import Path

import pytest
from pyarrow import parquet

from dsv2.data.corpus import annotate
from dsv2.data.corpus import build as module
from dsv2.data.corpus.build import build
from dsv2.data.corpus.stored import CARD_PAGE, DOCUMENTS
from dsv2.data.documents import text_digest
from tests.references.raw_texts import write_sources


def test_a_corpus_has_its_documents_tokenizer_and_card(make, tmp_path: Path) -> None:
    corpus = build(make().order(), tmp_path / "out", vocabularies=[260, 300])
    rows = [row for path in (tmp_path / "out" / DOCUMENTS).iterdir() for row in parquet.read_table(path).to_pylist()]
    assert [(d.text, d.domain, d.held_out) for d in corpus.documents()] == [
        (row["text"], row["domain"], row["held_out"]) for row in rows
    ]
    assert all(row["score"] is not None for row in rows)
    training = corpus.card["steps"]["training"]
    assert training[0]["in"]["total"]["documents"] > training[-1]["out"]["total"]["documents"] > 0
    assert sum(row["tokens"] for row in rows if not row["held_out"]) == training[-1]["out"]["total"]["tokens"]
    assert list(corpus.card["bytes_per_token"]) == ["260", "300"]
    assert "## What was dropped" in (tmp_path / "out" / CARD_PAGE).read_text()


def test_the_same_sources_and_settings_give_the_same_content(
    make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(make().order(), tmp_path / "first")
    monkeypatch.setenv("DSV2_RUNS", str(tmp_path / "elsewhere"))
    second = build(make().order(), tmp_path / "second")
    assert first.content == second.content
    assert first.manifest["files"] == second.manifest["files"]
    other = build(make(filters=("language",)).order(), tmp_path / "other")
    assert other.content != first.content
    assert other.manifest["key"] != first.manifest["key"]


def test_what_fails_leaves_nothing_but_the_annotations(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order, write = make().order(), module._write

    def fails(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_write", fails)
    with pytest.raises(KeyboardInterrupt):
        build(order, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert annotate.complete(order.annotations) == 1
    monkeypatch.setattr(module, "_write", write)
    monkeypatch.setattr(annotate, "identify", lambda _: pytest.fail("annotated again"))
    assert build(order, tmp_path / "out").content


def test_no_text_is_on_both_sides(make, tmp_path: Path) -> None:
    documents = list(build(make(filters=()).order(), tmp_path / "out").documents())
    sides = {side: {text_digest(d.text) for d in documents if d.held_out == side} for side in (True, False)}
    assert sides[True]
    assert not sides[True] & sides[False]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotate, "SHARD_DOCUMENTS", 30)
    monkeypatch.setattr(module, "FILE_DOCUMENTS", 30)
    build(make().order(), tmp_path / "warm")  # what is loaded once
    peaks = []
    for times in (2, 6):
        sources = write_sources(tmp_path / f"raw{times}", pages=30 * times, reviews=30 * times)
        order = make(sources=tuple(sources)).order()
        tracemalloc.start()
        build(order, tmp_path / f"out{times}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0], json.dumps(peaks)
