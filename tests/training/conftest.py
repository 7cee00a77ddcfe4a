"""Quiet training, runs that crash, and one on a corpus that may change."""

import shutil
from pathlib import Path

import pytest

import dsv2
from dsv2.training import fit, machine


@pytest.fixture(autouse=True)
def quietly() -> None:
    """Train as the commands do, so that what is said is the project's own."""
    machine.prepare()


@pytest.fixture
def texts(corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the corpus that a test may change, under the relative path `texts` of the current directory."""
    shutil.copytree(Path(corpus).parent, tmp_path / "texts")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "texts"


@pytest.fixture
def run(quick: list[str], texts: Path, runs: Path) -> Path:
    """A run on the relative path `texts/*.txt`, with questions that fit its short sequences."""
    sizes = ["benchmarks.cloze_context=8", "benchmarks.cloze_continuation=4", "benchmarks.copying_length=8"]
    config = dsv2.load([*quick, "data.path=texts/*.txt", "model.vocab_size=320", "benchmarks=text", *sizes])
    folder = runs / "train" / config.fingerprint()
    fit.fit(config, folder)
    return folder
