"""What a study will take: by the account of its trials, at the speed of runs on this machine or of other hardware."""

import pytest

from ablations.studies import study
from ablations.trials import outlook as outlooks
from ablations.trials.outlook import need_of, outlook, runs_here, speed_here
from dsv2.accounting.account import account
from dsv2.config import ConfigError
from dsv2.training.run import load


def test_a_run_needs_what_its_account_says(trained, quick) -> None:
    run = load([*quick, "model.vocab_size=320"])
    need = need_of(run)
    assert need.tokens == 1536
    assert need.flops == account(run.model, context=32).flops_per_token * 1536
    assert need.memory > outlooks.PROCESS
    stored = sum(path.stat().st_size for path in trained.rglob("*") if path.is_file() and path.name != "tokenizer.json")
    assert stored / 4 < need.disk < 4 * stored


def test_the_speed_is_that_of_earlier_runs(trained) -> None:
    ((flops, rate),) = runs_here()
    speed = speed_here(flops, "fp32")
    assert speed.rate.likely == rate
    assert (speed.rate.low, speed.rate.high) == (rate / 2, rate * 2)  # one run says nothing of the spread
    assert speed.source == "1 earlier runs on this machine"
    assert "of other sizes" in speed_here(100 * flops, "fp32").source


def test_without_runs_a_matmul_is_measured(runs, monkeypatch) -> None:
    monkeypatch.setattr(outlooks, "peak_flops", lambda device, precision: 50e9)
    speed = speed_here(1e6, "fp32")
    assert speed.rate == outlooks.MEASURED.times(50e9)
    assert speed.source.endswith("a matmul runs at 50 GFLOP/s")


def test_a_study_takes_what_its_trials_take(runs) -> None:
    one = study("routing_collapse", seeds=[0, 1])
    found = outlook(one, "h100", workers=2)
    assert (found.trials, found.workers, found.devices) == (len(one.trials), 1, 1)
    assert found.left.flops == pytest.approx(sum(need_of(trial.run).flops for trial in one.trials))
    assert found.study_seconds == found.left.seconds(found.speed.rate)
    with pytest.raises(ConfigError, match="hardware='tpu' is not valid: one of here, h100, a100, laptop"):
        outlook(one, "tpu", 1)


def test_a_model_beyond_one_device_says_how_many_it_needs(runs) -> None:
    found = outlook(study("balance_losses", "paper", seeds=[0]), "h100", workers=1)
    weights = 4 * 235.74e9
    assert 4 * weights / 72e9 < found.devices < 5 * weights / 72e9
