"""A run shared by processes is the run of one process: the same routing, losses as close as sums in another order."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

import dsv2
from dsv2.config import ConfigError
from dsv2.storage.rundir import METRICS, ROUTING, SNAPSHOTS
from dsv2.training import fit
from dsv2.training.processes import Group, joined, mean, total
from dsv2.training.saved import open_run

WORDS = ("--nproc-per-node=2", "-m", "dsv2.train", "trainer.devices=2")


def torchrun(*overrides: str) -> subprocess.Popen[str]:
    """`python -m dsv2.train` in two processes, on a port of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *WORDS, *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows(folder: Path) -> pd.DataFrame:
    """What a run logged, without its speed."""
    logged = pd.DataFrame([json.loads(line) for line in (folder / METRICS).read_text().splitlines()])
    return logged[[name for name in logged if not name.startswith("perf/")]]


def test_two_processes_train_what_one_does(quick: list[str], tmp_path: Path) -> None:
    process = torchrun(*quick)
    alone = tmp_path / "alone"
    fit.fit(dsv2.load(quick), alone)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    (folder,) = map(Path, out.split())  # said once, by the first process
    pd.testing.assert_frame_equal(rows(folder), rows(alone), rtol=1e-4)
    assert pd.read_parquet(folder / ROUTING).equals(pd.read_parquet(alone / ROUTING))
    assert pd.read_parquet(folder / SNAPSHOTS).equals(pd.read_parquet(alone / SNAPSHOTS))
    assert {path.name for path in folder.iterdir()} == {path.name for path in alone.iterdir()}
    assert json.loads((folder / "result.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_the_bias_of_experts_follows_the_load_of_all_processes(quick: list[str], tmp_path: Path) -> None:
    words = [*quick, "model/ffn=loss_free", "trainer.tokens=512"]  # 4 steps: the same routing, and so the same bias
    process = torchrun(*words)
    fit.fit(dsv2.load(words), tmp_path / "alone")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    (folder,) = map(Path, out.split())
    together, alone = (open_run(one).model.layers[1].ffn.bias for one in (folder, tmp_path / "alone"))
    assert torch.equal(together, alone)
    assert together.any()


@pytest.mark.slow
def test_a_run_that_was_stopped_resumes_exactly(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = [*quick, "trainer.tokens=25600"]  # 200 steps
    folders = {}
    for name in ("whole", "stopped"):
        monkeypatch.setenv("DSV2_RUNS", str(tmp_path / name))
        process = torchrun(*longer)
        if name == "stopped":
            while not list((tmp_path / name).glob("train/*/checkpoints/*.ckpt")):
                assert process.poll() is None, process.communicate()
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=120)
            assert not list((tmp_path / name).glob("train/*/result.json")), "it ended before it was stopped"
            process = torchrun(*longer)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        folders[name] = Path(out.split()[-1])
    whole, stopped = map(rows, folders.values())
    pd.testing.assert_frame_equal(stopped, whole, check_exact=True)


def test_one_process_is_a_group_of_one(quick: list[str]) -> None:
    with joined(dsv2.load(quick).trainer) as group:
        assert group == Group(rank=0, size=1)
        assert group.first
        assert group.agree("what it says itself") == "what it says itself"
        share = torch.tensor([3.0, 4.0])
        assert total(share) is mean(share) is share


@pytest.mark.parametrize(
    ("started", "devices", "message"),
    [
        (None, 2, "trainer.devices=2 is not valid: 1 in one process; torchrun --nproc-per-node=2 -m dsv2.train"),
        (2, 1, "trainer.devices=1 is not valid: 2, the number of processes that torchrun started"),
        (2, 4, "trainer.devices=4 is not valid: 2, the number of processes that torchrun started"),
    ],
)
def test_devices_are_the_processes_that_are_there(
    quick: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    started: int | None,
    devices: int,
    message: str,
) -> None:
    if started is not None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
        monkeypatch.setenv("WORLD_SIZE", str(started))
    with pytest.raises(ConfigError, match=message):
        fit.fit(dsv2.load([*quick, f"trainer.devices={devices}"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.devices=0", "trainer.devices=0 is not valid: positive"),
        (
            "trainer.devices=3",
            "trainer.devices=3 is not valid: a divisor of every batch size; one step has 4 sequences",
        ),
        ("trainer.batch={start: 2, ramp_tokens: 512}", "a divisor of every batch size; one step has 3 sequences"),
        ("trainer.strategy=fsdp", "trainer.strategy='fsdp' is not valid"),
        ("model/ffn/dropping=device", "this FFN drops tokens over the capacity of a whole batch"),
        ("model/ffn=switch", "this FFN drops tokens over the capacity of a whole batch"),
        ("model/ffn=gshard", "this FFN drops tokens over the capacity of a whole batch"),
    ],
)
def test_what_processes_cannot_share_is_refused(quick: list[str], override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dsv2.load([*quick, "trainer.devices=2", override])
    dsv2.load([*quick, "trainer.devices=2", "model/ffn=hash"])
