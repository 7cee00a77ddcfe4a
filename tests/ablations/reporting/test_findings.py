"""What a study found: of its own trials alone, and nothing where one of them is missing."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from ablations.reporting.findings import Findings, collect
from ablations.trials.looks import LOOKS
from dsv2.routing.floor import random_floor
from dsv2.statistics.paired import t_interval
from dsv2.statistics.verdicts import Contrast
from tests.references.tables import SIX, fake


def without(tables, arm: str, seed: int, status: str = "diverged") -> pd.DataFrame:
    """The results, in which one trial has not finished."""
    results = tables.results.copy()
    results.loc[(results["arm"] == arm) & (results["seed"] == seed), "status"] = status
    return results


def test_seeds_and_arms_outside_the_study_are_left_out(six_arms, study_text, findings_of):
    other = six_arms.results.assign(arm=six_arms.results["arm"].replace("paper", "another"))
    both = pd.concat([six_arms.results, other[other["arm"] == "another"]])
    findings = replace(findings_of(six_arms, study_text(six_arms, seeds=2)), results=both)
    assert list(findings.by_arm["n"]) == [2] * 6
    for effects in (findings.effects, findings.verdicts):
        assert {(effect.n, effect.arm) for effect in effects} == {(2, arm) for arm in SIX[1:]}
    assert len(findings.chosen) == len(findings.finished) == 12


def test_means_are_of_finished_trials(six_arms, findings_of):
    findings = replace(findings_of(six_arms), results=without(six_arms, "paper", 1))
    row = findings.by_arm.set_index("arm").loc["paper"]
    values = six_arms.results.query("arm == 'paper' and seed != 1")["val/loss"]
    assert row["n"] == 2
    assert row["val/loss mean"] == pytest.approx(values.mean())
    assert row["val/loss sd"] == pytest.approx(values.std(ddof=1))


def test_a_missing_trial_leaves_no_effects(six_arms, findings_of):
    findings = replace(findings_of(six_arms), results=without(six_arms, "paper", 1))
    assert findings.effects == findings.verdicts == []
    assert findings.missing == ["paper seed 1 (diverged)"]
    assert (findings.terms, findings.false_rates) == ([], [])
    rows = six_arms.results
    gone = replace(findings, results=rows[(rows["arm"] != "paper") | (rows["seed"] != 1)])
    assert gone.missing == ["paper seed 1 (missing)"]


def test_one_seed_is_no_effect(six_arms, study_text, findings_of):
    findings = findings_of(six_arms, study_text(six_arms, seeds=1))
    assert (findings.effects, findings.verdicts, findings.missing) == ([], [], [])


def test_arms_are_compared_with_their_own_baseline(six_arms, study_text, findings_of):
    two = study_text(six_arms, {"val/loss": "lower"}, baselines={"paper": "device", "device": "device"})
    effects = {effect.arm: effect for effect in findings_of(six_arms, two).verdicts}
    assert set(effects) == set(SIX) - {"none", "device"}
    loss = six_arms.results.set_index(["arm", "seed"])["val/loss"]
    assert effects["paper"].mean == pytest.approx((loss["paper"] - loss["device"]).mean())
    assert effects["expert"].mean == pytest.approx((loss["expert"] - loss["none"]).mean())


def test_only_a_grid_has_factors(study_text, findings_of):
    arms = ("low_off", "low_on", "high_off", "high_on")
    tables = fake(arms, seeds=3, layers=1, steps=4)
    assert findings_of(tables).terms == []
    levels = {
        arm: {"optim.lr": arm.split("_")[0], "loss.expert": arm.split("_")[1], "model.dim": 16} for arm in arms
    }  # the third does not vary
    findings = findings_of(tables, study_text(tables, {"val/loss": "lower"}, levels=levels))
    assert {term.term for term in findings.terms} == {"lr=high", "expert=on", "lr=high x expert=on"}


def test_identical_arms_tell_how_often_verdicts_are_false(study_text, findings_of):
    tables = fake(("a", "b"), seeds=10, layers=1, steps=4)
    study = study_text(tables, {"val/loss": "lower"}, seeds=10)
    assert findings_of(tables, study).false_rates == []
    (rate,) = findings_of(tables, replace(study, identical=("a", "b"))).false_rates
    assert (rate.metric, rate.contrasts, rate.seeds, rate.trials) == ("val/loss", 1, 5, 20)
    two = study_text(tables, seeds=10, identical=("a", "b"))
    assert [rate.metric for rate in findings_of(tables, two).false_rates] == ["", *two.metrics]
    few = replace(study, identical=("a", "b"), seeds=range(3))  # 6 trials: too few for two studies of two seeds
    assert findings_of(tables, few).false_rates == []


def test_contrasts_alone_are_judged_and_their_intervals_hold_together(six_arms, study_text, findings_of):
    contrasts = [Contrast("paper", "none", "routing/max_violation", 0.1), Contrast("expert", "none", "val/loss", 0.02)]
    findings = findings_of(six_arms, study_text(six_arms, contrasts=contrasts))
    assert [(effect.arm, effect.metric) for effect in findings.verdicts] == [(c.arm, c.metric) for c in contrasts]
    assert len(findings.effects) == 5 * 3 - 2
    values = six_arms.results.set_index(["arm", "seed"])["val/loss"]
    low, high = t_interval((values["expert"] - values["none"]).to_numpy(), 1 - 0.04 / 2)
    assert (findings.verdicts[1].low, findings.verdicts[1].high) == pytest.approx((low, high))


# ---- out of a store --------------------------------------------------------------------------------------------------


def test_a_store_is_collected_in_one_value(fill):
    planned = fill("balance_losses", leave_out=1)
    for number, trial in enumerate(planned.trials[:-1]):
        path = trial.folder / "result.json"
        made = {"git": {"commit": "abc"}, "device": "cpu" if number else "gpu"}
        times = {"started": f"2026-11-{10 + number}", "ended": f"2026-11-{11 + number}", "data": {"corpus": "c"}}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"provenance": made} | times))
    findings = collect(planned)
    assert isinstance(findings, Findings)
    assert findings.study.name == "balance_losses"
    assert len(findings.results) == 18
    assert findings.missing == ["paper_limited seed 2 (unfinished)"]
    assert set(findings.metrics["metric"]) == {"val/accuracy"}
    assert list(findings.accounting["arm"]) == list(planned.arms)
    assert findings.provenance == {
        "command": planned.command,
        "git": {"commit": "abc"},
        "device": ["gpu", "cpu"],  # they differ
        "started": "2026-11-10",
        "ended": "2026-11-27",
        "data": {"corpus": "c"},
    }


def test_the_floor_is_that_of_a_random_router_over_as_many_tokens(small, fill):
    findings = collect(small)
    batch = {"batch_tokens": 4 * 32, "max_devices": None}
    assert findings.step_floor == random_floor(8, 2, 4, 2 * 4 * 32, **batch)  # logged every 2 steps
    assert findings.final_floor == random_floor(8, 2, 4, 512, **batch)
    dense = collect(fill("attention_dense", seeds=(0,)))
    assert (dense.step_floor, dense.final_floor) == ({}, {})


def test_a_store_without_trials_has_only_a_plan(six):
    findings = collect(six)
    assert findings.provenance == {"command": six.command}
    assert len(findings.missing) == 6
    assert list(findings.by_arm["n"]) == [0] * 6
    assert np.isnan(findings.results["tokens"].astype(float)).all()


def test_showing_verdicts_is_a_look_and_showing_them_again_is_the_same(mine, fill):
    first = fill(mine, seeds=(0, 1, 2))
    before = collect(first)
    assert (before.look.number, before.look.error) == (1, pytest.approx(0.04))
    stored = (first.folder / LOOKS).read_text()
    assert "better" in stored
    assert collect(first).verdicts == before.verdicts
    assert (first.folder / LOOKS).read_text() == stored


def test_a_study_that_cannot_be_judged_is_not_looked_at(mine, fill):
    collect(fill(mine, leave_out=1))
    alone = fill(mine | {"name": "alone"}, seeds=(0,))
    collect(alone)
    assert not list(alone.folder.parents[1].rglob(LOOKS))
