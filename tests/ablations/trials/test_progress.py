"""What is read of trials while they grow."""

import json
import time
from pathlib import Path

import pytest

from ablations.trials.progress import Curves, StudyProgress, tokens_logged


@pytest.fixture
def trials(six):
    return six.trials[:2]


def write(folder: Path, steps: range, *, rest: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"step": step, "tokens": 128 * step, "train/ce": 6.0 - step}) for step in steps]
    scratch = folder / "scratch"
    scratch.write_text("".join(f"{row}\n" for row in rows) + rest)
    scratch.replace(folder / "metrics.jsonl")


def append(folder: Path, text: str) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(text)


def write_tokens(folder: Path, tokens: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "tokens": tokens}) + "\n")


# ---- curves ----------------------------------------------------------------------------------------------------------


def test_curves_read_what_is_new(trials):
    first, second = trials
    curves = Curves(trials, ["train/ce", "routing/max_violation"])
    assert not curves.look()
    assert curves.table().empty
    write(first.folder, range(2, 6, 2), rest='{"step": 6, "tok')
    assert curves.look()
    assert curves.table()[["arm", "seed", "step", "tokens", "metric", "value"]].to_numpy().tolist() == [
        ["none", 0, 2, 256, "train/ce", 4.0],
        ["none", 0, 4, 512, "train/ce", 2.0],
    ]
    assert not curves.look()
    append(first.folder, 'ens": 768, "train/ce": 1.0, "routing/max_violation": 2.5}\nno json\n')
    write(second.folder, range(2, 4, 2))
    assert curves.look()
    table = curves.table()
    assert table[table["arm"] == "none"]["value"].tolist() == [4.0, 2.0, 1.0, 2.5]
    assert table[table["arm"] == "expert"]["step"].tolist() == [2]


def test_curves_follow_a_trial_back_to_its_checkpoint(trials):
    folder = trials[0].folder
    curves = Curves(trials, ["train/ce"])
    write(folder, range(2, 12, 2))
    curves.look()
    write(folder, range(2, 6, 2))  # cut back
    append(folder, "".join(json.dumps({"step": n, "tokens": n, "train/ce": 0.5}) + "\n" for n in range(6, 20, 2)))
    assert curves.look()
    assert curves.table()["step"].tolist() == list(range(2, 20, 2))
    assert curves.table()["value"].tolist() == [4.0, 2.0] + [0.5] * 7


# ---- ends, share and rate --------------------------------------------------------------------------------------------


def test_progress_sees_the_ends(trials):
    first, second = trials
    progress = StudyProgress(trials)
    since = time.time() - 60
    write(second.folder, range(2, 7, 2))
    (second.folder / "result.json").write_text(json.dumps({"status": "failed", "error": "ValueError: no luck"}))
    progress.look()
    progress.look_for_ends(time.time() + 60)  # the failure is of an earlier attempt
    assert progress.errors == {}
    assert progress.count() == "0 of 2 trials finished"
    assert progress.share == pytest.approx(6 * 128 / (2 * 1536))
    progress.look_for_ends(since)
    assert progress.count() == "0 of 2 trials finished, 1 failed"
    assert progress.errors[second.folder] == "failed: ValueError: no luck"
    assert progress.share == pytest.approx(768 / (1536 + 768))  # the rest of it will not be trained
    write(first.folder, range(2, 14, 2))
    (first.folder / "result.json").write_text(json.dumps({"status": "finished"}))
    progress.look_for_ends(time.time() + 60)
    assert progress.count() == "1 of 2 trials finished, 1 failed"
    assert progress.share == 1.0


def test_the_rate_counts_from_the_first_step_and_leaves_out_what_failed(trials, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    first, second = trials
    write_tokens(first.folder, 400)  # of an attempt that was killed; its checkpoint is older
    progress = StudyProgress(trials)
    clock[0] += 100  # workers start
    write_tokens(first.folder, 100)
    progress.look()
    assert progress.rate() == "3% of 0.0M tokens"
    write_tokens(first.folder, 200)
    clock[0] += 1
    progress.look()
    write_tokens(first.folder, 1200)
    clock[0] += 10
    progress.look()
    assert progress.rate() == "39% of 0.0M tokens, 100 tok/s, 0:19 left"
    progress.end(second, "failed: why")
    progress.look()
    assert progress.rate() == "78% of 0.0M tokens, 100 tok/s, 0:03 left"


@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        (b"", 0),
        (b'{"step": 1, "tokens": 7}\n', 7),
        (b'{"step": 1, "tokens": 7}\n{"step": 2, "tok', 7),
        (b'{"step": 1, "tokens": 7}\n\0\0\0\n', 0),
        (b'{"st', 0),
    ],
)
def test_tokens_of_damaged_metrics(tmp_path, content, tokens):
    (tmp_path / "metrics.jsonl").write_bytes(content)
    assert tokens_logged(tmp_path) == tokens
