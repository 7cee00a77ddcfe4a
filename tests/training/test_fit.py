"""A run in its directory: what it leaves behind, and that being killed changes nothing of it."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from filelock import FileLock

import dsv2
from dsv2.config import ConfigError
from dsv2.storage import checkpoints
from dsv2.storage.rundir import finished
from dsv2.training import fit
from dsv2.training.machine import best_kernels
from dsv2.training.module import Diverged, Module
from dsv2.training.run import with_kernels
from dsv2.training.saved import open_run
from tests.references.faults import flip, halve
from tests.references.runs import rows, timeless


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return open_run(folder).model.state_dict()


def assert_same_run(one: Path, other: Path) -> None:
    """Bit-identical weights, optimiser and logs."""
    assert rows(one) == rows(other)
    for log in ("routing.parquet", "routing_snapshots.parquet"):
        pd.testing.assert_frame_equal(*(pd.read_parquet(folder / log) for folder in (one, other)))
    for name, weight in weights(one).items():
        assert torch.equal(weight, weights(other)[name]), name
    states = [checkpoints.load(checkpoints.latest(folder / "checkpoints")) for folder in (one, other)]
    moments = [state["optimizer_states"][0]["state"] for state in states]
    for index, moment in moments[0].items():
        assert all(torch.equal(moment[key], moments[1][index][key]) for key in moment)
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    assert timeless(results[0]["metrics"]) == timeless(results[1]["metrics"])


SPARSE = ["model.shape.num_experts=16", "model.shape.num_devices=8", "trainer.log_every=4"]
BENCHMARKS = [
    "benchmarks=text",
    "benchmarks.cloze_questions=8",
    "benchmarks.cloze_context=12",
    "benchmarks.copying_strings=4",
    "benchmarks.copying_length=16",
]


def test_recomputed_layers_are_of_the_same_run_and_change_nothing(quick, tmp_path):
    for layers in (0, 2):
        fit.fit(dsv2.load([*quick, f"trainer.recompute_layers={layers}"]), tmp_path / str(layers))
    assert_same_run(tmp_path / "0", tmp_path / "2")
    with pytest.raises(ConfigError, match=r"trainer\.recompute_layers=3 is not valid: 0 to model\.num_layers=2"):
        dsv2.load([*quick, "trainer.recompute_layers=3"])


def test_a_run_leaves_what_it_promises(quick, tmp_path):
    run = dsv2.load([*quick, *BENCHMARKS, "study=s", "arm=a"])
    result = fit.fit(run, tmp_path / "run")
    assert result["status"] == "finished"
    assert (result["arm"], result["seed"], result["steps"], result["tokens"]) == ("a", 0, 12, 1536)
    assert result["fingerprint"] == run.fingerprint()
    assert {"git", "versions", "device", "kernels"} <= result["provenance"].keys()
    assert open_run(tmp_path / "run").config == with_kernels(run, best_kernels("cpu"))

    logged = rows(tmp_path / "run")
    assert [row["step"] for row in logged] == [2, 4, 6, 8, 10, 12]
    assert [row["tokens"] for row in logged] == [256, 512, 768, 1024, 1280, 1536]
    assert [row["step"] for row in logged if "val/loss" in row] == [4, 8, 12]
    promised = (
        "train/loss train/ce train/balance_expert train/balance_device train/balance_comm train/lr train/grad_norm"
    )
    promised += " val/loss val/bpb val/accuracy routing/max_violation routing/entropy routing/dead_experts"
    promised += " routing/device_max_violation routing/drop_rate routing/devices_per_token"
    assert set(promised.split()) <= logged[-1].keys()
    benchmarks = {"bench/cloze", "bench/cloze_margin", "bench/cloze_context", "bench/copying", "bench/copying_gain"}
    assert [{name for name in row if name.startswith("bench/")} for row in logged] == [set()] * 5 + [benchmarks]
    assert {name: result["metrics"][name] for name in benchmarks} == {name: logged[-1][name] for name in benchmarks}
    assert [row["train/lr"] for row in logged[:3]] == pytest.approx([3e-3 * s / 20 for s in (2, 4, 6)])  # warming up
    last = logged[-1]
    parts = sum(last[f"train/{name}"] for name in ("balance_expert", "balance_device", "balance_comm", "z_loss"))
    assert last["train/loss"] == pytest.approx(last["train/ce"] + parts, rel=1e-6)
    assert parts > 0

    routing = pd.read_parquet(tmp_path / "run" / "routing.parquet")
    assert len(routing) == 6 * 1 * 8  # logged steps x MoE layers x experts
    assert (routing.groupby("step")["load"].sum() == 2 * 4 * 32 * 2).all()  # steps since the last x B x T x K
    assert set(routing["layer"]) == {1}


def test_a_run_that_another_process_trains_is_busy(quick, tmp_path):
    run = dsv2.load(quick)
    with FileLock(tmp_path / "lock"), pytest.raises(fit.Busy, match=f"{tmp_path}: a process .* holds this run and"):
        fit.fit(run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] in (["lock"], [])


@pytest.mark.slow
def test_two_processes_that_start_one_run_write_it_once(quick, tmp_path, runs):
    command = [sys.executable, "-m", "dsv2.train", *quick]
    both = [subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    (folder,) = (runs / "train").iterdir()
    assert [row["step"] for row in rows(folder)] == [2, 4, 6, 8, 10, 12]
    for process, text in zip(both, said, strict=True):
        refused = " has held this run since " in text
        assert process.returncode == (1 if refused else 0), text
    assert 0 in [process.returncode for process in both]


def test_a_finished_run_is_not_trained_again(quick, tmp_path, monkeypatch):
    run = dsv2.load(quick)
    first = fit.fit(run, tmp_path / "run")
    monkeypatch.setattr(fit, "_train", lambda *_: pytest.fail("trained again"))
    assert fit.fit(run, tmp_path / "run") == first


@pytest.mark.parametrize("crash_at", [1, 4, 7, 12])
def test_a_crashed_run_ends_as_if_it_had_not(quick, tmp_path, crashing, crash_at):
    dropping = ["model/ffn/dropping=device", "model.ffn.dropping.exempt_ratio=0.5"]
    run = dsv2.load([*quick, *BENCHMARKS, *dropping])
    fit.fit(run, tmp_path / "whole")
    with crashing(crash_at):
        fit.fit(run, tmp_path / "killed")
    failed = json.loads((tmp_path / "killed" / "result.json").read_text())
    assert failed["status"] == "failed"
    assert "the machine went away" in failed["traceback"]
    torch.rand(1)  # whatever else drew random numbers meanwhile
    fit.fit(run, tmp_path / "killed")
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_corpus_too_small_for_its_benchmarks_costs_no_training(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(Module, "training_step", lambda *_: pytest.fail("trained"))
    long = ["trainer.sequence_length=2000", "trainer.tokens=8000", "trainer.validation_tokens=2000"]
    with pytest.raises(ConfigError, match=r"cloze_context=1900 is not valid: smaller: held-out"):
        fit.fit(dsv2.load([*quick, *BENCHMARKS, *long, "benchmarks.cloze_context=1900"]), tmp_path / "run")


@pytest.mark.parametrize(("kind", "crash_at"), [("gshard", 6), ("switch", 3), ("hash", 6)])
def test_a_crashed_run_of_a_baseline_ends_as_if_it_had_not(quick, tmp_path, crashing, kind, crash_at):
    """What GShard and Switch draw belongs to the step: a resumed run draws it again, whatever drew meanwhile."""
    run = dsv2.load([*quick, f"model/ffn={kind}", "model.ffn.num_experts=4", "loss.expert=0.01"])
    whole = fit.fit(run, tmp_path / "whole")
    dropped = whole["metrics"]["routing/drop_rate"]
    assert (0 < dropped < 1) if kind != "hash" else dropped == 0
    assert (whole["metrics"]["train/balance_expert"] > 0) == (kind != "hash")
    assert whole["metrics"]["train/balance_device"] == whole["metrics"]["train/balance_comm"] == 0
    with crashing(crash_at):
        fit.fit(run, tmp_path / "killed")
    torch.manual_seed(99)
    fit.fit(run, tmp_path / "killed")
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_loss_that_is_not_finite_stops_the_run(quick, tmp_path, monkeypatch):
    run = dsv2.load(quick)
    inner = Module.training_step

    def poison(self, batch, index):
        output = inner(self, batch, index)
        if self.global_step == 9:
            with torch.no_grad():
                self.model.embedding.fill_(math.nan)
            return inner(self, batch, index)
        return output

    monkeypatch.setattr(Module, "training_step", poison)
    with pytest.raises(Diverged, match="the loss became nan in step 10"):
        fit.fit(run, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "diverged"
    kept = checkpoints.latest(tmp_path / "run" / "checkpoints")
    assert kept.name == "step-000000008.ckpt"
    assert all(weight.isfinite().all() for weight in weights(tmp_path / "run").values())


def test_a_damaged_checkpoint_costs_steps_not_the_run(quick, tmp_path, capsys):
    run = dsv2.load(quick)
    fit.fit(run, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    newest = folder / "step-000000012.ckpt"
    flip(newest)
    scratch = folder / ".step-000000012.ckpt.1.tmp"
    scratch.touch()  # a run may be writing it, so readers leave it alone
    assert checkpoints.latest(folder).name == "step-000000008.ckpt"
    assert scratch.exists()
    assert "step-000000012.ckpt is damaged" in capsys.readouterr().err
    before = rows(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    fit.fit(run, tmp_path / "run")
    assert rows(tmp_path / "run") == before
    assert not scratch.exists()


def test_a_finished_run_whose_checkpoints_cannot_be_found_is_trained_again(quick, tmp_path, capsys):
    """Its weights could not be opened; asked to train, it does, and both are as they were."""
    run, folder = dsv2.load(quick), tmp_path / "run"
    fit.fit(run, folder)
    expected, weights = rows(folder), open_run(folder).model.state_dict()
    manifest = folder / "checkpoints" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("step", "stop"))
    assert finished(folder) is None
    assert f"{manifest}: not as it was when the run finished; the run counts as unfinished" in capsys.readouterr().err
    again = (
        rf"neither .* nor a valid checkpoint; to train it again, delete {folder / 'result.json'} and run its command"
    )
    with pytest.raises(ValueError, match=again):
        _ = open_run(folder).model
    fit.fit(run, folder)
    assert finished(folder)
    assert rows(folder) == expected
    assert all(torch.equal(weight, weights[key]) for key, weight in open_run(folder).model.state_dict().items())


def test_a_run_with_damaged_files_ends_with_the_same_rows(quick, tmp_path, capsys):
    run, folder = dsv2.load([*quick, *SPARSE]), tmp_path / "run"
    fit.fit(run, folder)
    expected, weights = rows(folder), open_run(folder).model.state_dict()

    def cut_last(path):
        path.write_bytes(path.read_bytes()[:-20])

    def junk(path):
        path.write_bytes(path.read_bytes() + b"\0\0\0\n")

    damages = {"routing.parquet": halve, "metrics.jsonl": cut_last, "checkpoints/manifest.json": halve}
    damages["routing_snapshots.parquet"] = halve
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


def test_a_run_that_starts_again_is_resumed_from_its_own_checkpoints(quick, tmp_path, crashing, capsys):
    """The checkpoints of the attempt whose logs were lost are further on, and cannot be resumed."""
    run, folder = dsv2.load(quick), tmp_path / "run"
    fit.fit(run, folder)
    expected = rows(folder)
    (folder / "result.json").unlink()
    halve(folder / "routing.parquet")
    with crashing(7):
        fit.fit(run, folder)
    assert "damaged; training restarts from step 0" in capsys.readouterr().err
    assert checkpoints.steps(folder / "checkpoints") == [4]
    fit.fit(run, folder)
    assert "damaged" not in capsys.readouterr().err
    assert rows(folder) == expected


def test_a_moe_model_whose_layers_are_all_dense_trains_stops_and_resumes(quick, tmp_path, crashing):
    run = dsv2.load([*quick, "model.num_dense_layers=2"])  # of 2, under model/ffn=moe
    assert run.model.moe is None
    whole = fit.fit(run, tmp_path / "whole")
    assert not any(name.startswith("routing/") for name in whole["metrics"])
    with crashing(7):
        fit.fit(run, tmp_path / "stopped")
    fit.fit(run, tmp_path / "stopped")
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")
    assert not list((tmp_path / "whole").glob("routing*"))


def test_dense_and_bfloat16_runs_train(quick, tmp_path):
    dense = fit.fit(dsv2.load([*quick, "model/ffn=dense", "model/attention=gqa"]), tmp_path / "dense")
    assert not any(name.startswith("routing/") for name in dense["metrics"])
    assert not list((tmp_path / "dense").glob("routing*"))
    low = fit.fit(dsv2.load([*quick, "trainer.precision=bf16"]), tmp_path / "low")
    full = fit.fit(dsv2.load(quick), tmp_path / "full")
    assert low["metrics"]["val/loss"] == pytest.approx(full["metrics"]["val/loss"], rel=0.02)
    assert low["metrics"]["val/loss"] != full["metrics"]["val/loss"]


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_the_command_survives_signals(quick, tmp_path, runs, signal_number):
    command = [sys.executable, "-m", "dsv2.train", *quick, "trainer.tokens=38400"]  # 300 steps
    whole = subprocess.run(
        command, env=os.environ | {"DSV2_RUNS": str(tmp_path / "other")}, capture_output=True, text=True, check=True
    )
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = runs / "train" / Path(whole.stdout.splitlines()[-1]).name
    while not list(folder.glob("checkpoints/step-*5[0-9].ckpt")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal_number)
    assert process.wait() != 0
    assert not (folder / "result.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(folder)
    assert_same_run(Path(whole.stdout.splitlines()[-1]), folder)


def test_a_module_of_ones_own_trains_another_objective(quick, tmp_path):
    """One method is replaced; what is logged, saved and resumed stays."""

    class TwiceTheLoss(Module):
        def objective(self, batch):
            losses, routings = super().objective(batch)
            return losses._replace(total=2 * losses.total), routings

    run = dsv2.load([*quick, "optim.clip_norm=1000000", "trainer.tokens=128"])
    plain, twice = (
        fit.fit(run, tmp_path / module.__name__, module=module)["metrics"] for module in (Module, TwiceTheLoss)
    )
    assert twice["train/ce"] == plain["train/ce"]
    assert twice["train/loss"] == pytest.approx(2 * plain["train/loss"])
    assert twice["train/grad_norm"] == pytest.approx(2 * plain["train/grad_norm"], rel=1e-5)


@pytest.mark.parametrize("ffn", ["loss_free", "v3"])
def test_a_bias_of_experts_is_saved_and_resumed_exactly(quick, tmp_path, crashing, ffn):
    """The checkpoint of a step has the bias after it: every expert moved by at most one step of 0.001 per step."""
    run = dsv2.load([*quick, f"model/ffn={ffn}", "loss=z"])
    fit.fit(run, tmp_path / "whole")
    with crashing(10):
        fit.fit(run, tmp_path / "killed")
    fit.fit(run, tmp_path / "killed")
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    bias = weights(tmp_path / "whole")["layers.1.ffn.bias"]
    moved = (bias / 0.001).round()
    assert torch.allclose(bias, moved * 0.001, atol=1e-7)
    assert moved.abs().max() <= 12
    assert bias.any()
    fit.fit(dsv2.load([*quick, f"model/ffn={ffn}", "loss=z", "trainer.recompute_layers=2"]), tmp_path / "recomputed")
    assert_same_run(tmp_path / "whole", tmp_path / "recomputed")


def test_the_bias_is_moved_before_the_checkpoint(quick, tmp_path):
    """After one step it is there, one step of 0.001 for experts that are not at the mean load."""
    run = dsv2.load([*quick, "model/ffn=loss_free", "trainer.tokens=128", "trainer.log_every=1"])
    fit.fit(run, tmp_path / "run")
    routing = pd.read_parquet(tmp_path / "run" / "routing.parquet")
    load = torch.tensor(routing["load"].to_numpy())
    expected = 0.001 * (load.double().mean() - load).sign()
    torch.testing.assert_close(weights(tmp_path / "run")["layers.1.ffn.bias"], expected.float())
