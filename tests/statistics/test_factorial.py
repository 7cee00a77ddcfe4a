"""Contrasts find the effects that were put in, agree with statsmodels, and refuse a study with holes."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import AnovaRM

from dsv2.statistics.factorial import contrasts, factorial, factorial_rows, levels
from dsv2.statistics.verdicts import IncompleteStudy
from tests.references.factorial import EFFECT, PAIR, TWO, design_of, simulate


def judged(results: pd.DataFrame, **changed: Any) -> dict[str, Any]:
    arguments = {"seeds": sorted(set(results["seed"]))} | changed
    return {term.term: term for term in factorial(results, "val/loss", design_of(TWO), **arguments)}


def test_effects_without_noise_are_those_put_in() -> None:
    terms = judged(simulate(noise=0.0))
    assert terms["expert=0.003"].effect == pytest.approx(EFFECT["expert"] + PAIR / 2)  # mean over both device levels
    assert terms["device=0.05"].effect == pytest.approx(EFFECT["device"] + PAIR / 2)
    assert terms["expert=0.003 x device=0.05"].effect == pytest.approx(PAIR)
    for term in ("limit=on", "expert=0.003 x limit=on", "expert=0.003 x device=0.05 x limit=on"):
        assert (terms[term].effect, terms[term].low, terms[term].high) == (0, 0, 0)
    assert [term.order for term in terms.values()] == [1, 1, 1, 2, 2, 2, 3]


def test_intervals_are_those_of_a_repeated_measures_anova() -> None:
    """For two levels F = t^2 with 1 and n - 1 degrees of freedom, and the seed's interaction with the term as error."""
    results = simulate(noise=0.1)
    table = AnovaRM(results.rename(columns={"val/loss": "loss"}), "loss", "seed", within=list(TWO)).fit().anova_table
    terms = judged(results)
    assert len(terms) == len(table) == 7
    for name, row in table.iterrows():
        wanted = name.split(":")
        (term,) = [t for t in terms.values() if [part.split("=")[0] for part in t.term.split(" x ")] == wanted]
        half = stats.t.ppf(0.975, 5) * abs(term.effect) / math.sqrt(row["F Value"])
        assert (term.low, term.high) == pytest.approx((term.effect - half, term.effect + half), rel=1e-9)


def test_effects_are_the_coefficients_of_a_regression_with_seeds_as_blocks() -> None:
    results = simulate(noise=0.1).rename(columns={"val/loss": "loss"})
    coded = results.assign(**{f: np.where(results[f] == those[1], 0.5, -0.5) for f, those in TWO.items()})
    fit = ols("loss ~ C(seed) + expert * device * limit", data=coded).fit()
    for term in judged(results.rename(columns={"loss": "val/loss"})).values():
        name = ":".join(part.split("=")[0] for part in term.term.split(" x "))
        assert term.effect == pytest.approx(fit.params[name], rel=1e-9)
    # with many seeds of one noise, the intervals by seed and those of the pooled noise are the same
    many = simulate(seeds=400, noise=0.1).rename(columns={"val/loss": "loss"})
    coded = many.assign(**{f: np.where(many[f] == those[1], 0.5, -0.5) for f, those in TWO.items()})
    fit = ols("loss ~ C(seed) + expert * device * limit", data=coded).fit()
    term = judged(many.rename(columns={"loss": "val/loss"}))["expert=0.003"]
    assert (term.high - term.low) / np.diff(fit.conf_int().loc["expert"])[0] == pytest.approx(1, abs=0.1)


def test_a_factor_of_three_levels_is_compared_with_its_lowest() -> None:
    factors = {"rank": [64, 16, 32], "kind": ["gqa", "mla"]}  # numbers by size, names as they come
    design = design_of(factors)
    assert levels(design) == {"rank": [16, 32, 64], "kind": ["gqa", "mla"]}
    mean = {(16, "gqa"): 5.0, (32, "gqa"): 4.8, (64, "gqa"): 4.5, (16, "mla"): 4.9, (32, "mla"): 4.8, (64, "mla"): 4.6}
    rows = [
        (arm, seed, "finished", mean[cell["rank"], cell["kind"]] + 0.1 * seed)
        for arm, cell in design.items()
        for seed in range(3)
    ]
    results = pd.DataFrame(rows, columns=["arm", "seed", "status", "val/loss"])
    effects = {t.term: t.effect for t in factorial(results, "val/loss", design, seeds=range(3))}
    assert effects == pytest.approx(
        {
            "rank=32": (4.8 + 4.8) / 2 - (5.0 + 4.9) / 2,
            "rank=64": (4.5 + 4.6) / 2 - (5.0 + 4.9) / 2,
            "kind=mla": (4.9 + 4.8 + 4.6) / 3 - (5.0 + 4.8 + 4.5) / 3,
            "rank=32 x kind=mla": (4.8 - 4.8) - (4.9 - 5.0),
            "rank=64 x kind=mla": (4.6 - 4.5) - (4.9 - 5.0),
        }
    )
    assert all(abs(sum(weight.values())) < 1e-12 for weight in contrasts(design).values())


def test_holes_are_named() -> None:
    results = simulate(seeds=2)
    part = {arm: cell for arm, cell in design_of(TWO).items() if arm != "0.003-0.05-on"}
    with pytest.raises(IncompleteStudy, match=r"expert=0.003, device=0.05, limit=on \(no arm\)"):
        factorial(results, "val/loss", part, seeds=[0, 1])
    lost = results[~((results["arm"] == "0.0-0.05-off") & (results["seed"] == 1))]
    with pytest.raises(IncompleteStudy, match=r"0.0-0.05-off seed 1 \(missing\)"):
        judged(lost)
    with pytest.raises(ValueError, match="arm 'b' has the factors"):
        levels({"a": {"x": 0}, "b": {"y": 0}})
    with pytest.raises(ValueError, match="'a' and 'b' are the same cell, x=0"):
        levels({"a": {"x": 0}, "b": {"x": 0}})
    with pytest.raises(ValueError, match="factor 'x' has only the level 0"):
        levels({"a": {"x": 0}})


def test_one_seed_has_no_interval() -> None:
    terms = list(judged(simulate(seeds=1)).values())
    assert all(math.isnan(end) for term in terms for end in (term.low, term.high, term.sd))


def test_the_table_has_differences_and_no_verdicts() -> None:
    header, rows = factorial_rows(list(judged(simulate()).values()))
    assert header == ["metric", "term", "effect [95% each]"]
    assert [len(row) for row in rows] == [3] * 7
    assert rows[0][2].startswith("-0.1")
