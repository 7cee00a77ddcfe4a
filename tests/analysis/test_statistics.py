"""Statistics agree with scipy and with enumeration, keep their promised error rates, and refuse what is incomplete."""

import itertools
import math
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dsv2.statistics import paired as st
from dsv2.statistics.verdicts import Effect, IncompleteStudy, compare, judge

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state
DELTA = np.array([-0.31, -0.22, -0.45, 0.04, -0.18, -0.27])


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Each test draws the same numbers, whichever others run."""
    RNG.bit_generator.state = START


def one(values: dict[str, np.ndarray], margin: float | None = None, direction: str = "lower") -> Effect:
    (effect,) = judge(values, "val/loss", baseline="base", direction=direction, margin=margin, resamples=0)
    return effect


def shifted(delta: np.ndarray) -> dict[str, np.ndarray]:
    base = 5 + np.linspace(0, 0.1, len(delta))
    return {"base": base, "arm": base + delta}


def table(arms: tuple[str, ...] = ("base", "arm"), seeds: int = 4) -> pd.DataFrame:
    rows = [(arm, seed, "finished", 5 + 0.1 * seed - 0.2 * i) for i, arm in enumerate(arms) for seed in range(seeds)]
    return pd.DataFrame(rows, columns=["arm", "seed", "status", "val/loss"])


def test_t_interval_and_p_are_scipys() -> None:
    expected = stats.ttest_1samp(DELTA, 0)
    assert st.paired_p(DELTA) == pytest.approx(expected.pvalue, rel=1e-12)
    assert st.t_interval(DELTA) == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-12)


def test_sign_flip_p_enumerates_every_flip() -> None:
    observed = abs(DELTA.sum())
    flips = [abs(np.dot(signs, DELTA)) >= observed - 1e-12 for signs in itertools.product([-1, 1], repeat=6)]
    assert st.sign_flip_p(DELTA) == np.mean(flips)
    assert st.sign_flip_p(np.full(5, -1.0)) == 2 / 2**5  # its lowest
    many = RNG.normal(0.45, 1, 20)  # beyond the exact range it is sampled
    assert st.sign_flip_p(many) == pytest.approx(st.paired_p(many), abs=0.02)


def test_bca_interval_is_reproducible_and_near_t_for_many_seeds() -> None:
    many = RNG.normal(0.3, 1, 200)
    assert st.bca_interval(many) == st.bca_interval(many)
    assert st.bca_interval(many) == pytest.approx(tuple(st.t_interval(many)), abs=0.02)
    assert all(math.isnan(x) for x in (*st.bca_interval(np.ones(5)), *st.bca_interval(DELTA[:2])))


def test_equivalence_p_is_the_larger_one_sided_test() -> None:
    margin = 0.4
    lower = stats.ttest_1samp(DELTA, -margin, alternative="greater").pvalue
    upper = stats.ttest_1samp(DELTA, margin, alternative="less").pvalue
    assert st.equivalence_p(DELTA, margin) == pytest.approx(max(lower, upper), rel=1e-12)
    with pytest.raises(ValueError, match="margin"):
        st.equivalence_p(DELTA, 0.0)


def test_holm_matches_a_worked_example_and_keeps_nan() -> None:
    assert st.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    adjusted = st.holm([0.01, math.nan, 0.02])
    assert adjusted[0] == pytest.approx(0.03)  # the unknown one still counts in the family
    assert math.isnan(adjusted[1])
    assert adjusted[2] == pytest.approx(0.04)


@pytest.mark.parametrize(("n", "alpha"), [(3, 0.05), (6, 0.05), (6, 0.01)])
def test_the_detectable_effect_is_found_in_four_of_five_studies(n: int, alpha: float) -> None:
    trials = 20_000
    samples = RNG.normal(st.detectable_in_sd(n, alpha), 1, (trials, n))
    t = samples.mean(1) / (samples.std(1, ddof=1) / math.sqrt(n))
    found = (2 * stats.t.sf(np.abs(t), n - 1) < alpha).sum()
    assert stats.binomtest(int(found), trials, 0.8).pvalue > 1e-4


def test_seeds_needed_inverts_the_detectable_effect() -> None:
    n = st.seeds_needed(0.017, 0.028, 0.01)
    assert n is not None
    assert st.detectable_in_sd(n, 0.01) * 0.028 <= 0.017 < st.detectable_in_sd(n - 1, 0.01) * 0.028
    assert st.seeds_needed(1e-5, 0.028) is None
    enough = st.seeds_for_equivalence(0.03, 0.028)
    assert enough is not None
    p = [st.equivalence_p(RNG.normal(0, 0.028, enough), 0.03) for _ in range(2000)]
    assert 0.77 < np.mean(np.array(p) < 0.05) < 0.9


@pytest.mark.parametrize("arms", [1, 5])
def test_verdicts_on_equal_arms_are_false_in_at_most_one_study_of_twenty(arms: int) -> None:
    studies, false = 800, 0
    for _ in range(studies):
        values = {"base": RNG.normal(0, 1, 5)} | {f"arm{i}": RNG.normal(0, 1, 5) for i in range(arms)}
        effects = judge(values, "val/loss", baseline="base", direction="lower", resamples=0)
        false += any(effect.word in ("better", "worse") for effect in effects)
    rate = stats.binomtest(false, studies).proportion_ci(0.999)
    assert rate.low <= 0.05
    assert rate.high >= (0.05 if arms == 1 else 0.01)  # and the test is not asleep: exact for one arm


def test_verdict_words() -> None:
    noise = 0.01 * np.array([-0.9, 1.2, 0.3, -0.4, 1.5, -0.7])
    assert one(shifted(noise - 0.5)).word == "better"
    assert one(shifted(noise - 0.5), direction="higher").word == "worse"
    assert one(shifted(noise), margin=0.1).word == "equivalent"
    assert one(shifted(noise - 0.05), margin=0.2).verdict.endswith("a difference, but under the margin")
    assert one(shifted(noise * 0)).word == "identical"
    constant = one({"base": np.zeros(4), "arm": np.full(4, -0.25)})
    assert (constant.word, constant.note.partition("no spread")[1]) == ("undecided", "no spread")
    undecided = one(shifted(noise * 10), margin=0.05)
    assert undecided.word == "undecided"
    assert f"smaller than {undecided.detectable:.2g} would not have been seen" in undecided.note
    assert re.search(r"about \d+ seeds would decide .*, about \d+ would show equivalence within 0.05", undecided.note)


def test_one_seed_has_neither_interval_nor_verdict() -> None:
    effect = one(shifted(np.array([-3.0])), margin=0.1)
    assert effect.word == "none"
    assert "one seed" in effect.verdict
    assert all(math.isnan(x) for x in (effect.low, effect.high, effect.p, effect.p_holm, effect.detectable))
    assert effect.separated == ""


def test_few_seeds_say_that_the_sign_flip_test_cannot_carry_the_call() -> None:
    few, more = one(shifted(DELTA[:3] - 9)), one(shifted(np.tile(DELTA, 2) - 9))
    assert (few.word, more.word) == ("better", "better")
    assert "no lower than 0.25" in few.verdict
    assert "sign-flip" not in more.verdict


def test_separation_is_of_all_seeds() -> None:
    assert st.separation(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == "below"
    assert st.separation(np.array([5.0, 6.0]), np.array([3.0, 4.0])) == "above"
    assert st.separation(np.array([1.0, 3.5]), np.array([3.0, 4.0])) == ""


def test_an_incomplete_study_has_no_verdict_and_names_what_is_missing() -> None:
    results = table()
    results.loc[(results.arm == "arm") & (results.seed == 2), "status"] = "failed"
    results = results[~((results.arm == "base") & (results.seed == 0))]
    with pytest.raises(IncompleteStudy) as error:
        compare(results, "val/loss", arms=["base", "arm"], baseline="base", seeds=range(4), direction="lower")
    assert error.value.missing == ["base seed 0 (missing)", "arm seed 2 (failed)"]


def test_bad_tables_are_refused_by_name() -> None:
    def run(results: pd.DataFrame, metric: str = "val/loss") -> list[Effect]:
        return compare(results, metric, arms=["base", "arm"], baseline="base", seeds=range(4), direction="lower")

    broken = table()
    broken.loc[5, "val/loss"] = math.nan
    with pytest.raises(ValueError, match=r"val/loss='nan' is not valid: .* for arm 'arm', seeds \[1\]"):
        run(broken)
    with pytest.raises(ValueError, match="more than one trial for arm='base', seed=0"):
        run(pd.concat([table(), table().head(1)]))
    with pytest.raises(ValueError, match="judged='val/bpb' is not valid: a metric of the results"):
        run(table(), "val/bpb")
    assert run(table(), "routing/entropy") == []  # dense models route nothing


def test_arms_are_paired_by_seed_whatever_the_order_of_rows() -> None:
    results = table().sample(frac=1, random_state=1)
    (effect,) = compare(results, "val/loss", arms=["base", "arm"], baseline="base", seeds=range(4), direction="lower")
    assert effect.mean == pytest.approx(-0.2)
    assert effect.sd == pytest.approx(0, abs=1e-12)  # unpaired it would be 0.18


def test_random_floor_agrees_with_theory_and_with_the_device_limit() -> None:
    floor = st.random_floor(32, 6, 8, 2560)
    reached = 8 * (1 - math.comb(28, 6) / math.comb(32, 6))  # devices that hold one of 6 of 32 experts
    assert floor["routing/devices_per_token"] == pytest.approx(reached, rel=0.01)
    assert 0.02 < floor["routing/max_violation"] < 0.15
    assert floor["routing/dead_experts"] == 0
    limited = st.random_floor(32, 6, 8, 2560, max_devices=3)
    assert 2.9 < limited["routing/devices_per_token"] <= 3
    assert limited["routing/device_max_violation"] > floor["routing/device_max_violation"]
    assert st.random_floor(32, 6, 8, 100_000)["routing/max_violation"] < floor["routing/max_violation"] / 3
    small = st.random_floor(32, 6, 8, 2560, batch_tokens=256)  # smaller batches overflow more
    assert small["routing/overflow"] > 2 * floor["routing/overflow"]
    assert st.random_floor(8, 1, 4, 2)["routing/dead_experts"] >= 0.75
    with pytest.raises(ValueError, match="top_k=9"):
        st.random_floor(32, 9, 8, 100, max_devices=2)


def test_random_floor_of_one_token_is_exact() -> None:
    """One token takes 2 of 4 experts, kept to 1 of 2 devices: whatever is drawn, the measures are these."""
    floor = st.random_floor(4, 2, 2, 1, max_devices=1)
    assert floor == pytest.approx(
        {
            "routing/max_violation": 1 / (2 / 4) - 1,
            "routing/entropy": math.log(2) / math.log(4),
            "routing/dead_experts": 2 / 4,
            "routing/device_max_violation": 2 / 1 - 1,
            "routing/received_max_violation": 1 / (1 / 2) - 1,
            "routing/overflow": (2 - 1) / 2,  # 2 pairs on a device with room for 1
            "routing/devices_per_token": 1,
        }
    )


def test_random_floor_is_perfect_where_every_expert_is_chosen() -> None:
    """K = E: each device gets every token once and an equal share of the pairs."""
    floor = st.random_floor(6, 6, 3, 10)
    perfect = dict.fromkeys(floor, 0.0) | {"routing/entropy": 1.0, "routing/devices_per_token": 3.0}
    assert floor == pytest.approx(perfect)


def test_a_sampled_sign_flip_p_is_never_zero() -> None:
    """The observed signs are one of the flips; by 30 equal differences hardly another of 2^16 is as far out."""
    assert 1 / (2**16 + 1) <= st.sign_flip_p(np.full(30, -1.0)) <= 3 / (2**16 + 1)


def test_what_would_have_been_seen_allows_for_the_number_of_arms() -> None:
    """With m arms Holm's first step asks for p < alpha / m, so a difference must be larger to be seen."""
    values = shifted(DELTA) | {"other": shifted(DELTA)["arm"] + 1}
    for family, effects in (
        (1, [one(shifted(DELTA))]),
        (2, judge(values, "val/loss", baseline="base", direction="lower")),
    ):
        assert len(effects) == family
        expected = st.detectable_in_sd(6, 0.05 / family) * DELTA.std(ddof=1)
        assert [effect.detectable for effect in effects] == pytest.approx([expected] * family, rel=1e-9)


