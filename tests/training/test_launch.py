"""`python -m dsv2.train mesh.ep=2` starts its processes, and what they train is what one process does."""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch

import dsv2
from dsv2.storage import checkpoints
from dsv2.storage.rundir import CHECKPOINTS, RESULT, ROUTING, SNAPSHOTS
from dsv2.training import fit
from dsv2.training.launch import launch
from tests.references.processes import started, wait_for
from tests.references.runs import rows

DROPPING = ["model/ffn/dropping=device", "model.shape.max_devices=2"]
LONGER = "trainer.tokens=25600"  # 200 steps


def train(*overrides: str) -> Path:
    """Train in processes that the command starts by itself; return the run directory that it names."""
    process = started([sys.executable, "-m", "dsv2.train", *overrides])
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    (folder,) = map(Path, out.split())  # said once, by the first process
    return folder


def newest(folder: Path) -> dict[str, Any]:
    path = checkpoints.latest(folder / CHECKPOINTS)
    assert path is not None
    return checkpoints.load(path)


def test_experts_on_two_processes_train_as_on_one(quick: list[str], tmp_path: Path) -> None:
    """Losses, norms, routing, drops, weights and the optimiser's state, whose form is that of one process."""
    words = [*quick, *DROPPING, "trainer.kernels=torch"]
    folder, alone = train(*words, "mesh.ep=2"), tmp_path / "alone"
    torch.set_num_threads(1)
    fit.fit(dsv2.load(words), alone)
    pd.testing.assert_frame_equal(pd.DataFrame(rows(folder)), pd.DataFrame(rows(alone)), rtol=1e-4)
    assert max(row["routing/drop_rate"] for row in rows(folder)) > 0
    assert pd.read_parquet(folder / ROUTING).equals(pd.read_parquet(alone / ROUTING))
    assert pd.read_parquet(folder / SNAPSHOTS).equals(pd.read_parquet(alone / SNAPSHOTS))
    assert {path.name for path in folder.iterdir()} == {path.name for path in alone.iterdir()}
    saved, expected = newest(folder), newest(alone)
    assert saved.keys() == expected.keys()
    assert saved["state_dict"].keys() == expected["state_dict"].keys()
    for name, weight in expected["state_dict"].items():
        torch.testing.assert_close(saved["state_dict"][name], weight, rtol=1e-3, atol=1e-5)
    ((state, groups), (expected_state, expected_groups)) = (
        (one["optimizer_states"][0]["state"], one["optimizer_states"][0]["param_groups"]) for one in (saved, expected)
    )
    assert groups == expected_groups
    assert state.keys() == expected_state.keys()
    for number, moments in expected_state.items():
        assert state[number].keys() == moments.keys()
        for name, moment in moments.items():
            torch.testing.assert_close(state[number][name], moment, rtol=1e-2, atol=1e-6)
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(row["perf/sent_bytes_per_token"] > 0 for row in logged)


@pytest.mark.slow
def test_a_run_goes_on_with_another_mesh(quick: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two processes, one, and two again, stopped in between, end where one process does."""
    words = [*quick, "trainer.tokens=12800", "trainer.kernels=torch"]
    fit.fit(dsv2.load(words), tmp_path / "alone")
    for mesh in ("mesh.ep=2", "mesh.ep=1"):
        before = {path.name for path in tmp_path.glob("runs/train/*/checkpoints/*.ckpt")}
        process = started([sys.executable, "-m", "dsv2.train", *words, mesh])
        wait_for(lambda known=before: {p.name for p in tmp_path.glob("runs/train/*/checkpoints/*.ckpt")} - known, 300)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=300)
        assert process.returncode == 143
    folder = train(*words, "mesh.dp=2")
    ended, expected = (pd.DataFrame(rows(place)) for place in (folder, tmp_path / "alone"))
    names = [name for name in expected if "routing/" not in name]  # after 100 steps, rounding has moved a token or two
    pd.testing.assert_frame_equal(ended[names], expected[names], rtol=1e-3)


@pytest.mark.slow
def test_a_process_that_is_killed_stops_the_others(quick: list[str], tmp_path: Path) -> None:
    """One error, in one line, within seconds; the trial is recorded, and the same command resumes it."""
    words = [*quick, LONGER, "mesh.ep=2"]
    process = started([sys.executable, "-m", "dsv2.train", *words])
    wait_for(lambda: list(tmp_path.glob("runs/train/*/checkpoints/*.ckpt")), 300)
    children = {int(child.environ()["RANK"]): child for child in psutil.Process(process.pid).children(recursive=True)}
    children[1].send_signal(signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert out == ""
    (said,) = [line for line in err.splitlines() if line.startswith("error")]
    assert "resume" in said
    assert "Traceback" not in err
    (result,) = tmp_path.glob(f"runs/train/*/{RESULT}")
    recorded = json.loads(result.read_text())
    assert recorded["status"] == "failed"
    assert "process 1 of 2 was killed by SIGKILL" in recorded["error"]
    assert train(*words) == result.parent
    assert json.loads(result.read_text())["status"] == "finished"


@pytest.mark.slow
def test_a_process_that_hangs_is_given_up(quick: list[str], tmp_path: Path) -> None:
    process = started([sys.executable, "-m", "dsv2.train", *quick, LONGER, "mesh.ep=2", "mesh.timeout=5"])
    wait_for(lambda: list(tmp_path.glob("runs/train/*/checkpoints/*.ckpt")), 300)
    children = {int(child.environ()["RANK"]): child for child in psutil.Process(process.pid).children(recursive=True)}
    children[1].send_signal(signal.SIGSTOP)
    try:
        _, err = process.communicate(timeout=90)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):  # the launcher has ended it
            children[1].send_signal(signal.SIGCONT)
    assert process.returncode == 1
    assert err.count("error: process 0 of 2 lost contact with the others; run the same command again to resume") == 1


def test_the_status_is_that_of_the_process_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is refused by the processes themselves: here by the kernels that they ask for."""
    monkeypatch.setenv("DSV2_RUNS", os.devnull + "/nowhere")
    assert launch(["trainer.kernels=nothing"], 2) == 2


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["mesh.pp=2 mesh.schedule=zbv", "mesh.pp=2 mesh.ep=2 mesh.microbatches=2"])
def test_layers_on_several_processes_train_as_on_one(quick: list[str], tmp_path: Path, mesh: str) -> None:
    words = [*quick, "model.num_layers=4", "loss.z=0.001", "trainer.kernels=torch"]
    folder, alone = train(*words, *mesh.split()), tmp_path / "alone"
    fit.fit(dsv2.load(words), alone)
    pd.testing.assert_frame_equal(pd.DataFrame(rows(folder)), pd.DataFrame(rows(alone)), rtol=1e-4)
    assert pd.read_parquet(folder / ROUTING).equals(pd.read_parquet(alone / ROUTING))
    assert pd.read_parquet(folder / SNAPSHOTS).equals(pd.read_parquet(alone / SNAPSHOTS))
    saved, expected = newest(folder), newest(alone)
    assert list(saved["state_dict"]) == list(expected["state_dict"])
    moments, wanted = (one["optimizer_states"][0]["state"] for one in (saved, expected))
    assert list(moments) == list(wanted)
    for number, state in wanted.items():
        torch.testing.assert_close(moments[number]["exp_avg"], state["exp_avg"], rtol=1e-2, atol=1e-6)
