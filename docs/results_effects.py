"""The eight effects on which the literature agrees: what a committed report shows of each, or what would show it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import results_stored
from results_stored import LOADS, LOSS, Stored

from dsv2.metrics import quantity
from dsv2.statistics.paired import t_interval

Table = Callable[[Sequence[str], Sequence[Sequence[str]]], str]
RECALL = "recall/accuracy_in_training"


class Claim(NamedTuple):
    """One difference that an effect consists of; its interval excludes 0 on the side named, or lies in the margin."""

    arm: str
    baseline: str
    metric: str = LOSS
    side: int = -1  # -1: the arm is below the baseline; +1: above; 0: equivalent
    margin: float = 0.02  # only for equivalence


class Effect(NamedTuple):
    """An effect, and where it is looked for."""

    what: str
    studies: tuple[str, ...]  # the first that has a report counts; none: no study measures it
    claims: tuple[Claim, ...]
    missing: str = ""  # what shows it, without a study


def _own_load() -> tuple[Claim, ...]:
    own = dict(zip(("expert", "device", "communication"), LOADS, strict=False))
    return tuple(Claim(arm, other, load) for arm, load in own.items() for other in own if other != arm)


EFFECTS = (
    Effect(
        "MoE beats a dense model of equal active parameters",
        ("moe_baselines",),
        (Claim("deepseek_moe", "dense_active"),),
    ),
    Effect(
        "each balance loss moves its own load more than the other losses do",
        ("balance_own", "balance_losses"),
        _own_load(),
    ),
    Effect(
        "fine-grained and shared experts beat GShard of equal size, with and without dropping",
        ("moe_baselines",),
        (Claim("deepseek_moe", "top2"), Claim("deepseek_moe", "gshard")),
    ),
    Effect(
        "switching the shared expert off hurts more than any routed expert replaces",
        (),
        (),
        "no study masks shared experts; `python -m dsv2 analyse RUN` masks routed ones",
    ),
    Effect(
        "at most 3 devices per token are equivalent to no limit, 1 is worse",
        ("device_limit",),
        (Claim("m3", "unlimited", side=0), Claim("m1", "unlimited", side=1)),
    ),
    Effect(
        "recall: MQA below GQA below MHA",
        ("attention_dense",),
        (Claim("mqa", "gqa", RECALL), Claim("gqa", "mha", RECALL)),
    ),
    Effect(
        "balance losses lower the drop rate; training with dropping does not hurt evaluation without",
        ("token_dropping",),
        (Claim("paper", "unbalanced", "routing/drop_rate"), Claim("paper", "none", side=0)),
    ),
    Effect(
        "YaRN beats interpolation beyond the trained length, without and with tuning",
        ("context_extension",),
        (Claim("yarn", "interpolation", "bench/loss_8x"), Claim("yarn_tuned", "interpolation_tuned", "bench/loss_8x")),
    ),
)


def eight(table: Table) -> str:
    """The table of effects: what each report says of it, and whether all of its intervals agree."""
    rows = [[str(number), effect.what, *_row(effect)] for number, effect in enumerate(EFFECTS, 1)]
    shown = sum(row[2] == "yes" for row in rows)
    text = (
        f"Shown: {shown} of {len(rows)}. An effect is shown if every 95% t interval of its differences excludes 0 on "
        "the side that it names or, for equivalence, lies within 0.02 nats."
    )
    return f"{table(['', 'effect', 'shown', 'differences, with 95% intervals', 'from'], rows)}\n\n{text}"


def _row(effect: Effect) -> list[str]:
    """Return whether it is shown, the differences, and the report or the command that would make one."""
    if not effect.studies:
        return ["not measured", "", effect.missing]
    study = next((name for name in effect.studies if (results_stored.RESULTS / name).is_dir()), None)
    if study is None:
        return ["not run", "", f"`python -m ablations.run sweep={effect.studies[0]} scale=tiny`"]
    stored = Stored.largest(study)
    said = [_said(stored, claim) for claim in effect.claims]
    link = f"{study} at {stored.folder.name}, {stored.seeds} seeds"
    return ["yes" if all(holds for holds, _ in said) else "no", "; ".join(text for _, text in said), link]


def _said(stored: Stored, claim: Claim) -> tuple[bool, str]:
    """Return whether a claim holds, and its difference in words."""
    each = stored.paired(claim.arm, claim.baseline, claim.metric)
    low, high = t_interval(each)
    holds = {-1: high < 0, 1: low > 0, 0: -claim.margin < low and high < claim.margin}[claim.side]
    name = "" if claim.metric == LOSS else f", {quantity(claim.metric).name}"
    return bool(
        holds
    ), f"`{claim.arm}` - `{claim.baseline}`{name} {stored.difference(claim.arm, claim.baseline, claim.metric)}"
