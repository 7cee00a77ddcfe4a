"""Removing runs: what names one, and that no half of one is left."""

import shutil
from pathlib import Path

import pytest

from dsv2.storage.files import write_json
from dsv2.storage.locks import Busy
from dsv2.storage.removal import named_by, remove, runs_at, size
from dsv2.storage.runs import list_runs


@pytest.fixture
def folder(runs: Path) -> Path:
    """The run directory of the trial `mine/tiny/mla/0`."""
    made = runs / "mine" / "tiny" / "trials" / "aaaa000000000000"
    made.mkdir(parents=True)
    (made / "config.yaml").write_text("seed: 0\n")
    write_json(runs / "mine" / "tiny" / "study.json", {"trials": [["mla", 0, None, made.name]]})
    return made


@pytest.mark.parametrize(
    ("report", "row", "named"),
    [
        ("report", "mla,0", True),
        ("reports/0123456789abcdef", "mla,0", True),
        ("report", "mla,1", False),
        ("report", "mha,0", False),
    ],
)
def test_a_report_names_the_trials_of_its_table(folder: Path, report: str, row: str, named: bool) -> None:
    place = folder.parents[1] / report
    place.mkdir(parents=True)
    (place / "trials.csv").write_text(f"arm,seed,status\n{row},finished\n")
    (run,) = list_runs()
    assert named_by(run, [run]) == ([f"the report in {place}"] if named else [])


def test_a_run_that_started_from_its_weights_names_it(folder: Path, runs: Path) -> None:
    other = runs / "train" / "bbbb000000000000"
    shutil.copytree(folder, other)
    write_json(other / "origin.json", {"fingerprint": folder.name})
    run, started = list_runs()
    assert named_by(run, [started]) == ["bbbb000000000000, which started from its weights"]
    assert named_by(started, [run]) == []
    (other / "origin.json").write_text("{")
    assert named_by(run, [started]) == []


def test_a_run_is_removed_whole(folder: Path) -> None:
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step.ckpt").write_bytes(b"x" * 1000)
    assert size(folder) >= 1000
    remove(list_runs()[0])
    assert list(folder.parent.iterdir()) == []
    assert (folder.parents[1] / "study.json").is_file()


def test_an_interrupted_removal_leaves_no_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", stop)
    with pytest.raises(KeyboardInterrupt):
        remove(list_runs()[0])
    assert list_runs() == []
    assert not folder.exists()


def test_a_run_that_another_process_trains_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = list_runs()[0]

    def busy(*_: object) -> None:
        raise Busy("run", "held")  # type: ignore[arg-type]

    monkeypatch.setattr("dsv2.storage.removal.hold", busy)
    with pytest.raises(Busy):
        remove(run)
    assert (folder / "config.yaml").is_file()


def test_only_runs_of_the_store_are_removed(folder: Path, runs: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "cccc000000000000"
    shutil.copytree(folder, elsewhere)
    (runs / "link").symlink_to(folder)
    for path in (elsewhere, runs, folder.parent, runs / "link", folder / ".."):
        with pytest.raises(ValueError, match="only runs of the store are removed"):
            runs_at([path])
    assert [run.name for run in runs_at([folder, folder])] == ["mine/tiny/mla/0"]
