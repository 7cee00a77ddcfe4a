"""What a study declares as its contrasts: typed, bounded, and refused in one line before anything is planned."""

import math
from typing import Any

import pytest

from dsv2.config import ConfigError
from dsv2.statistics.contrast import Contrast
from dsv2.study.contrasts import MOST, declared
from dsv2.study.files import names, read
from dsv2.study.plan import Plan

ARMS = ("none", "expert", "paper", "large", "large_paper")
BASELINES = {"large": "large", "large_paper": "large"}
JUDGED = {"val/loss": "lower", "routing/entropy": "higher"}


def contrasts(nodes: Any, **margins: float) -> tuple[Contrast, ...]:
    return declared(
        nodes,
        arms=ARMS,
        baseline_of=lambda arm: BASELINES.get(arm, "none"),
        judged=JUDGED,
        metric="val/loss",
        margins={name.replace("_", "/"): margin for name, margin in margins.items()},
    )


def node(**changes: Any) -> dict[str, Any]:
    return {"arm": "expert", "metric": "val/loss", "margin": 0.02} | changes


def test_contrasts_are_against_the_arms_own_baseline() -> None:
    assert contrasts([node(), node(arm="large_paper", metric="routing/entropy", margin=1)]) == (
        ("expert", "none", "val/loss", 0.02, None),
        ("large_paper", "large", "routing/entropy", 1.0, None),
    )


def test_a_contrast_may_be_against_any_other_arm() -> None:
    against = [node(against="paper"), node(arm="none", against="paper"), node(arm="none", against="large")]
    assert [contrast[:2] for contrast in contrasts(against)] == [
        ("expert", "paper"),
        ("none", "paper"),
        ("none", "large"),
    ]


def test_without_contrasts_every_arm_is_one_in_the_metric_of_the_study() -> None:
    default = contrasts(None)
    assert [(c.arm, c.baseline) for c in default] == [("expert", "none"), ("paper", "none"), ("large_paper", "large")]
    assert {c.metric for c in default} == {"val/loss"}
    assert all(math.isnan(c.margin) for c in default)
    assert {c.margin for c in contrasts(None, val_loss=0.5)} == {0.5}


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([], "contrasts=0 is not valid: from 1 to 20 contrasts"),
        ([node()] * (MOST + 1), "contrasts=21 is not valid: from 1 to 20"),
        (["expert"], "contrasts.0='expert' is not valid: a mapping with arm, metric and margin"),
        ([node(arm="none")], "contrasts.0.arm='none' is not valid: an arm with a baseline other than itself, expert, "),
        ([node(arm="other")], "contrasts.0.arm='other' is not valid: an arm"),
        ([node(metric="val/bpb")], "contrasts.0.metric='val/bpb' is not valid: one of the judged metrics, val/loss, "),
        ([node(margin=0)], "contrasts.0.margin=0.* is not valid: positive and finite"),
        ([node(margin=-1.0)], "contrasts.0.margin=-1.0 is not valid: positive and finite"),
        ([node(margin=math.nan)], "contrasts.0.margin=nan is not valid: positive and finite"),
        ([node(margin=math.inf)], "contrasts.0.margin=inf is not valid: positive and finite"),
        ([node(margin="0.1")], "contrasts.0.margin='0.1' is not valid: "),
        ([{"arm": "expert", "metric": "val/loss"}], "contrasts.0.margin=None is not valid: a value is required"),
        ([node(side="left")], "contrasts.0.side='left' is not valid: unknown key"),
        (
            [node(), node(margin=0.3)],
            r"contrasts.1=\['expert', 'val/loss'\] is not valid: each pair of arms and metric",
        ),
        ([node(), node(arm="none", against="expert")], r"contrasts.1=\['none', 'val/loss'\] is not valid: each pair"),
        ([node(against="other")], "contrasts.0.against='other' is not valid: one of the arms none, paper, large, "),
        ([node(against="expert")], "contrasts.0.against='expert' is not valid: one of the arms none, paper, "),
        ([node(arm="other", against="none")], "contrasts.0.arm='other' is not valid: one of the arms none, expert, "),
    ],
)
def test_what_is_no_contrast_is_refused_by_name(nodes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        contrasts(nodes)


def test_margins_stand_in_one_place() -> None:
    with pytest.raises(ConfigError, match=r"margin=.* is not valid: none beside `contrasts`"):
        contrasts([node()], val_loss=0.5)


@pytest.mark.parametrize("name", names("sweep"))
def test_every_study_of_ours_declares_one_to_seven_contrasts(name: str) -> None:
    assert 1 <= len(read("sweep", name)["contrasts"]) <= 7
    plan = Plan(name, "smoke")
    assert len(plan.contrasts) == len(read("sweep", name)["contrasts"])
    assert all(contrast.margin > 0 for contrast in plan.contrasts)


def test_a_contrast_may_say_what_is_predicted() -> None:
    nodes = [{"arm": "b", "metric": "val/loss", "margin": 0.1, "predicted": "better"}]
    same = {"arms": ["a", "b"], "baseline_of": lambda _: "a", "judged": {"val/loss": "lower"}, "metric": "val/loss"}
    (contrast,) = declared(nodes, margins={}, **same)
    assert contrast.predicted == "better"
    with pytest.raises(ConfigError, match=r"contrasts\.0\.predicted.*better"):
        declared([nodes[0] | {"predicted": "lower"}], margins={}, **same)
