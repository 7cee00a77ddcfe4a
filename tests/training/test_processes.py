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
import torch.distributed as dist

import dsv2
from dsv2.config import ConfigError
from dsv2.storage.rundir import ROUTING, SNAPSHOTS
from dsv2.training import fit
from dsv2.training.processes import Group, is_loss_of_peer, joined, mean, require_devices, total
from dsv2.training.saved import open_run
from tests.references import ranks
from tests.references.processes import started
from tests.references.runs import rows


def torchrun(*overrides: str) -> subprocess.Popen[str]:
    """`python -m dsv2.train` in two processes, on a port of its own, one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "dsv2.train"]
    return started([*command, "mesh.dp=2", *overrides])


@pytest.mark.slow
def test_two_processes_train_what_one_does(quick: list[str], tmp_path: Path) -> None:
    process = torchrun(*quick)
    alone = tmp_path / "alone"
    fit.fit(dsv2.load(quick), alone)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    (folder,) = map(Path, out.split())  # said once, by the first process
    pd.testing.assert_frame_equal(pd.DataFrame(rows(folder)), pd.DataFrame(rows(alone)), rtol=1e-4)
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
    whole, stopped = (pd.DataFrame(rows(folder)) for folder in folders.values())
    pd.testing.assert_frame_equal(stopped, whole, check_exact=True)


def test_one_process_is_a_group_of_one(quick: list[str]) -> None:
    with joined(dsv2.load(quick)) as group:
        assert group == Group(rank=0, size=1)
        assert group.first
        assert group.agree("what it says itself") == "what it says itself"
        share = torch.tensor([3.0, 4.0])
        assert total(share) is mean(share) is share


@pytest.mark.parametrize(
    ("launched", "words", "message"),
    [
        (None, "mesh.dp=2", "mesh.dp=2 is not valid: 1 in Python and notebooks; python -m dsv2.train starts more"),
        (None, "mesh.ep=2", "mesh.ep=2 is not valid: 1 in Python"),
        (2, "mesh.dp=1", "mesh.dp=1 is not valid: such that dp x ep x pp is 2, the processes that torchrun"),
        (2, "mesh.ep=4", "mesh.ep=4 is not valid: such that dp x ep x pp is 2, the processes that torchrun"),
    ],
)
def test_the_mesh_is_of_the_processes_that_are_there(
    quick: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    launched: int | None,
    words: str,
    message: str,
) -> None:
    if launched is not None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
        monkeypatch.setenv("WORLD_SIZE", str(launched))
    with pytest.raises(ConfigError, match=message):
        fit.fit(dsv2.load([*quick, words]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_more_processes_than_gpus_are_refused(quick: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks on no GPU, or on one that another has: there are as many GPUs as processes, or an error."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    words = [*quick, "trainer.accelerator=auto", "mesh.ep=2"]
    for gpus, local, fits in ((1, None, False), (2, None, True), (1, "1", True), (0, None, False)):
        monkeypatch.setattr("torch.cuda.device_count", lambda gpus=gpus: gpus)
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        if local is not None:  # of several machines, one process each
            monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
        if fits:
            require_devices(dsv2.load(words))
            continue
        message = f"mesh.ep=2 is not valid: such that dp x ep x pp is at most {gpus}, the GPUs of this machine"
        with pytest.raises(ConfigError, match=message):
            require_devices(dsv2.load(words))
    require_devices(dsv2.load([*words, "trainer.accelerator=cpu"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("mesh.dp=0", "mesh.dp=0 is not valid: 1 to"),
        ("mesh.dp=3", "mesh.dp=3 is not valid: such that mesh.dp x mesh.ep divides every batch size; one step has 4"),
        ("mesh.dp=2 trainer.batch.start=2 trainer.batch.ramp_tokens=512", "every batch size; one step has 3 sequences"),
        ("mesh.ep=3 trainer.batch.size=3", "mesh.ep=3 is not valid: a divisor of the number of routed experts, 8"),
        ("mesh.ep=2 model/ffn=dense", "mesh.ep=2 is not valid: 1 for a dense model"),
        ("mesh.ep=2 deployment=kv", "mesh.ep=2 is not valid: 1 with a deployment"),
        ("mesh.dp=2 model/ffn=switch", "mesh.dp=2 is not valid: 1, since this FFN drops tokens over the capacity"),
        ("mesh.ep=2 model/ffn=gshard", "mesh.ep=2 is not valid: 1, since this FFN drops tokens over the capacity"),
        ("mesh.pp=3 mesh.microbatches=4", "mesh.pp=3 is not valid: at most 2: 1f1b has 1 stages per process"),
        ("mesh.pp=2 mesh.schedule=zbv", "mesh.pp=2 is not valid: at most 1: zbv has 2 stages per process"),
        ("mesh.pp=2 mesh.microbatches=3", "mesh.microbatches=3 is not valid: a divisor of each share of a step"),
        ("mesh.pp=2 mesh.ep=2", "mesh.microbatches=4 is not valid: a divisor of each share of a step; one has 2"),
        ("mesh.pp=2 model.tie_embeddings=true", "mesh.pp=2 is not valid: 1 with tied embeddings"),
        ("mesh.pp=2 model/ffn/dropping=device", "mesh.pp=2 is not valid: 1 with token dropping"),
        ("mesh.pp=2 deployment=kv", "mesh.pp=2 is not valid: 1 with a deployment"),
        ("mesh.pp=0", "mesh.pp=0 is not valid: 1 to"),
        ("mesh.schedule=gpipe", "mesh.schedule='gpipe' is not valid"),
        ("mesh.dispatch=twice", "mesh.dispatch='twice' is not valid"),
    ],
)
def test_a_mesh_that_does_not_fit_the_run_is_refused(quick: list[str], words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dsv2.load([*quick, *words.split()])


def test_what_a_mesh_can_share(quick: list[str]) -> None:
    for words in (
        "mesh.dp=2 model/ffn=hash",
        "mesh.ep=4 model/ffn/dropping=device",
        "mesh.dp=2 model/ffn=dense",
        "mesh.pp=2",
    ):
        dsv2.load([*quick, *words.split()])


def test_only_errors_between_processes_are_losses_of_one() -> None:
    closed = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234")
    assert not is_loss_of_peer(closed)  # there is one process
    with ranks.group_of_one():
        assert is_loss_of_peer(closed)
        assert is_loss_of_peer(dist.DistBackendError("NCCL error"))
        assert not is_loss_of_peer(RuntimeError("shape mismatch"))
        assert not is_loss_of_peer(OSError("gloo is full"))
