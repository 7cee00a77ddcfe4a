"""Trials that start from another trial of their study: their order, and what becomes of them when it fails."""

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from ablations.running import runner
from ablations.running.runner import _run_all, run_trials
from ablations.running.worker import Outcome
from ablations.studies import StudyHandle, study
from ablations.trials.trials import stored
from dsv2.config import ConfigError
from dsv2.storage import locks
from dsv2.storage.locks import Meeting
from dsv2.storage.rundir import finished, read_result
from dsv2.storage.weights import hash_of, read_weights
from dsv2.train import expanded
from dsv2.training.fit import fit
from dsv2.training.run import load
from dsv2.training.saved import open_run
from tests.references.runs import rows

LONGER = ["trainer.sequence_length=64", "model/rope=yarn"]


@pytest.fixture
def chain(mine: dict[str, Any]) -> StudyHandle:
    """A study in which an arm goes on from another, and a third only measures that."""
    mine["arms"] = {
        "measured": {"about": "no more", "init_from": "longer", "overrides": ["trainer.tokens=0"]},
        "longer": {"about": "goes on", "init_from": "none", "overrides": LONGER},
        **mine["arms"],
    }
    mine |= {"equal": ["total_params"], "differs": ["tokens", "flops_per_token"]}
    return study(mine, seeds=[0, 1])


@pytest.fixture
def run_with(console: Console, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs the runner's loop over `fake(folder)` in place of training; returns what it printed."""

    def run_with(fake: Callable[[Path], Outcome], todo: list[Any], workers: int = 4) -> str:
        monkeypatch.setattr(runner, "run_trial", lambda values, folder, since: fake(folder))
        with ThreadPoolExecutor(workers) as pool:
            _run_all(todo, pool, console, 0.0, lambda: False)
        return console.file.getvalue()

    return run_with


def run(planned: StudyHandle, console: Console) -> bool:
    return run_trials(planned, workers=1, launcher="local", console=console)


def by_name(planned: StudyHandle) -> dict[str, Any]:
    return {trial.name: trial for trial in planned.trials}


def test_a_trial_waits_for_its_origin_and_for_nothing_else(chain, run_with, impatient):
    ended, lock = [], threading.Lock()
    names = {trial.folder.resolve(): trial.name for trial in chain.trials}
    barrier = threading.Barrier(4, timeout=10)  # all that have no origin run at once

    def fake(folder: Path) -> Outcome:
        if "none" in names[folder] or "expert" in names[folder]:
            barrier.wait()
        with lock:
            ended.append(names[folder])
        return Outcome("finished")

    run_with(fake, chain.trials)
    assert sorted(ended) == sorted(names.values())
    for seed in (0, 1):
        assert [name for name in ended if name.endswith(f"s{seed}") and "expert" not in name] == [
            f"none-s{seed}",
            f"longer-s{seed}",
            f"measured-s{seed}",
        ]


def test_trials_of_a_failed_origin_fail_with_one_line(chain, run_with, impatient):
    bad = by_name(chain)["none-s0"].folder.resolve()
    said = run_with(
        lambda f: Outcome("failed", "ValueError: no luck") if f == bad else Outcome("finished"), chain.trials
    )
    lines = [line.strip() for line in said.splitlines() if "s0" in line]
    assert "longer-s0 failed: it starts from none-s0, which has failed" in lines
    assert "measured-s0 failed: it starts from longer-s0, which has failed" in lines
    assert said.count("which has failed") == 2
    result = read_result(by_name(chain)["longer-s0"].folder)
    assert (result["status"], result["error"]) == (
        "failed",
        "OriginFailed: it starts from none-s0, which has failed",
    )
    assert said.count(" finished ") == 5


def test_nothing_waits_for_an_origin_that_a_stopped_process_holds(chain, run_with, impatient, monkeypatch):
    stopped = Meeting("process 1 is stopped", "continue it", idle=True)
    held = {by_name(chain)[f"none-s{seed}"].folder / "lock" for seed in (0, 1)}
    monkeypatch.setattr(locks, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(runner, "is_held", lambda lock: lock in held)
    monkeypatch.setattr(runner, "meet", lambda lock, what: stopped)
    said = run_with(lambda folder: Outcome("finished"), chain.trials)
    assert f"none-s0: not run: {stopped}" in said
    assert "longer-s0: not run: it starts from none-s0, which was not run" in said
    assert "measured-s1: not run: it starts from longer-s1, which was not run" in said
    assert said.count(" finished ") == 2


def test_a_study_of_a_chain(chain, here, console, impatient):
    assert run(chain, console)
    trials = by_name(chain)
    for seed in (0, 1):
        first, longer, measured = (trials[f"{arm}-s{seed}"].folder for arm in ("none", "longer", "measured"))
        origin = finished(longer)["provenance"]["origin"]
        weights = hash_of(read_weights(first).tensors)
        assert origin == {"run": str(first), "fingerprint": first.name, "step": 12, "weights": weights}
        assert finished(measured)["metrics"]["val/loss"] == finished(longer)["metrics"]["val/loss"]
        assert finished(measured)["fingerprint"] == measured.name == trials[f"measured-s{seed}"].run.fingerprint()
    assert run(chain, console)  # nothing is left
    assert len(here) == 8
    again = stored("mine")
    assert {trial.name: trial.folder for trial in again.trials} == {n: t.folder for n, t in trials.items()}


def test_an_origin_trained_earlier_is_not_trained_again_even_if_its_store_moved(
    chain, here, console, impatient, runs, monkeypatch
):
    only = by_name(chain)["none-s0"]
    here.clear()
    assert _fit(only)
    moved = runs.rename(runs.with_name("moved"))
    monkeypatch.setenv("DSV2_RUNS", str(moved))
    planned = study(chain.node | {"name": "mine"}, seeds=[0])
    assert run(planned, console)
    assert len(here) == 3
    folder = by_name(planned)["longer-s0"].folder
    assert folder.is_relative_to(moved)
    shutil.rmtree(by_name(planned)["none-s0"].folder / "checkpoints")  # to save space: results do not need it
    assert run(planned, console)
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "checkpoints")
    assert not run(planned, console)
    assert "steps that have one: none; to train it again, delete" in read_result(folder)["error"]


def _fit(trial: Any) -> bool:
    return fit(trial.run, trial.folder)["status"] == "finished"


def test_a_killed_trial_of_a_chain_resumes_without_reading_its_origin(chain, here, console, impatient):
    assert run(chain, console)
    longer = by_name(chain)["longer-s0"]
    whole, weights = rows(longer.folder), hash_of(open_run(longer.folder).model.state_dict())
    (longer.folder / "result.json").unlink()
    last = max(open_run(longer.folder).steps)
    (longer.folder / "checkpoints" / f"step-{last:09d}.ckpt").unlink()
    shutil.rmtree(by_name(chain)["none-s0"].folder / "checkpoints")
    assert run(chain, console)
    assert rows(longer.folder) == whole
    assert hash_of(open_run(longer.folder).model.state_dict()) == weights


def test_a_single_trial_trained_by_hand_is_the_studys(chain, here, console, impatient, pair_file, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(chain.node))
    words = [f"study={path}", "scale=smoke", "arm=longer", "seed=1"]
    with pytest.raises(ConfigError, match=r"arm='longer' is not valid: one whose origin has finished; run python -m"):
        expanded(words)
    trials = by_name(chain)
    assert _fit(trials["none-s1"])
    assert load(expanded(words)).fingerprint() == trials["longer-s1"].run.fingerprint()
