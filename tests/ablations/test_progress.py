"""What is read of trials while they grow."""

import json
import time
from pathlib import Path

import pytest

from ablations import study
from ablations.trials.progress import Curves, Progress

SHORT = ["model.shape.num_experts=16", "model.shape.num_devices=8"]


@pytest.fixture
def trials(quick):
    return study("balance_losses", seeds=[0], overrides=[*quick, *SHORT]).trials[:2]


def write(folder: Path, steps: range, *, rest: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"step": step, "tokens": 128 * step, "train/ce": 6.0 - step}) for step in steps]
    scratch = folder / "scratch"
    scratch.write_text("".join(f"{row}\n" for row in rows) + rest)
    scratch.replace(folder / "metrics.jsonl")


def append(folder: Path, text: str) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(text)


def test_curves_read_what_is_new(trials):
    one, other = trials
    curves = Curves(trials, ["train/ce", "routing/max_violation"])
    assert not curves.look()
    assert curves.table().empty
    write(one.folder, range(2, 6, 2), rest='{"step": 6, "tok')
    assert curves.look()
    assert curves.table()[["arm", "seed", "step", "tokens", "metric", "value"]].to_numpy().tolist() == [
        ["none", 0, 2, 256, "train/ce", 4.0],
        ["none", 0, 4, 512, "train/ce", 2.0],
    ]
    assert not curves.look()
    append(one.folder, 'ens": 768, "train/ce": 1.0, "routing/max_violation": 2.5}\nno json\n')
    write(other.folder, range(2, 4, 2))
    assert curves.look()
    table = curves.table()
    assert table[table["arm"] == "none"]["value"].tolist() == [4.0, 2.0, 1.0, 2.5]
    assert table[table["arm"] == "expert"]["step"].tolist() == [2]


def test_curves_follow_a_trial_back_to_its_checkpoint(trials):
    one = trials[0]
    curves = Curves(trials, ["train/ce"])
    write(one.folder, range(2, 12, 2))
    curves.look()
    write(one.folder, range(2, 6, 2))  # cut back
    append(one.folder, "".join(json.dumps({"step": n, "tokens": n, "train/ce": 0.5}) + "\n" for n in range(6, 20, 2)))
    assert curves.look()
    assert curves.table()["step"].tolist() == list(range(2, 20, 2))
    assert curves.table()["value"].tolist() == [4.0, 2.0] + [0.5] * 7


def test_progress_sees_the_ends(trials):
    one, other = trials
    progress = Progress(trials)
    since = time.time() - 60
    write(other.folder, range(2, 7, 2))
    (other.folder / "result.json").write_text(json.dumps({"status": "failed", "error": "ValueError: no luck"}))
    progress.look()
    progress.look_for_ends(time.time() + 60)  # the failure is of an earlier attempt
    assert progress.errors == {}
    assert progress.count() == "0 of 2 trials finished"
    assert progress.share == pytest.approx(6 * 128 / (2 * 1536))
    progress.look_for_ends(since)
    assert progress.count() == "0 of 2 trials finished, 1 failed"
    assert progress.errors[other.folder] == "failed: ValueError: no luck"
    assert progress.share == pytest.approx(768 / (1536 + 768))  # the rest of it will not be trained
    write(one.folder, range(2, 14, 2))
    (one.folder / "result.json").write_text(json.dumps({"status": "finished"}))
    progress.look_for_ends(time.time() + 60)
    assert progress.count() == "1 of 2 trials finished, 1 failed"
    assert progress.share == 1.0
