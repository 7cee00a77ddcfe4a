"""What a run logs: means since the last logged step, at the end the balance over the validation set, no row twice."""

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import dsv2
from dsv2.accounting.account import account
from dsv2.data.source import Source
from dsv2.evaluation.benchmarks import TextBenchmarks
from dsv2.evaluation.validation import evaluate
from dsv2.routing.measures import Counts
from dsv2.training import fit
from dsv2.training.callbacks import recorder
from dsv2.training.callbacks.recorder import Recorder, keep_until, routing_rows
from dsv2.training.module import Module
from dsv2.training.run import Run
from dsv2.training.saved import open_run
from tests.references.faults import halve
from tests.references.runs import rows
from tests.references.tolerances import FLOAT32

DROPPING = ("model/ffn/dropping=device", "model.ffn.dropping.exempt_ratio=0.5")
MEANS = ("train/loss", "train/ce", "train/balance_expert", "train/balance_device", "train/balance_comm")
MEANS += ("routing/drop_rate", "routing/devices_per_token", "routing/overflow")  # every step has as many pairs


def logged(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def source_of(run: Run.Config) -> Source:
    settings = run.trainer
    return run.data.open(
        sequence_length=settings.sequence_length, seed=run.seed, validation_tokens=settings.validation_tokens
    )


def test_rows_are_means_and_the_result_is_of_the_validation_set(quick: list[str], tmp_path: Path) -> None:
    """The same run logged at every step and at every second one; then its last weights are evaluated again."""
    for every in (1, 2):
        run = dsv2.load([*quick, *DROPPING, f"trainer.log_every={every}"])
        result = fit.fit(run, tmp_path / str(every))
    single, double = logged(tmp_path / "1"), logged(tmp_path / "2")
    assert (len(single), len(double)) == (12, 6)
    for row, first, second in zip(double, single[::2], single[1::2], strict=True):
        for name in MEANS:
            assert row[name] == pytest.approx((first[name] + second[name]) / 2, rel=FLOAT32), name
    assert single[0]["routing/drop_rate"] > 0

    metrics, settings, source = result["metrics"], run.trainer, source_of(run)
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


def test_a_deployed_model_is_what_is_validated(quick: list[str], tmp_path: Path) -> None:
    """In training and in what is measured of its weights later; the training itself stays as it was."""
    words = [*quick, "deployment=kv", "deployment.kv.bits=3"]
    run = dsv2.load(words)
    metrics = fit.fit(run, tmp_path / "kv")["metrics"]
    plain = fit.fit(dsv2.load(quick), tmp_path / "plain")["metrics"]
    assert run.deployment is not None
    model, source, size = open_run(tmp_path / "kv").model, source_of(run), run.trainer.batch.size
    validation = source.validation()
    for deployed, expected in ((run.deployment.of(model), metrics), (model, plain)):
        found = evaluate(deployed, validation, batch_size=size, token_bytes=source.token_bytes)
        assert expected["val/loss"] == pytest.approx(found["val/loss"], rel=FLOAT32)
    assert metrics["val/loss"] != plain["val/loss"]
    assert metrics["train/loss"] == plain["train/loss"]
    assert metrics["deployed/kv_bytes_per_token"] == account(run.model, kv=run.deployment.kv).kv_bytes_per_token
    assert 0 <= metrics["deployed/agreement"] <= 1
    assert not any(name.startswith("deployed/") for name in plain)


def test_rows_are_those_of_a_plain_loop(quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same steps in ten lines of torch: every loss, norm, rate and load, at its own step."""
    run = dsv2.load([*quick, "trainer.log_every=1"])
    fit.fit(run, tmp_path)
    logged, routing = rows(tmp_path), pd.read_parquet(tmp_path / "routing.parquet")
    assert [row["step"] for row in logged] == list(range(1, 13))

    module, source, settings = Module(run), source_of(run), run.optim
    optimizer = settings.build(module.model)
    highest_rates = [group["lr"] for group in optimizer.param_groups]
    for step, row in enumerate(logged):
        monkeypatch.setattr(Module, "global_step", step)
        batch = source.train(4 * step, 4)
        losses, (routed,) = module.objective(batch)
        optimizer.zero_grad()
        losses.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(module.model.parameters(), settings.clip_norm)
        rate = settings.highest_lr * settings.schedule.factor(step, module.batches)
        for group, highest in zip(optimizer.param_groups, highest_rates, strict=True):
            group["lr"] = highest * settings.schedule.factor(step, module.batches)
        optimizer.step()
        expected = [*(loss.item() for loss in losses), norm.item(), rate]
        names = [*recorder.LOSSES, "train/grad_norm", "train/lr"]
        assert [row[name] for name in names] == pytest.approx(expected, rel=FLOAT32), f"step {step + 1}"
        load = torch.bincount(routed.experts.flatten(), minlength=8).tolist()
        assert routing[routing["step"] == step + 1]["load"].tolist() == load
        assert row["tokens"] == 128 * (step + 1)
        assert row["routing/max_violation"] == pytest.approx(max(load) / (sum(load) / 8) - 1)


def test_rows_of_routing_by_hand() -> None:
    """Four experts on two devices, 5 tokens of 2 experts each."""
    counts = Counts(*map(torch.tensor, ([6, 2, 0, 2], [1, 0, 0, 1], [5, 2], 3, 5)))
    made = routing_rows(8, 3, counts)
    assert made[["step", "layer"]].drop_duplicates().to_numpy().tolist() == [[8, 3]]
    for name, column in (("expert", [0, 1, 2, 3]), ("device", [0, 0, 1, 1]), ("load", [6, 2, 0, 2])):
        assert made[name].tolist() == column
    assert made["dropped"].tolist() == [1, 0, 0, 1]
    assert made["max_violation"].tolist() == pytest.approx([6 / 2.5 - 1] * 4)
    assert made["dead_experts"].tolist() == [0.25] * 4
    assert made["drop_rate"].tolist() == pytest.approx([0.2] * 4)


def test_the_speed_is_that_of_training_alone(quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that ticks at every reading: two per logged row, none of validation."""
    ticks = iter(range(1000))
    monkeypatch.setattr(recorder, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    monkeypatch.setattr(recorder, "peak_flops", lambda *_: 1e9)
    run = dsv2.load(quick)
    result = fit.fit(run, tmp_path)
    per_token = account(run.model, context=32).flops_per_token
    for row in logged(tmp_path):
        assert row["perf/tokens_per_s"] == pytest.approx(256 / 1.0)
        assert row["perf/mfu"] == pytest.approx(256 * per_token / 1e9)
    assert result["seconds"] == 6.0


# ---- resuming --------------------------------------------------------------------------------------------------------


def test_a_resumed_run_continues_its_rows_its_seconds_and_its_newest_values(
    quick, tmp_path, crashing, monkeypatch
) -> None:
    """Stopped after step 6 was logged and before it was saved: 6 is logged again, once."""
    run = dsv2.load(quick)
    fit.fit(run, tmp_path / "whole")
    with crashing(6):
        fit.fit(run, tmp_path / "run")
    folder = tmp_path / "run"
    assert [row["step"] for row in rows(folder)] == [2, 4, 6]
    before = json.loads((folder / "metrics.jsonl").read_text().splitlines()[1])
    started = []

    def record(self: Recorder, *arguments: object) -> None:
        inner(self, *arguments)
        started.append((self.seconds, dict(self.last), [row["step"] for row in rows(folder)]))

    inner = Recorder.on_train_start
    monkeypatch.setattr(Recorder, "on_train_start", record)
    fit.fit(run, folder)
    ((seconds, last, steps),) = started
    assert steps == [2, 4]
    assert seconds > 0
    assert last.items() <= before.items()
    assert "val/loss" in last
    assert rows(folder) == rows(tmp_path / "whole")
    routing = [pd.read_parquet(path / "routing.parquet") for path in (folder, tmp_path / "whole")]
    pd.testing.assert_frame_equal(*routing)


def test_logs_are_cut_back_to_a_step(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step}) + "\n" for step in (2, 4, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"step": 4')  # whose end a kill cut off
    pd.DataFrame({"step": [2, 2, 4, 4, 6, 6], "load": range(6)}).to_parquet(tmp_path / "routing.parquet")
    keep_until(tmp_path, 4)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(lines[:2])
    assert pd.read_parquet(tmp_path / "routing.parquet")["load"].tolist() == [0, 1, 2, 3]
    keep_until(tmp_path, 0)
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    assert len(pd.read_parquet(tmp_path / "routing.parquet")) == 0


def test_where_nothing_was_logged_nothing_is_cut(tmp_path: Path) -> None:
    keep_until(tmp_path, 4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["metrics.jsonl", "routing.parquet"])
def test_a_damaged_log_is_not_cut_to_something_plausible(tmp_path: Path, name: str) -> None:
    """`fit` looks at the logs before it resumes over them; what cannot be read does not pass here either."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"st\n{"step": 4}\n')
    pd.DataFrame({"step": [2, 4]}).to_parquet(tmp_path / "routing.parquet")
    if name == "routing.parquet":
        (tmp_path / "metrics.jsonl").unlink()
        halve(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    with pytest.raises((ValueError, OSError)):
        keep_until(tmp_path, 4)
    assert (tmp_path / name).read_bytes() == content


def test_final_values_take_balance_from_the_validation_set_and_drops_from_training(
    quick: list[str], tmp_path: Path
) -> None:
    run = dsv2.load(quick)
    made = Recorder(Module(run), source_of(run), tmp_path)
    made.last = {"train/loss": 1.0, "val/loss": 2.0, "routing/entropy": 0.3, "val/routing/entropy": 0.9}
    made.last |= {"routing/drop_rate": 0.1, "val/routing/drop_rate": 0.0}
    expected = {"train/loss": 1.0, "val/loss": 2.0, "routing/entropy": 0.9, "routing/drop_rate": 0.1}
    assert made.final() == expected


def test_a_benchmark_that_fails_leaves_the_result(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is finished, has the other scores, and says what failed and why."""

    def fail(*_: object, **__: object) -> dict[str, float]:
        raise RuntimeError("no memory\nfor questions")

    monkeypatch.setattr(TextBenchmarks, "run_cloze", fail)
    sizes = ["benchmarks.cloze_context=8", "benchmarks.cloze_continuation=4", "benchmarks.copying_length=8"]
    result = fit.fit(dsv2.load([*quick, "benchmarks=text", *sizes]), tmp_path / "run")
    assert result["status"] == "finished"
    assert result["failed_benchmarks"] == {"cloze": "RuntimeError: no memory"}
    assert "bench/copying" in result["metrics"]
    assert not any(name.startswith("bench/cloze") for name in result["metrics"])
    assert capsys.readouterr().err == f"warning: {tmp_path / 'run'}: cloze failed: RuntimeError: no memory\n"
