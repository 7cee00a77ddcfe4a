"""W&B: an offline run holds what the contract says, and waits for nobody."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import dsv2
from dsv2.training import fit
from dsv2.training.sinks import WandbSink, flatten

KILLED = """
import os, signal, sys, time
from pathlib import Path
import dsv2
from dsv2.training import fit
from dsv2.training.module import Module

inner = Module.training_step
def step(self, batch, index):
    if self.global_step == int(sys.argv[2]):
        time.sleep(float(sys.argv[3]))  # W&B's own process writes every 15 seconds
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(self, batch, index)
Module.training_step = step
fit.fit(dsv2.load(sys.argv[4:]), Path(sys.argv[1]))
"""


def inspect(path, *options):
    """What W&B's own reader says of an offline run."""
    wandb = Path(sys.executable).with_name("wandb")
    done = subprocess.run(
        [wandb, "leet", "inspect", "--json", *options, path], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_an_offline_run_is_named_grouped_and_complete(quick, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    quick = [*quick, "logger.wandb.mode=offline", "study=balance", "arm=paper", "seed=3"]
    run = replace(dsv2.load(quick), scale="smoke")
    result = fit.fit(run, tmp_path / "run")
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert file.name == f"run-{run.fingerprint()}.wandb"
    records = [json.loads(line) for line in inspect(file).splitlines()]
    (made,) = [record["run"] for record in records if record["type"] == "run"]
    assert (made["project"], made["run_group"], made["job_type"]) == ("dsv2", "balance", "paper")
    assert (made["display_name"], made["run_id"]) == ("paper-s3", run.fingerprint())
    assert made["config"]["update"]["model.ffn.top_k"] == 2
    assert made["config"]["update"]["loss.device"] == 0.05
    logged = [record["history"]["item"] for record in records if record["type"] == "history"]
    history = [row for row in logged if "train/loss" in row]
    assert [row["trainer/global_step"] for row in history] == [2, 4, 6, 8, 10, 12]
    assert [row["train/loss"] for row in history] == [row["train/loss"] for row in rows(tmp_path / "run")]
    summary = json.loads(inspect(file, "--summary"))["summary"]
    assert made["tags"] == ["smoke"]
    (shown,) = [row for row in logged if any(name.startswith("routing/load") for name in row)]
    assert len({name.partition(".")[0] for row in logged for name in row}) < 60  # no key a layer or expert
    assert "routing/load_histogram._type" in shown or "routing/load_histogram" in shown
    (table,) = (file.parent / "files" / "media" / "table" / "routing").glob("load_*.table.json")
    written = json.loads(table.read_text())
    assert written["columns"] == ["layer", "expert", "device", "load", "dropped"]
    assert len(written["data"]) == 8 * len(run.model.moe_layers)
    assert {name: summary[name] for name in result["metrics"]} == pytest.approx(result["metrics"])


def kill_at(step, folder, overrides, wait):
    """Train in a process that is killed after `step` steps and `wait` seconds."""
    command = [sys.executable, "-c", KILLED, str(folder), str(step), str(wait), *overrides]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr[-2000:]


def sent(folder):
    """The rows of a run in all of its offline folders, in the order of their start, and the last folder's file."""
    files = sorted(folder.glob("wandb/**/*.wandb"))
    records = [json.loads(line) for file in files for line in inspect(file).splitlines()]
    logged = [record["history"]["item"] for record in records if record["type"] == "history"]
    return [row for row in logged if "train/loss" in row], files[-1]


def require_one_curve(run, folder, result):
    """All offline folders of a finished run together hold every row of `metrics.jsonl` once, in ascending steps."""
    resumed, file = sent(folder)
    steps = [2, 4, 6, 8, 10, 12]
    assert [row["_step"] for row in resumed] == [row["trainer/global_step"] for row in resumed] == steps
    for row, stored in zip(resumed, rows(folder), strict=True):
        assert {name: row[name] for name in stored if name != "step"} == {
            name: value for name, value in stored.items() if name != "step"
        }
    summary = json.loads(inspect(file, "--summary"))["summary"]
    assert {name: summary[name] for name in result["metrics"]} == pytest.approx(result["metrics"])
    (made,) = [record["run"] for record in map(json.loads, inspect(file).splitlines()) if record["type"] == "run"]
    assert made["run_id"] == run.fingerprint()
    assert made["config"]["update"]["seed"] == 3
    assert not any(name.startswith("step") for name in summary)


@pytest.mark.parametrize("moments", [[7], [8, 11]], ids=str)
def test_a_resumed_run_has_every_row_once(quick, tmp_path, crashing, moments):
    """What a stopped attempt sent after its checkpoint is not kept beside what the next one sends for these steps."""
    run, folder = dsv2.load([*quick, "logger.wandb.mode=offline", "seed=3"]), tmp_path / "run"
    for moment in moments:
        with crashing(moment):
            fit.fit(run, folder)
        assert [row["trainer/global_step"] for row in sent(folder)[0]] == list(range(2, moment + 1, 2))
    require_one_curve(run, folder, fit.fit(run, folder))


@pytest.mark.slow
@pytest.mark.parametrize(("moments", "wait"), [([3], 0), ([7], 17), ([8], 0), ([3, 7], 0), ([7, 7], 0)], ids=str)
def test_a_killed_run_has_every_row_once(quick, tmp_path, moments, wait):
    """Before the first checkpoint, between two, just after one, twice; by then W&B has written all rows, or none."""
    words, folder = [*quick, "logger.wandb.mode=offline", "seed=3"], tmp_path / "run"
    for moment in moments:
        kill_at(moment, folder, words, wait)
    run = dsv2.load(words)
    require_one_curve(run, folder, fit.fit(run, folder))


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_nested_config_becomes_dotted_keys():
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": [1]}) == {"a.b": 1, "a.c.d": None, "e": [1]}


def test_what_wandb_refuses_is_said_and_the_rest_sent(capsys):
    """The run directory has all of it, so that the run goes on."""

    class Full:
        def __init__(self):
            self.summary = {}

        def log(self, *_):
            raise OSError(28, "No space left on device")

    sink = object.__new__(WandbSink)
    sink._experiment = Full()
    routing = pd.DataFrame({"step": [1], "layer": [0], "expert": [0], "device": [0], "load": [1], "dropped": [0]})
    sink.summarise({"val/loss": 1.0}, routing)
    assert sink.experiment.summary == {"val/loss": 1.0}
    assert capsys.readouterr().err.startswith("warning: W&B lacks a part of this run; OSError: [Errno 28]")
