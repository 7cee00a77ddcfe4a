"""Opening a corpus: every byte is checked, and what is wrong is named."""

from pathlib import Path

import pytest

from dsv2.data.corpus.build import build
from dsv2.data.corpus.stored import MANIFEST, Corpus, open_corpus
from dsv2.storage.sealed import read_sealed, write_sealed


@pytest.fixture
def corpus(make, tmp_path: Path) -> Corpus:
    return build(make().order(), tmp_path / "out")


def test_an_intact_one_opens(corpus: Corpus) -> None:
    assert open_corpus(corpus.folder).content == corpus.content
    assert {document.held_out for document in corpus.documents()} == {True, False}


@pytest.mark.parametrize("name", ["documents/00000.parquet", "tokenizer.json", "card.json", "card.md"])
def test_a_flipped_byte_and_a_missing_file_are_named(corpus: Corpus, name: str) -> None:
    path, manifest = corpus.folder / name, corpus.folder / MANIFEST
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    write_sealed(manifest, read_sealed(manifest))  # a new time, so that it is read again
    with pytest.raises(ValueError, match=rf"{name}: damaged or missing; build the corpus again"):
        open_corpus(corpus.folder)
    path.unlink()
    with pytest.raises(ValueError, match=rf"{name}: damaged or missing"):
        open_corpus(corpus.folder)


def test_other_damage_is_named(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing: not a corpus, it has no manifest\.json"):
        open_corpus(tmp_path / "nothing")
    manifest, values = corpus.folder / MANIFEST, read_sealed(corpus.folder / MANIFEST)
    (corpus.folder / "documents" / "00009.parquet").write_bytes(b"")
    write_sealed(manifest, values)
    with pytest.raises(ValueError, match=r"00009\.parquet: not in manifest\.json"):
        open_corpus(corpus.folder)
    write_sealed(manifest, values | {"format": 0})
    with pytest.raises(ValueError, match="a corpus in format 0, not 1; build it again"):
        open_corpus(corpus.folder)
    write_sealed(manifest, {"format": 1})
    with pytest.raises(ValueError, match=r"manifest\.json: damaged, or not of a corpus"):
        open_corpus(corpus.folder)
