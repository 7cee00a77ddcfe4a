"""Small studies, the stores and processes that they leave, and a console whose output can be read."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from ablations.running import runner
from ablations.running.attach import Runner
from ablations.studies import StudyHandle, study
from dsv2.report.terminal import open_console
from tests.references.processes import Here

SHORT = ["model.shape.num_experts=16", "model.shape.num_devices=8", "trainer.log_every=4"]
LOSS = {"smoke": 5.0, "tiny": 4.0, "small": 3.4, "base": 3.0}  # of made-up results


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Trials train on one thread, as in a worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def pair_file() -> Path:
    """The file of a study of two arms."""
    return Path(__file__).with_name("pair.yaml")


@pytest.fixture
def pair(pair_file: Path, quick: list[str]) -> Callable[..., StudyHandle]:
    """Returns a study of two trials of 12 steps, with overrides of its own."""
    return lambda *overrides: study(str(pair_file), seeds=[0], overrides=[*quick, *overrides])


@pytest.fixture
def small(pair: Callable[..., StudyHandle]) -> StudyHandle:
    """A study of two trials of 12 steps."""
    return pair()


@pytest.fixture
def six(quick: list[str]) -> StudyHandle:
    """A study of six trials of 12 steps."""
    return study("balance_losses", seeds=[0], overrides=[*quick, *SHORT])


@pytest.fixture
def mine(pair_file: Path, quick: list[str]) -> dict[str, Any]:
    """A study of two arms as a dictionary, its trials of 12 steps."""
    node = yaml.safe_load(pair_file.read_text())
    return node | {"name": "mine", "base": [*quick, *node["base"]]}


@pytest.fixture
def console() -> Console:
    """The console of a command; `console.file.getvalue()` is what was printed."""
    console = open_console()
    console.file, console.width = io.StringIO(), 200
    return console


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner looks at its trials more often."""
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(runner, "BUSY_SECONDS", 0.2)
    monkeypatch.setattr(runner, "SPACE_SECONDS", 0.05)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Studies run in this process, without workers; the list grows by the folder of every trial that is started."""
    started, run_trial = [], runner.run_trial

    def run(values: dict[str, Any], folder: Path, since: float) -> Any:
        started.append(folder)
        return run_trial(values, folder, since)

    monkeypatch.setattr(runner, "executor", lambda *_, **__: Here())
    monkeypatch.setattr(runner, "run_trial", run)
    return started


@pytest.fixture
def ended() -> Iterator[Callable[[Runner], None]]:
    """Ends the runners that a test leaves behind."""
    left: list[Runner] = []
    yield left.append
    for process in left:
        process.stop()


@pytest.fixture
def fill() -> Callable[..., StudyHandle]:
    """Returns a study with a store of made-up results, all but the last `leave_out` of its trials finished.

    The second arm is 0.1 better at every seed and scale, give or take little.
    """

    def fill(source: Any, scale: str = "smoke", seeds: tuple[int, ...] = (0, 1, 2), leave_out: int = 0) -> StudyHandle:
        planned, rng = study(source, scale, seeds), np.random.default_rng(0)
        planned.remember()
        for trial in planned.trials[: len(planned.trials) - leave_out]:
            trial.folder.mkdir(parents=True)
            better = 0.1 * (list(planned.arms).index(trial.arm) == 1)
            value = LOSS[scale] - better + 0.02 * trial.seed + rng.normal(0, 0.002)
            metrics = dict.fromkeys(planned.file.judged, value) | {"val/loss": value, "val/accuracy": 0.9}
            result = {"status": "finished", "metrics": metrics, "tokens": 1000, "seconds": 1.0}
            (trial.folder / "result.json").write_text(json.dumps(result))
            rows = [{"step": 10, "tokens": 500, "val/accuracy": 0.2}, {"step": 20, "tokens": 1000, "val/accuracy": 0.9}]
            (trial.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return planned

    return fill
