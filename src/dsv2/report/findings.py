"""Analyses as values, and those that are made from tables alone, of a model's routing or of routing traces."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from dsv2.plots import experts as plots_experts
from dsv2.printing import described
from dsv2.routing.coactivation import far_from_independent
from dsv2.routing.interventions import DoesNotApply

SAME_EXPERTS, ONE_EXPERT = "all tokens choose the same experts", "a single routed expert leaves no choice"
NO_PAIRS = "each token chooses one expert, so none are chosen together"


class Analysis(NamedTuple):
    """A finding with its tables and figures, keyed by file name."""

    title: str
    finding: str
    note: str
    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, Figure]
    problems: Sequence[str] = ()  # sentences about figures that could not be drawn


def drawn(
    title: str,
    finding: str,
    note: str,
    tables: Mapping[str, pd.DataFrame],
    drawings: Mapping[str, Callable[[], Figure]],
) -> Analysis:
    """Draw the figures of an analysis, each by itself."""
    figures, problems = dict[str, Figure](), list[str]()
    for name, draw in drawings.items():
        try:
            figures[name] = draw()
        except Exception as error:  # of any library; the tables hold what it would show
            problems.append(f"The figure {name} could not be drawn: {described(error)}.")
    return Analysis(title, finding, note, tables, figures, problems)


def by_token(table: pd.DataFrame, by_expert: pd.DataFrame, shuffled: str = "tokens shuffled") -> Analysis:
    """Report `token_information` and `expert_tokens`. Raises DoesNotApply if the choice of experts hardly varies."""
    if table["share_of_most"].isna().all():
        raise DoesNotApply("the choice of experts hardly varies")
    best = table.iloc[int(table["share_of_most"].argmax())]
    settled = f"layer {best['layer']:.0f}, the token determines {best['share_of_most']:.0%} of the choice of experts"
    return drawn(
        "Do experts specialise by token?",
        f"In {settled}; 100% would be a lookup table from token to experts.",
        f"Mutual information of token and expert, minus its value with {shuffled}, over its maximum. By expert: "
        "load over the mean, the share of its token-expert pairs that belong to its ten most frequent tokens, the same "
        "with tokens shuffled, and its most distinctive tokens.",
        {"tokens": table, "expert_tokens": by_expert},
        {
            "tokens": lambda: plots_experts.information_bars(table, "token", title=f"In {settled}"),
            "expert_tokens": lambda: plots_experts.token_concentration(
                by_expert,
                title=f"Ten tokens make up {by_expert['concentration'].median():.0%} of the median expert's load, "
                f"{by_expert['chance'].median():.0%} by chance",
            ),
        },
    )


def together(pairs: pd.DataFrame) -> Analysis:
    """Report `coactivation`."""
    far = far_from_independent(pairs)
    table = pairs.sort_values("ratio", ascending=False, kind="stable")
    frequent = table[table["expected"] >= 10]
    top = (frequent if len(frequent) else table).iloc[0]
    much = f"{top['ratio']:.1f} times as often as if they were independent"
    return drawn(
        "Which experts are chosen together?",
        f"Experts {top['expert']:.0f} and {top['other']:.0f} of layer {top['layer']:.0f} are chosen together {much}.",
        "Independent: choices with the same loads. far: share of pairs whose count is over 3 standard deviations away, "
        "0.3% by chance if tokens were independent, which in text they are not; log_ratio: mean of |log2(ratio)|.",
        {"coactivation": far, "pairs": table},
        {
            "coactivation": lambda: plots_experts.coactivation_heatmap(
                pairs, title=f"Pairs of experts are chosen up to {much}"
            )
        },
    )


def settling(table: pd.DataFrame, of: str) -> Analysis:
    """Report `saturation`; `of` says of which tokens."""
    steps = sorted(set(table["step"]))
    half = [step for step in steps if step <= steps[-1] / 2]
    when, shown = ("Halfway through training", half[-1]) if half else (f"After step {steps[0]}", steps[0])
    at = table[table["step"] == shown]
    settled = f"{when} {at['overlap'].mean():.0%} of a token's experts are its final ones"
    untrained = " Step 0 is the untrained router." if steps[0] == 0 else ""
    return drawn(
        "When does routing settle?",
        f"{settled}, {at['chance'].mean():.0%} by chance.",
        f"Overlap of the chosen experts with those after step {steps[-1]}, {of}. Chance: tokens shuffled, loads "
        f"unchanged.{untrained}",
        {"saturation": table},
        {"saturation": lambda: plots_experts.overlap_over_training(table, title=settled)},
    )
