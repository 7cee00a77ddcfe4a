"""Stores of studies from strangers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ablations.report import main as report
from ablations.run import main as run
from ablations.studies import study
from ablations.trials.results import results
from dsv2.train import main as train
from tests.references.traps import PAIR, Trap, bomb, raw, unsealed


def stored(trap: Trap) -> Path:
    """The folder of a study of two trials that was started."""
    planned = study(str(trap.file(PAIR, "good.yaml")), seeds=[0])
    planned.remember()
    for trial in planned.trials:
        trial.folder.mkdir(parents=True)
    unsealed(planned.folder / "study.json")
    return planned.folder.resolve()


def record(**changes: Any) -> Callable[[Trap, Path], None]:
    def change(trap: Trap, folder: Path) -> None:
        path = folder / "study.json"
        path.write_text(trap.text(json.dumps(json.loads(path.read_text()) | changes)))

    return change


def definition(**changes: Any) -> Callable[[Trap, Path], None]:
    def change(trap: Trap, folder: Path) -> None:
        path = folder / "study.yaml"
        path.write_text(trap.text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes)))

    return change


def link(name: str, target: str = "OUTSIDE") -> Callable[[Trap, Path], None]:
    """Put a symbolic link in the store; TRIAL stands for the folder of the trial of `expert`."""

    def change(trap: Trap, folder: Path) -> None:
        trials = {arm: name for arm, _, _, name in json.loads((folder / "study.json").read_text())["trials"]}
        path = folder / name.replace("TRIAL", f"trials/{trials['expert']}")
        if path.is_dir():
            path.rename(trap.here / "moved")
        path.unlink(missing_ok=True)
        path.symlink_to(trap.text(target))

    return change


STORES: dict[str, Callable[[Trap, Path], None]] = {
    "overrides of Hydra": record(overrides=["+hydra.callbacks.x._target_=hostile_payload.run"]),
    "overrides that read the environment": record(overrides=["logger.wandb.project=${oc.env:DSV2_SECRET}"]),
    "overrides that are no words": record(overrides=[{"hydra": 1}]),
    "overrides for the launcher": record(overrides=["launcher=slurm"]),
    "trial above": record(trials=[["none", 0, None, "../../../../outside"], ["expert", 0, None, "x"]]),
    "trial elsewhere": record(trials=[["none", 0, None, "OUTSIDE"], ["expert", 0, None, "x"]]),
    "trials that are none": record(trials=[["none", 0, None, 7]]),
    "trials too deep": raw("study.json", b'{"trials": ' + b"[" * 100_000),
    "source with control characters": record(source="\x1b[2J"),
    "source that is none": record(source=["a", "b"]),
    "definition of Hydra": definition(base=["++hydra.run.dir=OUTSIDE/made"]),
    "definition of another study": definition(name="aa"),
    "definition above": definition(name="../../outside"),
    "definition that runs": raw("study.yaml", b"!!python/object/apply:hostile_payload.run []"),
    "definition that grows": raw("study.yaml", bomb(merge="<<").encode()),
}
LINKS = {
    "study elsewhere": link(""),
    "report elsewhere": link("report"),
    "trials elsewhere": link("trials"),
    "trial is a link": link("TRIAL"),
    "log is a link": link("TRIAL/log.txt", "OUTSIDE/secret.txt"),
    "lock is a link": link("TRIAL/lock", "OUTSIDE/secret.txt"),
    "metrics are a link": link("TRIAL/metrics.jsonl", "OUTSIDE/new.jsonl"),
    "result is a link": link("TRIAL/result.json", "OUTSIDE/secret.json"),
    "checkpoints elsewhere": link("TRIAL/checkpoints"),
    "W&B elsewhere": link("TRIAL/wandb"),
    "link above": link("TRIAL/wandb", "../../../../../../outside"),
    "link to itself": link("TRIAL/wandb", "wandb"),
}


@pytest.mark.parametrize("kind", STORES | LINKS)
def test_a_store_is_read_and_written_within(trap: Trap, kind: str) -> None:
    folder = stored(trap)
    (STORES | LINKS)[kind](trap, folder)
    trap.refused(report, "sweep=good")
    if kind in LINKS:  # the rest is written anew by the same command
        trap.refused(run, "sweep=good.yaml", "seeds=[0]")
    if kind in LINKS and kind != "report elsewhere":  # which a trial does not write
        trap.refused(train, "study=good.yaml", "arm=expert")


def test_links_within_a_store_are_its_own(trap: Trap) -> None:
    """A store on another disk, and the links that W&B makes."""
    trap.runs.parent.joinpath("disk").mkdir()
    trap.runs.symlink_to(trap.here / "disk")
    folder = stored(trap)
    trial = next((folder / "trials").iterdir())
    (trial / "wandb").mkdir()
    (trial / "wandb" / "latest-run").symlink_to("offline-run-1")
    assert trap.call(run, "sweep=good.yaml", "seeds=[0]", "dry_run=true") == 0
    assert len(results("good")) == 2


def test_a_report_quotes_what_a_study_says(trap: Trap) -> None:
    script = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    arms = {name: arm | {"about": script} for name, arm in PAIR["arms"].items()}
    node = PAIR | {"name": "good", "question": script, "prediction": script, "published": script, "arms": arms}
    study(node, seeds=[0]).remember()
    assert trap.call(report, "sweep=good") == 0
    page = (trap.runs / "good" / "smoke" / "report" / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page
    assert "<img src=x" not in page
