"""Arms that start from the weights of another arm: how they are planned, what they cost, what is refused."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsv2.alignment.grpo import GRPO
from dsv2.config import ConfigError
from dsv2.metrics import BUDGETS
from dsv2.study.files import definition
from dsv2.study.plan import Plan

LONGER = ["trainer.sequence_length=256", "model/rope=yarn", "trainer.tokens=25600"]


@pytest.fixture
def node(pair_file: Path) -> dict[str, Any]:
    """A study in which two arms follow one another."""
    node = yaml.safe_load(pair_file.read_text()) | {"name": "mine", "differs": ["tokens", "flops_per_token"]}
    node["equal"] = ["total_params"]
    node["arms"]["longer"] = {"about": "goes on", "init_from": "none", "overrides": LONGER}
    node["arms"]["measured"] = {"about": "no more", "init_from": "longer", "overrides": ["trainer.tokens=0"]}
    return node


@pytest.fixture
def pair_file() -> Path:
    return Path(__file__).parents[1] / "ablations" / "pair.yaml"


def changed(node: dict[str, Any], arm: str, **values: Any) -> dict[str, Any]:
    """The study with other values for an arm."""
    other = copy.deepcopy(node)
    other["arms"][arm] = {"about": "", **other["arms"].get(arm, {}), **values}
    return other


def test_the_tokens_of_an_arm_are_those_since_random_weights(node: dict[str, Any]) -> None:
    plan = Plan(node, "smoke")
    rows = {row["arm"]: (row["tokens"], row["steps"]) for row in plan.budgets()}
    own = 12 * 8 * 256  # of the longer arm
    assert rows == {
        "none": (51200, 50),
        "expert": (51200, 50),
        "longer": (51200 + own, 12),
        "measured": (51200 + own, 0),
    }
    with pytest.raises(ConfigError, match=r"arms.longer.tokens=75776 is not valid: within 1% of the 51,200 of none"):
        Plan(node | {"differs": ["flops_per_token"]}, "smoke")


def test_fingerprints_follow_those_of_the_origin(node: dict[str, Any], tmp_path: Path) -> None:
    def names(plan: Plan) -> dict[str, str]:
        return {arm: plan.trial(arm, 0, None, tmp_path).fingerprint() for arm in plan.arms}

    one, other = names(Plan(node, "smoke")), names(Plan(changed(node, "none", overrides=["loss.expert=1e-9"]), "smoke"))
    assert len({*one.values(), *other.values()}) == 7
    assert one["expert"] == other["expert"]
    origin = Plan(node, "smoke").trial("longer", 3, None, tmp_path).init_from
    first = Plan(node, "smoke").trial("none", 3, None, tmp_path)
    assert (origin.run, origin.step, origin.trial) == (str(tmp_path / first.fingerprint()), 50, first.fingerprint())
    assert first.init_from is None


def test_on_a_probe_an_arm_starts_from_the_other_on_that_probe(node: dict[str, Any], tmp_path: Path) -> None:
    short = ["trainer.sequence_length=128", "trainer.tokens=25600"]
    plan = Plan(changed(node, "longer", overrides=short) | {"probes": ["copying"]}, "smoke")
    first = plan.trial("none", 0, "copying", tmp_path).fingerprint()
    assert plan.trial("longer", 0, "copying", tmp_path).init_from.trial == first
    assert plan.trial("none", 0, None, tmp_path).fingerprint() != first


def test_what_the_solver_gave_the_origin_is_kept(node: dict[str, Any]) -> None:
    narrow = changed(node, "none", baseline="expert", overrides=["loss.expert=0", "model.attention.kv_latent_dim=12"])
    plan = Plan(narrow | {"adjust": {"dense.width": 4}, "differs": [*BUDGETS][1:], "baseline": "expert"}, "smoke")
    assert plan.changes["none"]
    assert plan.changes["longer"] == plan.changes["measured"] == plan.changes["none"]
    assert plan.configs["longer"].model.shapes() == plan.configs["none"].model.shapes()


def test_a_study_may_start_from_a_run_as_a_whole(node: dict[str, Any], trained: Path, quick: list[str]) -> None:
    words = ["init_from=toy/smoke/moe/0", *[word for word in quick if word.startswith(("data", "model"))]]
    plan = Plan(node, "smoke", [*words, "model.vocab_size=320", "benchmarks=none"])
    assert plan.configs["none"].init_from.weights == plan.configs["expert"].init_from.weights
    assert plan.configs["none"].init_from.weights is not None
    assert plan.configs["longer"].init_from.trial is not None


@pytest.mark.parametrize(
    ("arm", "values", "message"),
    [
        ("longer", {"init_from": "other"}, "arms.longer.init_from='other' is not valid: an arm that does not start"),
        ("none", {"init_from": "measured"}, "arms.none.init_from='measured' is not valid: an arm that does not start"),
        ("none", {"init_from": "none"}, "arms.none.init_from='none' is not valid: an arm that does not start"),
        (
            "longer",
            {"overrides": ["model.dim=32"]},
            r"arms.longer.init_from='none' is not valid: .* embedding is \[2048, 64\] there and \[2048, 32\] here",
        ),
        (
            "longer",
            {"overrides": ["data.vocab_size=512", "model.vocab_size=2048"]},
            "arms.longer.data.vocab_size=512 is not valid: 2048, as in none",
        ),
        ("none", {"overrides": ["trainer.tokens=0"]}, "trainer.tokens=0 is not valid: .* needs init_from"),
    ],
)
def test_what_cannot_follow_is_refused(node: dict[str, Any], arm: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Plan(changed(node, arm, **values), "smoke")


def test_an_arm_that_only_evaluates_does_so_on_probes_too(node: dict[str, Any]) -> None:
    """Whatever the scale trains there; other arms are trained."""
    plan = Plan(node | {"probes": ["recall"]}, "smoke")
    tokens = {arm: plan.run_of(arm, "recall").trainer.tokens for arm in ("none", "measured")}
    assert tokens["none"] > tokens["measured"] == 0


def test_an_arm_reads_the_trial_of_another_with_the_same_seed(tmp_path: Path) -> None:
    plan = Plan("reward_models", "smoke")
    assert plan.named_by("grpo_pair") == {"init_from": "sft", "objective.reward_models.reasoning": "rm_pair"}
    assert plan.named_by("sft") == {}
    run = plan.trial("grpo_pair", 3, None, tmp_path)
    assert isinstance(run.objective, GRPO.Config)
    read, start = run.objective.reward_models.reasoning, run.init_from
    assert read is not None
    assert start is not None
    judge, first = (plan.trial(arm, 3, None, tmp_path) for arm in ("rm_pair", "sft"))
    assert (read.trial, read.run) == (judge.fingerprint(), str(tmp_path / judge.fingerprint()))
    assert start.trial == first.fingerprint()
    assert judge.init_from is not None
    assert judge.init_from.trial == first.fingerprint()
    other = plan.trial("grpo_pair", 4, None, tmp_path).objective
    assert isinstance(other, GRPO.Config)
    assert other.reward_models.reasoning != read
    assert plan.configs["grpo_pair"].fingerprint() != plan.configs["grpo_point"].fingerprint()


def test_what_is_inherited_ends_where_a_part_is_chosen_anew() -> None:
    plan = Plan("alignment_tax", "smoke")
    assert plan.configs["preference"].objective is not None
    assert plan.configs["preference_text"].objective is None
    assert not any(word.startswith("objective.") for word in plan.words("preference_text"))


@pytest.mark.parametrize(
    ("reads", "message"),
    [
        (
            {"objective.reward_models.reasoning": "rm"},
            r"reads.objective.*='rm' is not valid: another arm, of sft, rm_pa",
        ),
        ({"objective.reward_models.reasoning": "grpo_pair"}, "='grpo_pair' is not valid: another arm"),
        ({"objective.reward_models.reasoning": "grpo_free"}, "arms of which each can be settled before the next"),
        ({"objective.reward_model.reasoning": "rm_pair"}, r"objective.reward_model"),
    ],
)
def test_what_cannot_be_read_is_refused(reads: dict[str, str], message: str) -> None:
    name, node = definition("reward_models")
    arms = {arm: dict(spec) for arm, spec in node["arms"].items()}
    arms["grpo_pair"]["reads"] = reads
    if "grpo_free" in reads.values():
        arms["grpo_free"] = arms["grpo_free"] | {"reads": {"objective.reward_models.reasoning": "grpo_pair"}}
    with pytest.raises(ConfigError, match=message):
        Plan({**node, "name": name, "arms": arms}, "smoke")
