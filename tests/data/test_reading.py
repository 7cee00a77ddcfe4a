"""The user's files: what is read out of them, in which order, and what is wrong with those that cannot be."""

import os
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from dsv2.config import ConfigError
from dsv2.data.documents import Document
from dsv2.data.reading import find, read, stamp, valid_text


def documents(pattern: Path | str) -> list[Document]:
    return list(read("data.path", str(pattern)))


def test_all_formats_in_the_order_of_their_paths(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "d.txt").write_text("four")
    (tmp_path / "a.txt").write_text("eins\nzwei")
    (tmp_path / "b.jsonl").write_text('{"text": "two", "domain": "web"}\n\n{"text": "  "}\n{"text": "\\ud800"}\n')
    parquet.write_table(pa.table({"text": ["three", None], "domain": ["book", "book"]}), tmp_path / "c.parquet")
    assert documents(tmp_path / "**" / "*.*") == [
        Document("eins\nzwei", "text"),
        Document("two", "web"),
        Document("?", "text"),  # half a surrogate pair
        Document("three", "book"),
        Document("four", "text"),
    ]


def test_a_glob_that_matches_nothing_or_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"data.path='.*nothing.txt' is not valid: a glob that matches files; nothing"
    ):
        documents(tmp_path / "nothing.txt")
    with pytest.raises(ConfigError, match=r"this is a directory: use .*/\*\.txt"):
        documents(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.md", b"text", r"only \.txt, \.jsonl, \.parquet files; it also matches .*a\.md"),
        ("a.txt", b" \n", r"files with text; .*a\.txt has none"),
        ("a.txt", b"caf\xe9", r"text in UTF-8; .*a\.txt is not, from byte 3 on"),
        ("a.jsonl", b"", r"files with text; .*a\.jsonl has none"),
        ("a.jsonl", b'{"text": "a"}\n{"text"\n', r"one JSON object per line; .*a\.jsonl, line 2: Expecting"),
        ("a.jsonl", b'{"body": "a", "id": 1}\n', r"objects with a string `text`; .*line 1: it has body, id"),
        ("a.jsonl", b"[1]\n", r"objects with a string `text`; .*line 1: it is list"),
        ("a.parquet", b"no parquet", r"Parquet files; .*a\.parquet is not"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"data\.path=.* is not valid: " + message):
        documents(tmp_path / "a.*")


def test_parquet_needs_a_column_of_text(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"a column `text`; .*a\.parquet has body"):
        documents(tmp_path / "*.parquet")
    parquet.write_table(pa.table({"text": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"a column `text` of strings; that of .* is int64"):
        documents(tmp_path / "*.parquet")


def test_files_are_found_in_the_order_of_their_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories that a glob matches as well are passed over, and ~ is the home directory."""
    for name in ("b.txt", "a.txt", "c.jsonl"):
        (tmp_path / name).write_text("text")
    (tmp_path / "d.txt").mkdir()
    expected = [tmp_path / name for name in ("a.txt", "b.txt", "c.jsonl")]
    assert find("data.path", f"{tmp_path}/*") == expected
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find("data.path", "~/*.txt") == expected[:2]
    with pytest.raises(ConfigError, match="it matches only directories"):
        find("data.path", f"{tmp_path}/d*")


def test_a_stamp_changes_with_a_files_size_time_or_name(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")
    stamps = [stamp("data.path", f"{tmp_path}/*.txt")]
    assert stamp("data.path", f"{tmp_path}/*.txt") == stamps[0]
    path.write_text("texts")
    stamps.append(stamp("data.path", f"{tmp_path}/*.txt"))
    os.utime(path, ns=(0, 5))
    stamps.append(stamp("data.path", f"{tmp_path}/*.txt"))
    path.rename(tmp_path / "b.txt")
    stamps.append(stamp("data.path", f"{tmp_path}/*.txt"))
    assert len(set(stamps)) == 4


def test_text_that_no_encoding_can_store_gets_question_marks() -> None:
    assert valid_text("naïve 学习 \U0001f600") == "naïve 学习 \U0001f600"
    assert valid_text("a\ud800b\udc00") == "a?b?"
