"""The experts of the probe over training: whose they are, how they are stored, and that resuming keeps them whole."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import dsv2
from dsv2.data.source import Batch
from dsv2.models.moe.router import Routing
from dsv2.storage import checkpoints
from dsv2.training import fit
from dsv2.training.callbacks.snapshots import SNAPSHOTS, probe, snapped, snapshot_rows
from dsv2.training.saved import open_run


def experts(rows: pd.DataFrame, step: int, layer: int) -> np.ndarray:
    """(tokens, slots) of a snapshot and an MoE layer."""
    return (
        rows[(rows["step"] == step) & (rows["layer"] == layer)]
        .pivot(index="token", columns="slot", values="expert")
        .to_numpy()
    )


def test_snapshots_are_the_routing_of_the_probe(quick: list[str], tmp_path: Path) -> None:
    """As in evaluation: with what the first MoE layer drops in training, the second would route other vectors."""
    deeper = [
        "model.num_layers=3",
        "model.init_std=0.3",
        "model/ffn/dropping=device",
        "model.ffn.dropping.exempt_ratio=0",
    ]
    run = dsv2.load([*quick, *deeper, "trainer.validate_every=6", "trainer.validation_tokens=1024"])
    fit.fit(run, tmp_path)
    rows = pd.read_parquet(tmp_path / SNAPSHOTS)
    assert rows["step"].unique().tolist() == [0, 6, 12]
    assert set(rows["layer"]) == {1, 2}
    assert [dtype.itemsize for dtype in rows.dtypes] == [4, 2, 2, 2, 2]
    source = run.data.open(sequence_length=32, seed=0, validation_tokens=1024)
    tokens = probe(source.validation()).inputs
    assert tokens.shape == (16, 32)
    for step, model in ((0, run.model.build(seed=run.seed)), (12, open_run(tmp_path).model)):
        with torch.no_grad():
            routings = model.eval()(tokens).routings
        for layer, routing in zip((1, 2), routings, strict=True):
            np.testing.assert_array_equal(experts(rows, step, layer), routing.experts.flatten(0, 1))
    assert (experts(rows, 0, 1) != experts(rows, 12, 1)).any()


def test_a_row_is_a_token_of_the_flattened_probe_and_a_slot() -> None:
    """B = 2, T = 2, K = 3: by hand."""
    chosen = torch.tensor([[[5, 1, 0], [2, 5, 4]], [[0, 1, 2], [7, 6, 5]]])
    nothing = torch.zeros(2, 2, 0)
    rows = snapshot_rows(40_000, 3, Routing(nothing, chosen, nothing, None))
    assert set(rows["step"]) == {40_000}
    assert set(rows["layer"]) == {3}
    assert rows["token"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert rows["slot"].tolist() == [0, 1, 2] * 4
    assert rows["expert"].tolist() == [5, 1, 0, 2, 5, 4, 0, 1, 2, 7, 6, 5]


def test_training_is_not_touched(quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are bit-identical with snapshots and without, also where evaluation mode matters (dropping)."""
    quick = [*quick, "model/ffn/dropping=device", "model.ffn.dropping.exempt_ratio=0.5"]
    run = dsv2.load(quick)
    with_snapshots = fit.fit(run, tmp_path / "with")
    monkeypatch.setattr(fit, "Snapshots", lambda *_, **__: fit.L.Callback())
    without = fit.fit(run, tmp_path / "without")
    assert not (tmp_path / "without" / SNAPSHOTS).exists()
    assert with_snapshots["metrics"]["val/loss"] == without["metrics"]["val/loss"]
    assert with_snapshots["metrics"]["routing/drop_rate"] == without["metrics"]["routing/drop_rate"] > 0
    others = open_run(tmp_path / "without").model.state_dict()
    assert all(
        torch.equal(weight, others[name]) for name, weight in open_run(tmp_path / "with").model.state_dict().items()
    )


def test_rows_past_the_checkpoint_are_cut_and_made_again(quick: list[str], tmp_path: Path) -> None:
    """The newest checkpoint is lost, so the run resumes four steps earlier, over rows that it had already written."""
    run = dsv2.load(quick)
    fit.fit(run, tmp_path)
    whole = pd.read_parquet(tmp_path / SNAPSHOTS)
    (tmp_path / "result.json").unlink()
    (tmp_path / "checkpoints" / checkpoints.name_of(12)).unlink()
    fit.fit(run, tmp_path)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / SNAPSHOTS), whole)


def test_a_hole_in_the_snapshots_is_seen(quick: list[str], tmp_path: Path) -> None:
    run = dsv2.load(quick)
    rows = pd.DataFrame({"step": [0, 4, 4, 12]})
    rows.to_parquet(tmp_path / SNAPSHOTS)
    assert snapped(tmp_path, run, 4)
    assert not snapped(tmp_path, run, 8)
    assert not snapped(tmp_path, run, 12)


def test_the_probe_is_short_and_spread_over_the_validation_text() -> None:
    many = torch.arange(100)[:, None].expand(100, 128)
    assert probe(Batch(many, many, None)).inputs[:, 0].tolist() == [0, 25, 50, 75]
    few = torch.arange(2)[:, None].expand(2, 128)
    assert probe(Batch(few, few, None)).inputs.shape == (2, 128)
    long = torch.arange(4096).expand(3, 4096)
    cut = probe(Batch(long, long, None, long))
    assert cut.inputs.shape == (1, 512)
    assert cut.positions is not None
    assert cut.positions.shape == (1, 512)