def test_rounding_is_neither_a_difference_nor_a_spread() -> None:
    """One shift on different values differs in the last bits; a t-test of that noise would find p = 0."""
    base = np.array([0.9, 1.7, 3.3, 4.7])
    for shift in (1e-6, -1e-4, 0.3):
        delta = (base + shift) - base
        assert np.ptp(delta) > 0
        effect = one({"base": base, "arm": base + shift}, margin=1.0)
        assert effect.word == "undecided"
        assert "no spread" in effect.note
        assert math.isnan(effect.p_equivalence)
    assert one({"base": base, "arm": base * (1 + 2e-16)}).word == "identical"
    small = one({"base": base, "arm": base + 1e-9 * np.array([-1.0, -2.0, -1.5, -1.7])})
    assert small.word == "better"  # small, and no rounding
    assert "-1.5e-09 [" in small.verdict or "-1.6e-09 [" in small.verdict


def test_equal_differences_leave_no_noise_for_equivalence() -> None:
    assert math.isnan(st.equivalence_p(np.full(4, 0.25), 1.0))
    assert math.isnan(st.equivalence_p(np.full(4, 0.1) + np.array([0, 1e-17, 0, 0]), 1.0))
    assert st.equivalence_p(np.zeros(4), 1.0) == 0
    for margin in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="margin="):
            st.equivalence_p(DELTA, margin)


