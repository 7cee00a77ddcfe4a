"""A disk that fills up anywhere in a run costs nothing but time."""

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import dsv2
from dsv2.storage import checkpoints, files
from dsv2.storage.rundir import finished
from dsv2.storage.space import DiskFull
from dsv2.training import fit, machine
from dsv2.training.run import Run
from tests.references.faults import small_disk
from tests.references.processes import wait_for
from tests.references.runs import rows

ROOT = Path(__file__).parents[2]
PAIR = ROOT / "tests" / "ablations" / "pair.yaml"


@pytest.fixture(autouse=True)
def quietly() -> None:
    machine.prepare()


@pytest.fixture(scope="module")
def run(quick: list[str]) -> Run.Config:
    return dsv2.load(quick)


@pytest.fixture
def whole(run: Run.Config, tmp_path: Path) -> list[dict[str, Any]]:
    """The rows of the run when nothing happens; its data are prepared."""
    fit.fit(run, tmp_path / "whole")
    return rows(tmp_path / "whole")


def require_nothing_half_written(folder: Path) -> None:
    """Every file is one that was complete at some time, and no other is left."""
    for path in folder.rglob("*"):
        assert not path.name.startswith("."), path
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".parquet":
            pd.read_parquet(path)
    if (folder / "metrics.jsonl").is_file():
        text = (folder / "metrics.jsonl").read_text()
        assert not text or text.endswith("\n")
        assert all(isinstance(json.loads(line), dict) for line in text.splitlines())
    for path in (folder / "checkpoints").glob("*.ckpt"):
        checkpoints.load(path)
    assert not (folder / "result.json").is_file() or finished(folder) is not None


# ---- each write in turn ----------------------------------------------------------------------------------------------


class Disk:
    """Counts what is written for good, and takes no more from the `full`th time on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.full, self.number = 0, None, errno.ENOSPC
        monkeypatch.setattr(files, "sync", self.counted(files.sync))
        monkeypatch.setattr(Path, "mkdir", self.counted(Path.mkdir))
        monkeypatch.setattr("dsv2.training.callbacks.recorder.sync", self.counted(files.sync))
        monkeypatch.setattr("dsv2.training.sinks.append", self.counted(files.append))

    def counted(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.full is not None and self.count >= self.full:
                raise OSError(self.number, os.strerror(self.number))
            return inner(*arguments, **options)

        return call


def fill_at(disk: Disk, at: int, run: Run.Config, folder: Path, whole: list[dict[str, Any]]) -> None:
    disk.count, disk.full = 0, at
    with pytest.raises(DiskFull, match=str(folder)) as full:
        fit.fit(run, folder)
    assert full.value.errno == disk.number
    require_nothing_half_written(folder)
    disk.full = None
    assert fit.fit(run, folder)["status"] == "finished"
    assert rows(folder) == whole


def test_a_disk_that_fills_up_at_some_write_costs_nothing(
    run: Run.Config, whole: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    fit.fit(run, tmp_path / "counted")
    assert disk.count > 50
    for at, number in ((1, errno.ENOSPC), (disk.count // 2, errno.EDQUOT), (disk.count - 2, errno.ENOSPC)):
        disk.number = number
        fill_at(disk, at, run, tmp_path / f"full-{at}", whole)


@pytest.mark.slow
def test_a_disk_that_fills_up_at_any_write_costs_nothing(
    run: Run.Config, whole: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    fit.fit(run, tmp_path / "counted")
    for at in range(1, disk.count + 1):
        fill_at(disk, at, run, tmp_path / f"full-{at}", whole)


# ---- a real disk -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kilobytes", [16, *(pytest.param(size, marks=pytest.mark.slow) for size in (40, 64, 100, 150, 200, 250, 300, 400))]
)
def test_a_run_on_a_disk_that_is_too_small_goes_on_when_it_has_grown(
    run: Run.Config, whole: list[dict[str, Any]], tmp_path: Path, kilobytes: int
) -> None:
    with small_disk(tmp_path / "disk", kilobytes << 10) as disk:
        with pytest.raises(DiskFull, match=rf"{disk}/run.*: no space left on the disk \([0-9.]+ (bytes|kB) free\)"):
            fit.fit(run, disk / "run")
        require_nothing_half_written(disk / "run")
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert fit.fit(run, disk / "run")["status"] == "finished"
        assert rows(disk / "run") == whole


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [24, 300])
def test_a_study_waits_for_space_and_goes_on_by_itself(quick: list[str], tmp_path: Path, kilobytes: int) -> None:
    """Its own record or its data, then a checkpoint, and what does not fit after that."""
    with small_disk(tmp_path / "disk", kilobytes << 10) as disk:
        command = [sys.executable, "-m", "ablations.run", f"sweep={PAIR}", "seeds=[0]", "workers=1", *quick]
        environment = os.environ | {"DSV2_RUNS": str(disk / "runs")}
        environment["PYTHONPATH"] = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
        log, seen = tmp_path / "log", 0
        with log.open("w") as out:
            process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)

        def waits() -> int:
            return log.read_text().count("waiting for space\n")

        try:
            for grown in (1700, 64000):
                wait_for(lambda seen=seen: waits() > seen or process.poll() is not None)
                assert grown == 64000 or waits() > 0
                seen = waits()
                subprocess.run(["mount", "-o", f"remount,size={grown}k", disk], check=True)
            assert process.wait(300) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()
        assert (disk / "runs" / "pair" / "smoke" / "report" / "report.html").is_file()
        assert len(re.findall(r"^  \S+ finished ", log.read_text(), re.MULTILINE)) == 2
