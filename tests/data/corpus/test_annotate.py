"""Annotations: what is said of each document, and that a preparation that was killed goes on to the same end."""

from pathlib import Path

import pytest
from pyarrow import parquet

from dsv2.data.corpus import annotate as module
from dsv2.data.corpus.annotate import Plan, annotate, complete
from tests.references.raw_texts import page


@pytest.fixture
def plan(make, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(module, "SHARD_DOCUMENTS", 40)
    return make().order().plan


def read(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in parquet.read_table(path).to_pylist()]


def test_every_document_is_annotated(plan: Plan, tmp_path: Path) -> None:
    assert annotate(plan, tmp_path / "a") == complete(tmp_path / "a") == 4
    rows = read(tmp_path / "a")
    assert [row["text"] for row in rows] == [document.text for _, document in plan.documents()]
    by_language = {name: [row for row in rows if row["language"] == name] for name in ("english", "chinese", "hu", "")}
    assert [len(chosen) for chosen in by_language.values()][2:] == [6, 12]
    assert all(row["exempt"] and not row["quality"] and row["domain"] == "code" for row in by_language[""])
    assert not any(row["quality"] for row in by_language["english"])
    assert {row["words"] > 0 for row in by_language["english"]} == {True, False}
    assert all(row["tokens"] >= row["edited_tokens"] > 0 for row in rows)
    assert 0 < sum(row["held_out"] for row in rows) < 30


def test_a_killed_preparation_goes_on_with_the_shard_that_is_missing(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotate(plan, tmp_path / "whole")
    sign, calls = module.duplicates.sign, list[int]()

    def killed(texts, shard, *others):
        calls.append(shard)
        if shard == 2 and calls.count(2) == 1:
            raise KeyboardInterrupt
        sign(texts, shard, *others)

    monkeypatch.setattr(module.duplicates, "sign", killed)
    with pytest.raises(KeyboardInterrupt):
        annotate(plan, tmp_path / "killed")
    assert complete(tmp_path / "killed") == 2
    assert annotate(plan, tmp_path / "killed") == 4
    assert calls == [0, 1, 2, 2, 3]
    assert read(tmp_path / "killed") == read(tmp_path / "whole")
    for path in (tmp_path / "whole" / module.SIGNATURES).rglob("*.sig"):
        assert path.read_bytes() == (tmp_path / "killed" / path.relative_to(tmp_path / "whole")).read_bytes()


def test_documents_are_set_aside_by_their_text_alone(plan: Plan) -> None:
    documents = [document for _, document in plan.documents()]
    sides = {document.text: plan.held_out(document) for document in documents}
    assert 0.02 < sum(sides.values()) / len(sides) < 0.25
    assert not any(plan.held_out(document) for document in plan.training())
    document = documents[0]._replace(text=page(1))
    assert plan.held_out(document._replace(held_out=True))
    assert not plan.held_out(document._replace(held_out=False))
