"""A study at a scale: arms as typed runs, at budgets that are equal where its file says so."""

import itertools
from dataclasses import replace

import pytest

from dsv2.config import CONFIG_DIR, ConfigError
from dsv2.metrics import BUDGETS
from dsv2.study.files import read
from dsv2.study.plan import EQUAL_WITHIN, Plan
from dsv2.training.losses import BalanceLoss

SCALES = sorted(path.stem for path in (CONFIG_DIR / "scales").glob("*.yaml"))
STUDIES = sorted(path.stem for path in (CONFIG_DIR / "sweep").glob("*.yaml"))


RATES = {"init_and_lr", "attention_lr"}  # studies whose arms differ in their optimiser
RATES |= {"grpo_online_offline", "reward_models", "grpo_stages", "alignment_tax"}


@pytest.fixture
def balance_losses() -> dict:
    """The study of the balance losses as a dictionary, under another name and without its contrasts."""
    return read("sweep", "balance_losses") | {"name": "mine", "contrasts": None}


# ---- the studies here ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_plans_at_every_scale(name, scale):
    planned = Plan(name, scale)
    assert len(planned.seeds) >= planned.file.seeds >= 2
    rows = {row["arm"]: row for row in planned.budgets()}
    for arm, row in rows.items():
        assert row["mismatch"] <= EQUAL_WITHIN
        reference = rows[planned.baseline_of(arm)]
        for budget in BUDGETS:
            if budget not in (*planned.file.differs, *planned.arms[arm].differs):
                assert row[budget] == pytest.approx(reference[budget], rel=EQUAL_WITHIN), (arm, budget)
    assert all(run.scale == scale and run.study == name for run in planned.configs.values())
    if name not in RATES:
        for arm, probe in itertools.product(planned.arms, (None, *planned.probes)):
            assert planned.run_of(arm, probe).optim == planned.run_of(planned.baseline_of(arm), probe).optim
    of_one_seed = [
        replace(planned.run_of(arm, probe), seed=planned.arms[arm].seed_offset)
        for arm in planned.arms
        for probe in (None, *planned.probes)
    ]
    fingerprints = {run.fingerprint() for run in of_one_seed}
    assert len(fingerprints) == len(planned.arms) * (1 + len(planned.probes))


def test_the_six_arms_are_what_the_study_says():
    configs = Plan("balance_losses", "smoke").configs
    alphas = {arm: (run.loss.expert, run.loss.device, run.loss.communication) for arm, run in configs.items()}
    assert alphas == {
        "none": (0, 0, 0),
        "expert": (0.003, 0, 0),
        "device": (0, 0.05, 0),
        "communication": (0, 0, 0.02),
        "paper": (0.003, 0.05, 0.02),
        "paper_limited": (0.003, 0.05, 0.02),
    }
    limited = configs["paper_limited"].model.ffn
    assert (limited.max_devices, limited.dropping.capacity_factor, limited.dropping.exempt_ratio) == (3, 1.0, 0.1)
    assert configs["paper"].model.ffn.dropping is None


def test_a_grid_is_every_combination():
    planned = Plan("balance_grid", "smoke")
    assert len(planned.arms) == 8
    assert planned.configs["expert0.003_device0.0_communication0.02"].loss == BalanceLoss.Config(
        expert=0.003, device=0.0, communication=0.02
    )


def test_arms_of_two_sizes_have_baselines_of_their_own():
    planned = Plan("attention_moe", "smoke")
    assert {arm: planned.baseline_of(arm) for arm in planned.arms}["large_mla"] == "large_mha"
    assert planned.configs["large_mla"].model.dim > planned.configs["small_mla"].model.dim
    key = {arm: run.model.attention for arm, run in planned.configs.items()}
    assert (key["small_mha_key_norm"].key_norm, key["small_mha_partial_rope"].key_norm) == (True, False)


# ---- budgets ---------------------------------------------------------------------------------------------------------


def test_the_larger_models_of_tiny_train_at_the_rate_that_suits_them():
    """At 3e-3 the larger MHA lost to the smaller one, and MLA's lead over it was 0.08 nats longer."""
    for scale, large in (("smoke", 3e-3), ("tiny", 1.5e-3)):
        planned = Plan("attention_moe", scale)
        rates = {arm: planned.configs[arm].optim.highest_lr for arm in planned.arms}
        assert rates == {arm: large if spec.size == "large" else 3e-3 for arm, spec in planned.arms.items()}
        assert {planned.run_of(arm, "recall").optim.highest_lr for arm in planned.arms} == {3e-3}


def test_table_9_is_planned_with_its_tokens():
    tokens = {row["arm"]: row["tokens"] for row in Plan("attention_moe", "paper").budgets()}
    for arm, published in (("small_mla", 1.33e12), ("small_mha", 1.33e12), ("large_mla", 420e9), ("large_mha", 420e9)):
        assert tokens[arm] == pytest.approx(published, rel=1e-4)


