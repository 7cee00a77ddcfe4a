"""Loss against cost, where the right answer is known by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from dsv2.statistics.budgets import loss_at_equal, spent, telling


def logged(
    arm: str, seed: int, speeds: list[float], losses: list[float | None]
) -> list[tuple[str, int, int, str, float]]:
    """Rows of one trial that logs every 100 tokens; a loss of None was not measured at that step."""
    rows = []
    for step, (speed, loss) in enumerate(zip(speeds, losses, strict=True), 1):
        rows.append((arm, seed, 100 * step, "perf/tokens_per_s", speed))
        if loss is not None:
            rows.append((arm, seed, 100 * step, "val/loss", loss))
    return rows


def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """`small` takes 10 s a logged step and 1 FLOP a token; `big` 20 s and 2 FLOPs, and is better per token."""
    rows = logged("big", 0, [5.0] * 4, [None, 3.0, None, 1.0]) + logged("small", 0, [10.0] * 4, [None, 4.0, None, 2.0])
    metrics = pd.DataFrame(rows, columns=["arm", "seed", "tokens", "metric", "value"])
    return metrics, pd.DataFrame({"arm": ["big", "small"], "flops_per_token": [2, 1]})


def test_cost_adds_up_over_steps_that_measure_nothing() -> None:
    table = spent(*tables())
    big = table[table["arm"] == "big"]
    assert big["tokens"].tolist() == [200, 400]
    assert big["flops"].tolist() == [400, 800]
    assert big["seconds"].tolist() == [40, 80]
    assert table[table["arm"] == "small"]["seconds"].tolist() == [20, 40]


def test_what_wins_per_token_may_lose_per_flop_and_per_second() -> None:
    at_equal = loss_at_equal(*tables()).set_index("arm")
    assert at_equal.loc["big", ["per_token", "per_flop", "per_second"]].tolist() == [1.0, 3.0, 3.0]
    assert at_equal.loc["small", ["per_token", "per_flop", "per_second"]].tolist() == [2.0, 2.0, 2.0]
    assert at_equal.attrs == {"tokens": 400, "flops": 400, "seconds": 40}


def test_between_two_values_the_logarithm_of_the_budget_counts() -> None:
    metrics, accounting = tables()
    accounting["flops_per_token"] = [4, 3]  # small reaches 1200, big has measured at 800 and 1600
    at_equal = loss_at_equal(metrics, accounting).set_index("arm")
    assert at_equal.loc["big", "per_flop"] == pytest.approx(3 - 2 * math.log(1200 / 800) / math.log(2))


def test_a_budget_before_the_first_value_has_none() -> None:
    metrics, accounting = tables()
    accounting["flops_per_token"] = [100, 1]
    at_equal = loss_at_equal(metrics, accounting).set_index("arm")
    assert np.isnan(at_equal.loc["big", "per_flop"])
    assert at_equal.loc["small", "per_flop"] == 2.0


def test_seeds_are_read_each_at_its_own_speed() -> None:
    metrics, accounting = tables()
    slow = pd.DataFrame(logged("small", 1, [5.0, 5.0, 10.0, 10.0], [None, 5.0, None, 3.0]), columns=metrics.columns)
    at_equal = loss_at_equal(pd.concat([metrics, slow]), accounting)
    trial = at_equal[(at_equal["arm"] == "small") & (at_equal["seed"] == 1)].iloc[0]
    assert at_equal.attrs["seconds"] == 40  # the fastest trial's
    assert trial["per_second"] == pytest.approx(5.0)
    assert trial["per_token"] == 3.0


def test_what_is_missing_is_named() -> None:
    metrics, accounting = tables()
    with pytest.raises(ValueError, match="flops_per_token for big"):
        spent(metrics, accounting[accounting["arm"] == "small"])
    with pytest.raises(ValueError, match="perf/tokens_per_s"):
        spent(metrics[metrics["metric"] == "val/loss"], accounting)


def test_only_budgets_that_tell_more_than_tokens_are_shown() -> None:
    def metrics(speeds: dict[str, list[float]]) -> pd.DataFrame:
        rows = [
            (arm, seed, tokens, metric, value)
            for arm, of_seeds in speeds.items()
            for seed, speed in enumerate(of_seeds)
            for tokens in (1000, 2000)
            for metric, value in (("val/loss", 5.0), ("perf/tokens_per_s", speed))
        ]
        return pd.DataFrame(rows, columns=["arm", "seed", "tokens", "metric", "value"])

    equal = pd.DataFrame({"arm": ["a", "b"], "flops_per_token": [10, 10]})
    noisy, apart = metrics({"a": [90.0, 110.0], "b": [95.0, 105.0]}), metrics({"a": [100.0, 101.0], "b": [50.0, 50.5]})
    assert telling(noisy, equal) == ["tokens"]
    assert telling(apart, equal) == ["tokens", "seconds"]
    assert telling(noisy, equal.assign(flops_per_token=[10, 20])) == ["tokens", "flops"]
    one = apart[apart["seed"] == 0]
    assert telling(one, equal) == ["tokens"]  # the noise is not known
