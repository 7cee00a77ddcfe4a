"""`corpus build` and `corpus show`, as commands."""

from pathlib import Path

import pytest

from dsv2.__main__ import main
from tests.references.commands import refusal
from tests.references.raw_texts import write_sources

pytest.importorskip("datatrove")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    sources = ",".join(f"'{source}'" for source in write_sources(tmp_path / "raw"))
    return [f"data.sources=[{sources}]", "data.vocab_size=300", "data.shares=null"]


def test_a_corpus_is_built_shown_and_trained_on(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert main(["corpus", "build", str(out), *words, "--vocabularies", "260,300"]) == 0
    built = capsys.readouterr().out
    assert f"data=corpus data.path={out}" in built
    assert "bytes per token, 300 tokens: chinese " in built
    assert main(["corpus", "show", str(out)]) == 0
    assert capsys.readouterr().out == built


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["OUT", "data.colour=red"], "data.colour='red' is not valid: unknown key"),
        (["OUT", "model=tiny"], "overrides='model=tiny' is not valid: settings of data=filtered"),
        (["OUT", "data.sources=['nothing/*.txt']"], "a glob that matches files"),
        (["OUT", "data.sources=['code:nothing_here']"], "needs the package 'nothing_here'"),
        (["OUT", "--vocabularies", "200000"], "--vocabularies=200000 is not valid: sizes from 257 to 102400"),
        (["FULL"], "already exists and is not an empty directory"),
    ],
)
def test_what_cannot_be_built_is_one_error(arguments: list[str], message: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "FULL").mkdir()
    (tmp_path / "FULL" / "x").touch()
    first = str(tmp_path / arguments[0])
    assert message in refusal(capsys, "corpus", "build", first, *arguments[1:])
    assert not (tmp_path / "OUT").exists()


def test_what_is_no_corpus_is_not_shown(tmp_path: Path, capsys) -> None:
    assert "not a corpus, it has no manifest.json" in refusal(capsys, "corpus", "show", tmp_path)
