"""How hard tasks are for a model: what it gets right before it is trained on them by their rewards."""

from collections.abc import Sequence

import pandas as pd

from dsv2.evaluation.following import Verified, pass_at

TEACHES = (0.2, 0.8)  # shares of right answers between which most groups have right and wrong ones


def difficulty(groups: Sequence[Verified], domains: Sequence[str]) -> pd.DataFrame:
    """Return one row per task, and one of all: task, prompts, p_at_1, pass_at_g, zero_variance, teaches.

    p_at_1 is the share of right answers, pass_at_g that of prompts with at least one among their G, and zero_variance
    that of prompts whose answers are all right or all wrong, from which nothing can be learned.
    """
    by_task: dict[str, list[list[float]]] = {}
    for group in groups:
        if group.scores:
            by_task.setdefault(domains[group.prompt.domain], []).append(group.scores)
    rows = [_row(task, by_task[task]) for task in sorted(by_task)]
    every = [scores for task in by_task.values() for scores in task]
    return pd.DataFrame([*rows, _row("all", every)] if len(rows) != 1 else rows)


def _row(task: str, groups: list[list[float]]) -> dict[str, str | int | float | bool]:
    right = sum(map(sum, groups)) / max(sum(map(len, groups)), 1)
    count = max(len(groups), 1)
    return {
        "task": task,
        "prompts": len(groups),
        "p_at_1": right,
        "pass_at_g": sum(pass_at(len(scores), scores) for scores in groups) / count,
        "zero_variance": sum(len(set(scores)) == 1 for scores in groups) / count,
        "teaches": TEACHES[0] <= right <= TEACHES[1],
    }


def in_words(table: pd.DataFrame) -> str:
    """Return the table of `difficulty` in a line."""
    rows = (
        f"{row.task} p@1 {row.p_at_1:.2f}, pass@G {row.pass_at_g:.2f}, no variance {row.zero_variance:.0%}"
        for row in table.itertuples()
    )
    return "; ".join(rows)
