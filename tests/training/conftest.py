"""Quiet training, runs that crash, and one on a corpus that may change."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest

import dsv2
from dsv2.training import fit, machine
from dsv2.training.callbacks.recorder import Recorder


@pytest.fixture(autouse=True)
def quietly() -> None:
    """Train as the commands do, so that what is said is the project's own."""
    machine.prepare()


@pytest.fixture
def crashing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """`with crashing(step)`: a run within raises OSError once that step is logged, before it is saved."""
    inner = Recorder.on_train_batch_end

    @contextmanager
    def crashing(step: int) -> Iterator[None]:
        def crash(self: Recorder, trainer: L.Trainer, *arguments: Any) -> None:
            inner(self, trainer, *arguments)
            if trainer.global_step == step:
                raise OSError("the machine went away")

        with monkeypatch.context() as broken:
            broken.setattr(Recorder, "on_train_batch_end", crash)
            with pytest.raises(OSError, match="the machine went away"):
                yield

    return crashing


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
