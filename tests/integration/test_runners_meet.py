"""Real runners of one study at the same time: they share its trials, and survive what befalls one another."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ablations.studies import StudyHandle, study
from dsv2.storage.locks import is_stopped
from dsv2.storage.rundir import finished
from tests.references.processes import wait_for
from tests.references.runs import rows

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from dsv2.storage import locks
locks.PATIENCE_SECONDS = 2.0
from ablations.run import main
sys.exit(main(sys.argv[1:]))
"""


class Running:
    """A runner and what it prints."""

    def __init__(self, planned: StudyHandle, log: Path) -> None:
        self.log = log
        environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
        command = [sys.executable, "-c", PROGRAM, *planned.arguments, "workers=1"]
        with log.open("w") as out:
            self.process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)

    def workers(self) -> list[int]:
        """The PIDs of its workers."""
        children = psutil.Process(self.process.pid).children()
        return [child.pid for child in children if "spawn_main" in " ".join(child.cmdline())]

    def wait_until(self, words: str) -> None:
        wait_for(lambda: words in self.log.read_text() or self.process.poll() is not None, 300)
        assert words in self.log.read_text()


@pytest.fixture
def planned(quick: list[str]) -> StudyHandle:
    """Four trials of 400 steps."""
    return study(
        str(ROOT / "tests" / "ablations" / "pair.yaml"), seeds=[0, 1], overrides=[*quick, "trainer.tokens=51200"]
    )


@pytest.fixture
def start(planned: StudyHandle, tmp_path: Path) -> Iterator[Callable[[], Running]]:
    """Starts runners of the study; they are killed in the end."""
    started: list[Running] = []

    def start() -> Running:
        started.append(Running(planned, tmp_path / f"log-{len(started)}"))
        return started[-1]

    yield start
    for runner in started:
        if runner.process.poll() is None:
            os.killpg(runner.process.pid, signal.SIGKILL)
        runner.process.wait()


def begun(planned: StudyHandle) -> list[Path]:
    return [trial.folder for trial in planned.trials if list(trial.folder.glob("checkpoints/*.ckpt"))]


@pytest.mark.slow
def test_two_runners_share_the_trials_though_a_worker_is_stopped(
    planned: StudyHandle, start: Callable[[], Running], tmp_path: Path
) -> None:
    first = start()
    wait_for(lambda: begun(planned), 300)
    second = start()
    second.wait_until("left for later")
    os.kill(first.workers()[0], signal.SIGTERM)
    first.wait_until("SIGTERM; resuming from its checkpoint")
    assert [runner.process.wait(600) for runner in (first, second)] == [0, 0]
    for trial in planned.trials:
        assert finished(trial.folder) is not None
        assert [row["step"] for row in rows(trial.folder)] == list(range(2, 401, 2))
    for runner in (first, second):
        said = runner.log.read_text()
        assert "Traceback" not in said
        assert "failed" not in said
        assert said.count("report.html") == 1


@pytest.mark.slow
def test_a_stopped_runner_does_not_block_another(planned: StudyHandle, start: Callable[[], Running]) -> None:
    first = start()
    wait_for(lambda: begun(planned), 300)
    (held,) = begun(planned)
    os.killpg(first.process.pid, signal.SIGSTOP)
    pid = json.loads((held / "lock.json").read_text())["pid"]
    wait_for(lambda: is_stopped(pid))
    second = start()
    assert second.process.wait(600) == 1
    others = [trial.folder for trial in planned.trials if trial.folder != held]
    assert all(finished(folder) is not None for folder in others)
    assert finished(held) is None
    said = second.log.read_text()
    words = (
        rf"not run: process {pid} of runner {first.process.pid} \(.*\) has held this trial since .* but is stopped; "
    )
    assert len(re.findall(words, said)) == 1
    assert f"continue it with `kill -CONT {first.process.pid} {pid}`" in said
    os.killpg(first.process.pid, signal.SIGCONT)
    assert first.process.wait(600) == 0
    assert finished(held) is not None


@pytest.mark.slow
def test_a_killed_runner_leaves_its_trial_to_the_other(planned: StudyHandle, start: Callable[[], Running]) -> None:
    first = start()
    wait_for(lambda: begun(planned), 300)
    second = start()
    second.wait_until("left for later")
    os.killpg(first.process.pid, signal.SIGKILL)
    assert second.process.wait(600) == 0
    assert all(finished(trial.folder) is not None for trial in planned.trials)
    assert not [*planned.folder.glob("trials/*/lock.json")]
