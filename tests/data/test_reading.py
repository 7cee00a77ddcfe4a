from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from dsv2.config import ConfigError
from dsv2.data.documents import Document
from dsv2.data.reading import read


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


def test_nothing_matches(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"data.path='.*nothing.txt' is not valid: a glob that matches files; nothing"
    ):
        documents(tmp_path / "nothing.txt")
    with pytest.raises(ConfigError, match=r"this is a directory: write .*/\*\.txt"):
        documents(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.md", b"text", r"only \.txt, \.jsonl, \.parquet files; it also matches .*a\.md"),
        ("a.txt", b" \n", r"files with text; .*a\.txt has none"),
        ("a.txt", b"caf\xe9", r"text in UTF-8; .*a\.txt is not, from byte 3 on"),
        ("a.jsonl", b"", r"files with text; .*a\.jsonl has none"),
        ("a.jsonl", b'{"text": "a"}\n{"text"\n', r"one JSON object a line; .*a\.jsonl, line 2: Expecting"),
        ("a.jsonl", b'{"body": "a", "id": 1}\n', r"objects with a string `text`; .*line 1: it has body, id"),
        ("a.jsonl", b"[1]\n", r"objects with a string `text`; .*line 1: it is list"),
        ("a.parquet", b"no parquet", r"Parquet files; .*a\.parquet is not"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"data\.path=.* is not valid: " + message):
        documents(tmp_path / "a.*")


def test_parquet_without_text(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"a column `text`; .*a\.parquet has body"):
        documents(tmp_path / "*.parquet")
    parquet.write_table(pa.table({"text": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=r"a column `text` of strings; that of .* is int64"):
        documents(tmp_path / "*.parquet")