def test_equivalence_is_corrected_over_the_arms() -> None:
    """Alone an arm is equivalent; beside four of which three are not, Holm asks for less than p = 0.05."""
    noise = np.array([-0.9, 1.2, 0.3, -0.4, 1.5, -0.7])
    margin = next(m for m in np.linspace(0.5, 3, 251) if st.equivalence_p(noise, m) < 0.04)
    base = np.linspace(5, 6, 6)
    alone = judge({"base": base, "arm": base + noise}, "x", baseline="base", direction="lower", margin=margin)
    assert [effect.word for effect in alone] == ["equivalent"]
    far = {f"far{i}": base + noise * (1 + i) + 9 for i in range(3)}
    among = judge({"base": base, "arm": base + noise} | far, "x", baseline="base", direction="lower", margin=margin)
    assert among[0].word == "undecided"
    assert among[0].p_equivalence == pytest.approx(4 * alone[0].p_equivalence)


def test_a_seed_is_counted_once_and_arms_have_equally_many() -> None:
    with pytest.raises(ValueError, match=r"seeds=\[0, 0, 1\]: each once"):
        compare(table(), "val/loss", arms=["base", "arm"], baseline="base", seeds=[0, 0, 1], direction="lower")
    with pytest.raises(ValueError, match=r"\(1,\) of the arm, \(4,\) of the baseline"):
        one({"base": np.zeros(4), "arm": np.zeros(1)})
    with pytest.raises(ValueError, match="baseline='base': one of arm"):
        one({"arm": np.zeros(3)})
