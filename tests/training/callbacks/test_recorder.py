"""What a run logs: means since the last logged step, and at the end the balance over the validation set."""

import json
from pathlib import Path

import pytest
import torch

import dsv2
from dsv2.evaluation.validation import evaluate
from dsv2.training import fit
from dsv2.training import machine as process
from dsv2.training.saved import open_run
from tests.references.tolerances import FLOAT32

DROPPING = ("model/ffn/dropping=device", "model.ffn.dropping.exempt_ratio=0.5")
MEANS = ("train/loss", "train/ce", "train/balance_expert", "train/balance_device", "train/balance_comm")
MEANS += ("routing/drop_rate", "routing/devices_per_token", "routing/overflow")  # every step has as many pairs


def logged(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_rows_are_means_and_the_result_is_of_the_validation_set(quick: list[str], tmp_path: Path) -> None:
    """The same run logged at every step and at every second one; then its last weights are evaluated again."""
    process.prepare()
    torch.set_num_threads(1)
    for every in (1, 2):
        run = dsv2.load([*quick, *DROPPING, f"trainer.log_every={every}"])
        result = fit.fit(run, tmp_path / str(every))
    single, double = logged(tmp_path / "1"), logged(tmp_path / "2")
    assert (len(single), len(double)) == (12, 6)
    for row, first, second in zip(double, single[::2], single[1::2], strict=True):
        for name in MEANS:
            assert row[name] == pytest.approx((first[name] + second[name]) / 2, rel=FLOAT32), name
    assert single[0]["routing/drop_rate"] > 0

    metrics, settings = result["metrics"], run.trainer
    source = run.data.open(
        sequence_length=settings.sequence_length, seed=run.seed, validation_tokens=settings.validation_tokens
    )
    found = evaluate(
        open_run(tmp_path / "2").model,
        source.validation(),
        batch_size=settings.batch.size,
        token_bytes=source.token_bytes,
    )
    for name in ("val/loss", "val/bpb"):
        assert metrics[name] == pytest.approx(found[name], rel=FLOAT32)
    assert metrics["routing/max_violation"] == pytest.approx(found["val/routing/max_violation"], rel=FLOAT32)
    assert metrics["routing/max_violation"] != double[-1]["routing/max_violation"]
    assert metrics["routing/drop_rate"] == double[-1]["routing/drop_rate"] > 0  # validation drops nothing
