"""Studies as processes: what is left of them when they are killed, stopped, run twice at once, or run elsewhere."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch

from ablations import study
from ablations.running import worker as trial
from ablations.running.launch import LocalPool, WorkerDied, executor
from ablations.running.worker import Outcome, run_trial
from dsv2.config import plain
from dsv2.training import machine as process
from dsv2.training.fit import fit
from dsv2.training.saved import load_model

pytestmark = pytest.mark.slow
SHORT = ["model.shape.num_experts=16", "model.shape.num_devices=8", "trainer.log_every=4"]
COUNTING = """
import os, sys
import dsv2.training.fit as fit
inner = fit._train
def counted(run, folder):  # workers import this file too
    with open(os.environ["STARTS"], "a") as file:
        file.write(f"{run.arm} {os.getpid()}\\n")
    return inner(run, folder)
fit._train = counted
if __name__ == "__main__":
    from ablations.run import main
    sys.exit(main(sys.argv[1:]))
"""


def rows(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("perf/")} for line in lines]


def assert_same_study(one: Path, other: Path) -> None:
    """Every trial finished, with the same metrics, rows, routing and weights, and no file beside them."""
    folders = sorted((one / "balance_losses" / "smoke" / "trials").iterdir())
    assert len(folders) == 6
    for folder in folders:
        twin = other / folder.relative_to(one)
        found = [json.loads((path / "result.json").read_text()) for path in (folder, twin)]
        assert [result["status"] for result in found] == ["finished"] * 2
        kept = [{k: v for k, v in result["metrics"].items() if not k.startswith("perf/")} for result in found]
        assert kept[0] == kept[1]
        assert rows(folder) == rows(twin)
        pd.testing.assert_frame_equal(*(pd.read_parquet(path / "routing.parquet") for path in (folder, twin)))
        weights = load_model(twin).state_dict()
        assert all(torch.equal(weight, weights[key]) for key, weight in load_model(folder).state_dict().items())
        names = [sorted(str(file.relative_to(path)) for file in path.rglob("*")) for path in (folder, twin)]
        assert names[0] == names[1]


@pytest.fixture
def long(quick) -> list[str]:
    """A study of six trials of 100 steps."""
    return ["sweep=balance_losses", "seeds=[0]", "workers=2", *quick, *SHORT, "trainer.tokens=12800"]


def start(arguments, root: Path, *, script: Path | None = None, log: Path | None = None) -> subprocess.Popen:
    command = [sys.executable, str(script)] if script else [sys.executable, "-m", "ablations.run"]
    environment = os.environ | {"DSV2_RUNS": str(root), "STARTS": str(root) + ".starts"}
    environment["PYTHONPATH"] = str(Path(trial.__file__).parents[1])
    with (log or Path(os.devnull)).open("a") as out:
        return subprocess.Popen([*command, *arguments], env=environment, stdout=out, stderr=out, start_new_session=True)


def session(leader: int) -> set[int]:
    """The living processes of a session."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, sid = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(sid) == leader and state != "Z":
            found.add(int(path.parent.name))
    return found


def wait_for(condition, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def saved(root: Path) -> list[Path]:
    return list(root.glob("balance_losses/smoke/trials/*/checkpoints/step-*.ckpt"))


@pytest.fixture(scope="session")
def whole_store(tmp_path_factory):
    return tmp_path_factory.mktemp("whole") / "runs"


@pytest.fixture
def whole(whole_store, long):
    """The store of the same study, never interrupted."""
    if not whole_store.exists():
        assert start(long, whole_store).wait() == 0
    return whole_store


def test_kills_lose_nothing(long, whole, tmp_path):
    """The runner alone, one worker, then the whole process group; then to the end."""
    root, log = tmp_path / "store", tmp_path / "log"
    for turn in range(3):
        running = start(long, root, log=log)
        before = len(list(root.glob("*/*/trials/*/result.json")))
        known = set(saved(root))
        wait_for(lambda known=known: set(saved(root)) - known)
        workers = {pid for pid in session(running.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()}
        assert len(workers) == 2
        if turn == 0:
            running.kill()
        elif turn == 1:
            os.kill(min(workers), signal.SIGKILL)
            wait_for(lambda: "the worker process was killed; goes on" in log.read_text())
            assert running.poll() is None
            os.killpg(running.pid, signal.SIGTERM)
        else:
            os.killpg(running.pid, signal.SIGKILL)
        wait_for(lambda running=running: running.poll() is not None and not session(running.pid), 2)
        assert len(list(root.glob("*/*/trials/*/result.json"))) - before < 6
    assert "Traceback" not in log.read_text()
    assert "leaked" not in log.read_text()
    assert start(long, root).wait() == 0
    assert_same_study(whole, root)


@pytest.mark.parametrize("after", [0.8, 3.0, None])
def test_ctrl_c_is_one_line(long, tmp_path, after):
    """While importing, while workers start, and in mid-trial; to the whole group, as a terminal sends it."""
    root, log = tmp_path / "store", tmp_path / "log"
    running = start(long, root, log=log)
    if after is None:
        wait_for(lambda: saved(root))
    else:
        time.sleep(after)
    os.killpg(running.pid, signal.SIGINT)
    wait_for(lambda: running.poll() is not None and not session(running.pid), 3)
    assert running.returncode == 130
    assert log.read_text().endswith("stopped; what was saved stays, the same command goes on from there\n")
    assert "Traceback" not in log.read_text()


def test_two_runners_share_a_store(long, whole, tmp_path):
    root, script = tmp_path / "store", tmp_path / "counting.py"
    script.write_text(COUNTING)
    running = [start(long, root, script=script, log=tmp_path / f"log{number}") for number in range(2)]
    assert [one.wait(120) for one in running] == [0, 0]
    starts = [line.split() for line in Path(f"{root}.starts").read_text().splitlines()]
    assert Counter(arm for arm, _ in starts) == dict.fromkeys(study("balance_losses").arms, 1)
    assert len({pid for _, pid in starts}) > 2  # both took part
    for number in range(2):
        assert "report.html" in (tmp_path / f"log{number}").read_text()
    assert_same_study(whole, root)


@pytest.mark.parametrize(("launcher", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_launchers_train_the_same_trial(quick, tmp_path, monkeypatch, launcher, package):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install 'dsv2[launchers]'")
    monkeypatch.setenv("DSV2_SLURM_CLUSTER", "local")
    one = study("balance_losses", seeds=[0], overrides=[*quick, *SHORT]).trials[0]
    pool = executor(launcher, workers=1, folder=tmp_path)
    try:
        assert pool.submit(run_trial, plain(one.run), one.folder, 0.0).result(120) == Outcome("finished")
    finally:
        pool.shutdown(cancel_futures=True)
    process.prepare()
    torch.set_num_threads(1)
    fit(one.run, tmp_path / "here")
    assert rows(one.folder) == rows(tmp_path / "here")


def test_the_local_pool_outlives_its_workers():
    pool = LocalPool(1)
    first = pool.submit(os.getpid).result()
    assert pool.submit(os.getpid).result() == first != os.getpid()
    assert pool.submit(torch.get_num_threads).result() == 1
    with pytest.raises(RuntimeError, match="ValueError: math domain error"):
        pool.submit(math.sqrt, -1).result()
    with pytest.raises(WorkerDied):
        pool.submit(os.abort).result()
    second = pool.submit(os.getpid).result()
    assert second != first
    pool.shutdown()
    assert not Path(f"/proc/{second}").exists()
