"""Runs whose files are damaged, or whose weights are: what is mended, and what never replaces a good checkpoint."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

import dsv2
from dsv2.storage import checkpoints
from dsv2.training import fit
from dsv2.training import machine as process
from dsv2.training.module import Diverged
from dsv2.training.saved import open_run

SHORT = ["model.shape.num_experts=16", "model.shape.num_devices=8", "trainer.log_every=4"]


def rows(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("perf/")} for line in lines]


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_run_with_damaged_files_ends_with_the_same_rows(quick, tmp_path, capsys):
    process.prepare()
    torch.set_num_threads(1)
    run, folder = dsv2.load([*quick, *SHORT]), tmp_path / "run"
    fit.fit(run, folder)
    expected, weights = rows(folder), open_run(folder).model.state_dict()

    def cut_last(path):
        path.write_bytes(path.read_bytes()[:-20])

    def junk(path):
        path.write_bytes(path.read_bytes() + b"\0\0\0\n")

    damages = {"routing.parquet": half, "metrics.jsonl": cut_last, "checkpoints/manifest.json": half}
    damages["routing_snapshots.parquet"] = half
    removed = [(name, Path.unlink) for name in ("routing.parquet", "routing_snapshots.parquet")]
    for name, damage in [*damages.items(), ("metrics.jsonl", junk), *removed]:
        (folder / "result.json").unlink()
        damage(folder / name)
        fit.fit(run, folder)
        assert rows(folder) == expected
        assert len(pd.read_parquet(folder / "routing.parquet")) == 3 * 16
        assert len(pd.read_parquet(folder / "routing_snapshots.parquet")) == 4 * 512 * 2
        assert all(torch.equal(weight, weights[key]) for key, weight in open_run(folder).model.state_dict().items())
        # Only a damage that training cannot mend by cutting the logs back makes it start again.
        assert ("damaged" in capsys.readouterr().err) == (damage is not junk)
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["manifest.json", "step-000000008.ckpt", "step-000000012.ckpt"]


def test_weights_that_are_not_finite_replace_no_checkpoint(quick, tmp_path, monkeypatch):
    inner = fit.Recorder.on_train_batch_end

    def recorded(self, trainer, module, *rest):
        inner(self, trainer, module, *rest)
        if trainer.global_step == 8:
            with torch.no_grad():
                module.model.embedding[0, 0] = torch.inf

    monkeypatch.setattr(fit.Recorder, "on_train_batch_end", recorded)
    with pytest.raises(Diverged, match="embedding stopped being finite by step 8"):
        fit.fit(dsv2.load([*quick, *SHORT]), tmp_path / "run")
    assert checkpoints.latest(tmp_path / "run" / "checkpoints").name == "step-000000004.ckpt"
