"""Match a model's budgets to targets by the smallest change of a few counts and widths.

Every budget is affine in each key with the others fixed. So a few accounts determine the budgets of all candidates, the
search is arithmetic, and its result is verified by its own account.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from typing import Any, NamedTuple, cast, get_type_hints

import numpy as np

from dsv2.accounting.account import account
from dsv2.config import ConfigBase, ConfigError, config_classes
from dsv2.metrics import MODEL_BUDGETS
from dsv2.models.transformer import Transformer

REACH = 4  # a key varies from 1 / REACH to REACH times its start
ROWS = 50_000  # maximum number of combinations of the coarser keys; grids are thinned to fit
SCREENED = 1_000  # grids up to this size are filtered by the config's validation beforehand


class Matched(NamedTuple):
    """A model with matched budgets."""

    model: Transformer.Config
    changes: dict[str, int]  # changed keys, as in "num_layers" or "ffn.expert_dim" -> new values
    starts: dict[str, int]  # changed keys -> old values
    mismatch: dict[str, float]  # budget -> remaining relative difference to its target, signed


def match(
    model: Transformer.Config,
    targets: Mapping[str, float],
    adjust: Mapping[str, int],
    *,
    context: int,
    within: float = 0.01,
    fixed: Sequence[str] = (),
) -> Matched:
    """Change as few of the keys in `adjust` as possible, by as little as possible, so that every target is met.

    `targets`: budget -> value. `adjust`: key -> step; the key may take any multiple of the step between a quarter and
    four times its start. Keys under one of `fixed` are not changed, nor are keys that this model lacks (such as an
    expert's width in a dense model). Values that a config refuses are skipped. The size of a change is the sum of
    |log(new / old)|; the finest key takes the value that fits best. Raises ConfigError if no candidate has all budgets
    `within` that relative difference, naming the closest, and for an unknown budget, key or step.
    """
    for budget, target in targets.items():
        if budget not in MODEL_BUDGETS:
            raise ConfigError("targets", budget, f"budgets are {', '.join(MODEL_BUDGETS)}")
        if not (0 < target < math.inf):
            raise ConfigError(f"targets.{budget}", target, "positive")
    search = _Search(model, targets, {key: _start(model, key, step) for key, step in adjust.items()}, context)
    unchanged = search.matched({})
    assert unchanged is not None
    if _worst(unchanged.mismatch) <= within:
        return unchanged
    keys = [
        key
        for key, start in search.starts.items()
        if start is not None and not any(key == name or key.startswith(f"{name}.") for name in fixed)
    ]
    if not keys:
        raise ConfigError(
            "adjust", list(adjust), f"the model has none of these keys, or all are fixed; {_describe(unchanged)}"
        )
    grids = {key: search.grid(key, adjust[key]) for key in keys}
    closest = unchanged
    for count in range(1, len(keys) + 1):
        matching = []
        for chosen in combinations(keys, count):
            options = search.options({key: grids[key] for key in chosen})
            if options is None:
                continue
            best = options.first(within)
            if best is not None:
                matching.append(best)
            closest = min(closest, options.closest() or closest, key=lambda matched: _worst(matched.mismatch))
        if matching:
            return min(matching, key=search.change)
    raise ConfigError("adjust", dict(adjust), f"nothing brings every budget within {within:.1%}; {_describe(closest)}")


class _Search:
    """The model, its targets, and the start of each key; None for a key that the model lacks."""

    def __init__(
        self,
        model: Transformer.Config,
        targets: Mapping[str, float],
        starts: Mapping[str, int | None],
        context: int,
    ) -> None:
        self.model, self.targets, self.starts, self.context = model, targets, starts, context

    def matched(self, values: Mapping[str, int]) -> Matched | None:
        """Build the config with these values and account for it; None if it is invalid."""
        changes = {key: value for key, value in values.items() if value != self.starts[key]}
        try:
            model = _with(self.model, changes) if changes else self.model
        except ConfigError:
            return None
        result = account(model, context=self.context)
        mismatch = {budget: getattr(result, budget) / target - 1 for budget, target in self.targets.items()}
        return Matched(model, changes, {key: cast(int, self.starts[key]) for key in changes}, mismatch)

    def change(self, matched: Matched) -> float:
        return sum(abs(math.log(value / matched.starts[key])) for key, value in matched.changes.items())

    def grid(self, key: str, step: int) -> np.ndarray:
        """Return the values that `key` may take, ascending, including its start."""
        start = cast(int, self.starts[key])
        first, last = math.ceil(start / REACH / step), start * REACH // step
        values = sorted({start, *range(max(first, 1) * step, last * step + 1, step)})
        if len(values) <= SCREENED:
            values = [value for value in values if self._accepts(key, value)]
        return np.array(values)

    def _accepts(self, key: str, value: int) -> bool:
        try:
            _with(self.model, {key: value})
        except ConfigError:
            return False
        return True

    def options(self, grids: Mapping[str, np.ndarray]) -> "_Options | None":
        """Return all ways to change these keys together; None if one of them cannot change."""
        others = {}  # a second point per key, near its start so that configs accept all of them together
        for key, grid in grids.items():
            moved = grid[grid != self.starts[key]]
            if not moved.size:
                return None
            others[key] = int(min(moved, key=lambda value: abs(value - cast(int, self.starts[key]))))
        keys = sorted(grids, key=lambda key: len(grids[key]))  # the finest last: it is solved for, not enumerated
        corners = {}
        for corner in product((False, True), repeat=len(keys)):
            at = {key: others[key] for key, moved in zip(keys, corner, strict=True) if moved}
            matched = self.matched(at)
            if matched is None:
                return None
            corners[corner] = np.array(list(matched.mismatch.values()))
        coarse = _rows([grids[key] for key in keys[:-1]])  # (R, n - 1)
        shares = [
            (coarse[:, n] - cast(int, self.starts[key])) / (others[key] - cast(int, self.starts[key]))
            for n, key in enumerate(keys[:-1])
        ]
        at_start, moved = np.zeros((2, len(self.targets), len(coarse)))
        for corner, values in corners.items():
            weight = np.ones(len(coarse))
            for share, up in zip(shares, corner, strict=False):
                weight *= share if up else 1 - share
            (moved if corner[-1] else at_start)[:] += values[:, None] * weight
        last, start = grids[keys[-1]], cast(int, self.starts[keys[-1]])
        slope = (moved - at_start) / (others[keys[-1]] - start)
        best, worst = _best_of_last(at_start - slope * start, slope, last)
        return _Options(self, keys, np.column_stack((coarse, best)), worst)


class _Options:
    """One row per combination of the coarser keys, with the best value of the finest key and the worst mismatch."""

    def __init__(self, search: _Search, keys: list[str], rows: np.ndarray, worst: np.ndarray) -> None:
        self.search, self.keys, self.rows, self.worst = search, keys, rows, worst

    def first(self, within: float) -> Matched | None:
        """Return the row with the smallest change among those within tolerance, verified by its own account."""
        fits = np.flatnonzero(self.worst <= within)
        starts = np.array([cast(int, self.search.starts[key]) for key in self.keys])
        change = np.abs(np.log(self.rows[fits] / starts)).sum(1)
        inside = (row for row in self._accepted(fits[np.argsort(change)]) if _worst(row.mismatch) <= within)
        return next(inside, None)

    def closest(self) -> Matched | None:
        """Return the row with the smallest worst mismatch."""
        return next(self._accepted(np.argsort(self.worst)), None)

    def _accepted(self, order: np.ndarray) -> Iterator[Matched]:
        for row in self.rows[order]:
            matched = self.search.matched(dict(zip(self.keys, map(int, row), strict=True)))
            if matched is not None:
                yield matched


def _best_of_last(base: np.ndarray, slope: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return per row the value x of `grid` that minimises max |base + slope x| over the targets, and that maximum.

    `base` and `slope` are (targets, R). The continuous optimum is where one target is met exactly or two mismatches are
    equal; the optimum on the grid is a neighbour of such a point.
    """
    best, smallest = np.full(base.shape[1], grid[0]), np.full(base.shape[1], np.inf)
    pairs = [(i, j, sign) for i in range(len(base)) for j in range(i + 1) for sign in (1, -1) if i != j or sign == 1]
    for i, j, sign in pairs:
        rise = slope[i] + sign * slope[j]
        x = np.divide(-(base[i] + sign * base[j]), rise, out=np.full_like(rise, grid[0]), where=rise != 0)
        above = np.searchsorted(grid, x).clip(0, len(grid) - 1)
        for index in (above, (above - 1).clip(0)):
            worst = np.abs(base + slope * grid[index]).max(0)
            better = worst < smallest
            best, smallest = np.where(better, grid[index], best), np.where(better, worst, smallest)
    return best, smallest


def _rows(grids: Sequence[np.ndarray]) -> np.ndarray:
    """Return every combination of the grids' values (R, n); grids are thinned evenly in log scale if R is too large."""
    if not grids:
        return np.zeros((1, 0), dtype=int)
    most = int(ROWS ** (1 / len(grids)))
    thinned = [
        grid[np.unique(np.searchsorted(grid, np.geomspace(grid[0], grid[-1], most)).clip(0, len(grid) - 1))]
        if len(grid) > most
        else grid
        for grid in grids
    ]
    return np.stack(np.meshgrid(*thinned, indexing="ij"), axis=-1).reshape(-1, len(grids))


def _start(model: Transformer.Config, key: str, step: int) -> int | None:
    """Return the value of a key; None if this model lacks it. Raises ConfigError for a key that no model has."""
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        raise ConfigError(f"adjust.{key}", step, "a step of at least 1")
    classes: list[Any] = [Transformer.Config]
    for part in key.split("."):
        hints = [get_type_hints(cls)[part] for cls in classes if part in get_type_hints(cls)]
        if not hints:
            raise ConfigError("adjust", key, "the key of a count or width of the model, as in num_layers or ffn.width")
        classes = [cls for hint in hints for cls in config_classes(hint)]
    value: Any = model
    for part in key.split("."):
        value = getattr(value, part, None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError("adjust", key, f"the key of a count or width of the model; this one has the value {value!r}")
    return value


def _with(config: ConfigBase, values: Mapping[str, int]) -> Any:
    """Replace the values at dotted keys of a config, all at once."""
    own: dict[str, Any] = {}
    nested: dict[str, dict[str, int]] = {}
    for key, value in values.items():
        name, _, rest = key.partition(".")
        if rest:
            nested.setdefault(name, {})[rest] = value
        else:
            own[name] = value
    return replace(config, **own, **{name: _with(getattr(config, name), inner) for name, inner in nested.items()})


def _worst(mismatch: Mapping[str, float]) -> float:
    return max(map(abs, mismatch.values()), default=0.0)


def _describe(matched: Matched) -> str:
    """Format as in "closest is num_layers=5, ffn.expert_dim=52: total_params off by +2.3%"."""
    changes = ", ".join(f"{key}={value}" for key, value in matched.changes.items()) or "no change"
    left = ", ".join(f"{budget} off by {by:+.1%}" for budget, by in matched.mismatch.items())
    return f"closest is {changes}: {left}"