def test_the_solver_holds_the_budgets_equal():
    planned = Plan("kv_rank", "smoke")
    assert planned.changes["rank1"] == {}
    assert planned.changes["quarter"]["dense.width"] > 176 > planned.changes["double"]["dense.width"]
    for arm, changes in planned.changes.items():
        assert planned.configs[arm].model.dense.width == changes.get("dense.width", 176)


def test_duplicate_and_unequal_arms_are_refused(balance_losses):
    same = {name: {"about": "", "overrides": ["loss.expert=0.1"]} for name in ("none", "other")}
    with pytest.raises(ConfigError, match=r"arms\.other=.* it is the same run as none"):
        Plan(balance_losses | {"arms": same}, "smoke")
    wider = {
        "none": {"about": "", "overrides": []},
        "wide": {"about": "", "overrides": ["model.ffn.expert_dim=32"]},
    }
    with pytest.raises(
        ConfigError, match=r"arms\.wide\.total_params=\d+ is not valid: within 1% of the [\d,]+ of none"
    ):
        Plan(balance_losses | {"arms": wider}, "smoke")
    with pytest.raises(ConfigError, match=r"arms\.wide\.total_params=.*since `differs` does not name it"):
        Plan(balance_losses | {"arms": wider, "equal": ["tokens"]}, "smoke")


def test_an_arm_may_say_that_it_alone_differs(balance_losses):
    apart = ["total_params", "active_params", "flops_per_token"]
    wide = {"about": "", "overrides": ["model.ffn.expert_dim=32"], "differs": apart}
    planned = Plan(balance_losses | {"arms": {"none": {"about": "", "overrides": []}, "wide": wide}}, "smoke")
    none, other = planned.budgets()
    assert other["total_params"] > 1.01 * none["total_params"]
    assert other["mismatch"] == 0  # of what it does hold equal


def test_the_solver_says_what_it_cannot_reach(balance_losses):
    arms = {"none": {"about": "", "overrides": []}, "wide": {"about": "", "overrides": ["model.ffn.expert_dim=64"]}}
    node = balance_losses | {"arms": arms, "adjust": {"num_layers": 1}}
    with pytest.raises(
        ConfigError, match=r"arms\.wide\.adjust=.* nothing brings every budget within 1\.0%; closest is"
    ):
        Plan(node, "smoke")


# ---- overrides, probes and seeds -------------------------------------------------------------------------------------


def test_later_overrides_win(balance_losses):
    """Scale, study at the scale, study, arm, arm at the scale, what was asked for."""
    arm = {"about": "", "overrides": ["loss.expert=0.3"], "scales": {"tiny": ["loss.expert=0.4"]}}
    node = balance_losses | {
        "scales": {"smoke": ["loss.device=0.1", "loss.expert=0.1"]},
        "base": ["loss.expert=0.2"],
        "arms": {"none": {"about": "", "overrides": []}, "arm": arm},
    }
    smoke = {name: run.loss for name, run in Plan(node, "smoke").configs.items()}
    assert (smoke["none"].expert, smoke["arm"].expert, smoke["arm"].device) == (0.2, 0.3, 0.1)
    assert Plan(node, "tiny").configs["arm"].loss.expert == 0.4
    assert Plan(node, "tiny", ["loss.device=0.7"]).configs["arm"].loss.device == 0.7


def test_a_scale_without_the_size_of_an_arm_is_refused(balance_losses):
    arms = {"none": {"about": "", "overrides": []}, "big": {"about": "", "size": "huge", "overrides": []}}
    with pytest.raises(ConfigError, match=r"arms\.big\.size='huge' is not valid: a size of scale smoke"):
        Plan(balance_losses | {"arms": arms}, "smoke")


def test_words_of_an_arm_and_probe_are_those_of_its_run():
    planned = Plan("attention_dense", "smoke")
    assert planned.run_of("mqa").probe is None
    assert planned.run_of("mqa", "recall").probe == "recall"
    assert planned.run_of("mqa", "recall") is planned.run_of("mqa", "recall")
    with pytest.raises(ConfigError, match="probe='chess' is not valid: one of this study's, recall"):
        planned.words("mqa", "chess")
    with pytest.raises(ConfigError, match="arm='mqqa' is not valid: one of"):
        planned.words("mqqa")


def test_there_are_as_many_seeds_as_the_claim_needs(balance_losses):
    assert Plan(balance_losses | {"seeds": 2}, "smoke").seeds == (0, 1, 2)  # the scale's
    assert Plan(balance_losses | {"seeds": 7}, "smoke").seeds == (0, 1, 2, 3, 4, 5, 6)


def test_an_unknown_scale_is_refused():
    with pytest.raises(ConfigError, match="scale='huge' is not valid: choose one of base, paper"):
        Plan("balance_losses", "huge")


def test_a_study_is_decided_at_its_planned_seeds_or_its_last_planned_look(balance_losses):
    assert Plan(balance_losses, "smoke").decided_at == len(Plan(balance_losses, "smoke").seeds) == 5
    assert Plan(balance_losses, "small").decided_at == 6
    assert Plan(balance_losses | {"looks": [4, 8, 16]}, "smoke").decided_at == 16
