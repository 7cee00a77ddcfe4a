"""Studies as processes: what is left of them when they are killed, stopped, or run twice at once."""

import json
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

import ablations
from ablations import study
from dsv2.storage import checkpoints
from tests.references.processes import wait_for
from tests.references.runs import rows, timeless

pytestmark = pytest.mark.slow
SHORT = ["model.shape.num_experts=16", "model.shape.num_devices=8", "trainer.log_every=4"]
COUNTING = """
import os, sys
import dsv2.training.fit as fit
inner = fit._train
def counted(run, folder, *rest):  # workers import this file too
    with open(os.environ["STARTS"], "a") as file:
        file.write(f"{run.arm} {os.getpid()}\\n")
    return inner(run, folder, *rest)
fit._train = counted
if __name__ == "__main__":
    from ablations.run import main
    sys.exit(main(sys.argv[1:]))
"""


def assert_same_study(root: Path, other: Path) -> None:
    """Every trial finished, with the same metrics, rows, routing and weights, and no file beside them."""
    folders = sorted((root / "balance_losses" / "smoke" / "trials").iterdir())
    assert len(folders) == 6
    for folder in folders:
        twin = other / folder.relative_to(root)
        results = [json.loads((path / "result.json").read_text()) for path in (folder, twin)]
        assert [result["status"] for result in results] == ["finished"] * 2
        assert timeless(results[0]["metrics"]) == timeless(results[1]["metrics"])
        assert rows(folder) == rows(twin)
        pd.testing.assert_frame_equal(*(pd.read_parquet(path / "routing.parquet") for path in (folder, twin)))
        weights, others = saved_weights(folder), saved_weights(twin)
        assert weights.keys() == others.keys()
        assert all(torch.equal(weight, others[key]) for key, weight in weights.items())
        names = [sorted(str(file.relative_to(path)) for file in path.rglob("*")) for path in (folder, twin)]
        assert names[0] == names[1]


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = checkpoints.latest(folder / "checkpoints")
    assert newest is not None
    return checkpoints.load(newest)["state_dict"]


@pytest.fixture
def long(quick) -> list[str]:
    """A study of six trials of 100 steps."""
    return ["sweep=balance_losses", "seeds=[0]", "workers=2", *quick, *SHORT, "trainer.tokens=12800"]


def start(arguments, root: Path, *, script: Path | None = None, log: Path | None = None) -> subprocess.Popen:
    command = [sys.executable, str(script)] if script else [sys.executable, "-m", "ablations.run"]
    environment = os.environ | {"DSV2_RUNS": str(root), "STARTS": str(root) + ".starts"}
    path = [str(Path(ablations.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    with (log or Path(os.devnull)).open("a") as out:
        return subprocess.Popen([*command, *arguments], env=environment, stdout=out, stderr=out, start_new_session=True)


def session(leader: int) -> set[int]:
    """The living processes of a session."""
    living = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, sid = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(sid) == leader and state != "Z":
            living.add(int(path.parent.name))
    return living


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
            wait_for(lambda: "the worker process was killed; resuming" in log.read_text())
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
    assert log.read_text().endswith("stopped; progress is saved, run the same command again to resume\n")
    assert "Traceback" not in log.read_text()


def test_two_runners_share_a_store(long, whole, tmp_path):
    root, script = tmp_path / "store", tmp_path / "counting.py"
    script.write_text(COUNTING)
    running = [start(long, root, script=script, log=tmp_path / f"log{number}") for number in range(2)]
    assert [process.wait(120) for process in running] == [0, 0]
    starts = [line.split() for line in Path(f"{root}.starts").read_text().splitlines()]
    assert Counter(arm for arm, _ in starts) == dict.fromkeys(study("balance_losses").arms, 1)
    assert len({pid for _, pid in starts}) > 2  # both took part
    for number in range(2):
        assert "report.html" in (tmp_path / f"log{number}").read_text()
    assert_same_study(whole, root)
