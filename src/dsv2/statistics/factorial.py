"""Main effects and interactions of a full factorial study, with seeds as blocks.

n seeds, c cells (arms). A term is a contrast: weights over the cells that sum to zero. Its value at one seed is the
weighted sum of that seed's cells, which cancels effects shared by all cells; its interval is a t interval over the n
values. An analysis of variance would pool the noise of all cells and gain degrees of freedom, but cells whose routing
collapses are noisier than others, and contrasts by seed need no equal variances.

A main effect is the mean of the metric at a level minus that at the factor's lowest level, over all levels of the
other factors. A two-way interaction is the change of one effect when the other factor is raised from its lowest level:
the difference of differences. A three-way interaction is the change of that with the third factor. A factor of k levels
has k - 1 contrasts, each of a level with the lowest, so linearity is not assumed. Numeric levels are sorted, others
keep the order of the arms. Terms are exploratory: intervals are 95% each, and there are no verdicts.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from dsv2.metrics import quantity
from dsv2.statistics.paired import Values, t_interval, without_rounding
from dsv2.statistics.verdicts import IncompleteStudy, difference_text, paired_values

Level = str | float | bool
Design = Mapping[str, Mapping[str, Level]]  # arm -> factor -> level

FACTORIAL_RULE = (
    "Every term is a contrast of the arms, seed by seed; intervals are 95% t intervals over seeds. A main effect is "
    "the mean at the level minus the mean at the factor's lowest level, over all levels of the other factors; an "
    "interaction is the joint effect of the levels minus the sum of their separate effects. Intervals are of one term "
    "each: of many terms without any effect, one in twenty excludes 0."
)


class Term(NamedTuple):
    """One main effect or interaction in one metric. With one seed, the interval is NaN."""

    term: str  # "device=0.05", "expert=0.003 x device=0.05"
    order: int  # 1 for a main effect, 2 and 3 for interactions
    metric: str
    n: int
    effect: float
    sd: float  # of the contrast over seeds
    low: float  # 95% t interval
    high: float


# ---- the design ------------------------------------------------------------------------------------------------------


def levels(design: Design) -> dict[str, list[Level]]:
    """Return each factor's levels, lowest first. Raises `IncompleteStudy`, naming combinations without an arm."""
    if not design:
        raise ValueError("design={}: must have at least one factor with two levels")
    factors = list(next(iter(design.values())))
    by_factor: dict[str, list[Level]] = {factor: [] for factor in factors}
    cells: dict[tuple[Level, ...], str] = {}
    for arm, cell in design.items():
        if set(cell) != set(factors):
            raise ValueError(f"design: arm {arm!r} has the factors {sorted(cell)}, others have {sorted(factors)}")
        combination = tuple(cell[factor] for factor in factors)
        if combination in cells:
            same = f"arms {cells[combination]!r} and {arm!r} are the same cell"
            raise ValueError(f"design: {same}, {_cell(factors, combination)}")
        cells[combination] = arm
        for factor in factors:
            if cell[factor] not in by_factor[factor]:
                by_factor[factor].append(cell[factor])
    for factor, of_factor in by_factor.items():
        if len(of_factor) < 2:
            raise ValueError(f"design: factor {factor!r} has only the level {of_factor[0]!r}; it needs at least two")
    missing = [combination for combination in itertools.product(*by_factor.values()) if combination not in cells]
    if missing:
        raise IncompleteStudy([f"{_cell(factors, combination)} (no arm)" for combination in missing])
    return {factor: sorted(values) if _numeric(values) else values for factor, values in by_factor.items()}


def contrasts(design: Design) -> dict[tuple[tuple[str, Level], ...], dict[str, float]]:
    """Return the weights of the arms for each term, a tuple of (factor, level); main effects come first."""
    ordered = levels(design)
    terms = {}
    for order in range(1, min(len(ordered), 3) + 1):
        for factors in itertools.combinations(ordered, order):
            for raised in itertools.product(*(ordered[factor][1:] for factor in factors)):
                term = tuple(zip(factors, raised, strict=True))
                terms[term] = {arm: _weight(cell, term, ordered) for arm, cell in design.items()}
    return terms


def _weight(cell: Mapping[str, Level], term: Iterable[tuple[str, Level]], ordered: Mapping[str, list[Level]]) -> float:
    sign, averaged = 1.0, dict(ordered)
    for factor, raised in term:
        lowest = averaged.pop(factor)[0]
        sign *= (cell[factor] == raised) - (cell[factor] == lowest)
    return sign / math.prod(len(of_factor) for of_factor in averaged.values())


# ---- the effects -----------------------------------------------------------------------------------------------------


def factorial(results: pd.DataFrame, metric: str, design: Design, *, seeds: Sequence[int]) -> list[Term]:
    """Estimate every main effect and every interaction of two and three factors in one metric.

    `results` has one row per trial with columns arm, seed, status and the metric. Raises `IncompleteStudy` for
    combinations without an arm and for missing trials.
    """
    weights = contrasts(design)
    values = paired_values(results, metric, list(design), seeds)
    if missing := [arm for arm in design if arm not in values]:
        raise ValueError(f"results: {', '.join(missing)} have no {metric}; a factorial study needs it for every arm")
    terms = []
    for factors, weight in weights.items():
        of_seeds = _sum(values, weight)
        sd = float(of_seeds.std(ddof=1)) if of_seeds.size > 1 else math.nan
        name = " x ".join(f"{factor}={level_text(level)}" for factor, level in factors)
        moments = float(of_seeds.mean()), sd
        terms.append(Term(name, len(factors), metric, of_seeds.size, *moments, *t_interval(of_seeds)))
    return terms


def _sum(values: Mapping[str, Values], weight: Mapping[str, float]) -> Values:
    """Return the contrast (n,), seed by seed."""
    terms = np.array([weight[arm] * values[arm] for arm in weight])  # (c, n)
    return without_rounding(terms.sum(0), float(np.abs(terms).sum(0).max()))


# ---- text ------------------------------------------------------------------------------------------------------------


def factorial_rows(terms: Sequence[Term]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the report's table."""
    rows = [
        [quantity(term.metric).name, term.term, difference_text(term.effect, term.low, term.high)] for term in terms
    ]
    return ["metric", "term", "effect [95% each]"], rows


def level_text(level: Level) -> str:
    """Format a level as it appears in the name of a term."""
    return f"{level:g}" if isinstance(level, int | float) and not isinstance(level, bool) else str(level)


def _cell(factors: Iterable[str], combination: Iterable[Level]) -> str:
    return ", ".join(f"{factor}={level_text(level)}" for factor, level in zip(factors, combination, strict=True))


def _numeric(values: Sequence[Level]) -> bool:
    return all(isinstance(level, int | float) for level in values)
