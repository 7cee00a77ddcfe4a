"""The statistics of routing traces, summed up block by block in one pass over the files.

They are those of `measures`, `coactivation` and `specialisation`, which see a whole text at once, and of `dropping`.
Memory depends on E, D, the number of steps and the number of distinct tokens, not on that of tokens.

n tokens of a block, E routed experts, K of them per token, D devices, M most devices per token, V distinct tokens.
Blocks are turned to (K, n), since NumPy is slow along a short last axis.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import special

from dsv2.models.moe.dropping import budget
from dsv2.routing.coactivation import one_hot, overlap, pairs_of
from dsv2.routing.measures import Counts, measure
from dsv2.routing.specialisation import information_of, tokens_of, with_share
from dsv2.routing.traces import MOST_IDS, ROWS, Chosen, Ints, Scores, Traces

SHUFFLES = 20  # of the tokens of each block, for the values by chance
CELLS = 1 << 24  # counts kept for these, 8 bytes each; a large vocabulary leaves fewer shuffles
LOAD = ("max_violation", "entropy", "dead_experts")  # the measures of experts


class Placement(NamedTuple):
    """Devices with equal groups of consecutive experts, and the room on them."""

    num_devices: int = 1  # D
    max_devices: int | None = None  # M
    capacity_factor: float = 1.0
    batch_tokens: int = ROWS  # consecutive tokens that share a device's budget


class Tallies(NamedTuple):
    """One table per statistic; those with a column `step` have every step, the others the last."""

    load: pd.DataFrame  # layer, step, and the measures `LOAD`
    expert_load: pd.DataFrame  # layer, step, expert, load: token-expert pairs
    devices: pd.DataFrame  # layer, step, and measures of devices, under the limit M
    device_load: pd.DataFrame  # layer, step, device, load, received (tokens), dropped (pairs)
    router: pd.DataFrame  # layer, step, chosen_mass, top_gate, entropy_chosen; NaN where scores are no shares
    saturation: pd.DataFrame  # layer, step, overlap, chance
    pairs: pd.DataFrame | None = None  # as of `coactivation`
    tokens: pd.DataFrame | None = None  # as of `token_information`
    expert_tokens: pd.DataFrame | None = None  # as of `expert_tokens`, with ids in place of texts


def tally(
    traces: Traces,
    placement: Placement,
    *,
    pairs: bool = True,
    tokens: bool = True,
    rows: int = ROWS,
    seen: Callable[[int], Any] = lambda rows: None,
) -> Tallies:
    """Read all traces once, `rows` at a time, calling `seen` with the number of rows read after each block.

    `pairs` and `tokens` ask for co-activation and for specialisation by token, which take longest. Tokens are shuffled
    within a block. Raises ValueError, naming file and row, for what is no choice of experts.
    """
    pairs = pairs and traces.top_k > 1
    kinds = _distinct(traces, rows) if tokens else None
    layers, together, information, by_expert = [], [], [], []
    for layer in traces.layers:
        sums = [_Sums(traces, placement) for _ in traces.steps]
        chosen = np.zeros((traces.num_experts, traces.num_experts))
        joint = None if kinds is None else _Joint(kinds, traces.num_experts)
        for ids, choices in traces.blocks(layer, rows):
            turned = [Chosen(np.ascontiguousarray(e.T), np.ascontiguousarray(s.T)) for e, s in choices]
            for of_step, choice in zip(sums, turned, strict=True):
                of_step.add(choice, turned[-1])
            if pairs:
                marks = one_hot(choices[-1].experts, traces.num_experts)
                chosen += marks.T @ marks
            if joint is not None:
                joint.add(ids, turned[-1].experts)
            seen(len(ids) * len(choices))
        layers.append(sums)
        if pairs:
            together.append(pairs_of(layer, chosen))
        if joint is not None and kinds is not None:
            counts, by_chance = joint.tables()
            information.append(information_of(layer, counts, by_chance, top_k=traces.top_k))
            by_expert.append(tokens_of(layer, counts, by_chance[0], [str(kind) for kind in kinds]))
    return Tallies(
        **_tables(traces, layers),
        pairs=pd.concat(together, ignore_index=True) if pairs else None,
        tokens=with_share(pd.DataFrame(information)) if tokens else None,
        expert_tokens=pd.concat(by_expert, ignore_index=True) if tokens else None,
    )


def _distinct(traces: Traces, rows: int) -> Ints:
    """Return the distinct token ids (V,), ascending."""
    occurs = np.zeros(MOST_IDS, dtype=bool)
    for ids in traces.tokens(rows):
        occurs[ids] = True
    return np.flatnonzero(occurs)


def within_devices(choice: Chosen, num_experts: int, placement: Placement) -> tuple[Ints, NDArray[np.bool_]]:
    """Return the device of each chosen expert, and whether it is among the token's M devices, (K, n) each.

    These are the devices whose best expert has the highest score (section 2.2.2), which are all among the chosen ones.
    Which of their experts would take the place of those on other devices, the traces do not say.
    """
    devices = choice.experts // (num_experts // placement.num_devices)
    if placement.max_devices is None:
        return devices, np.ones(devices.shape, dtype=bool)
    order = np.argsort(-choice.scores, axis=0, kind="stable")
    ranked = np.take_along_axis(devices, order, 0)
    within = np.cumsum(~_repeated(ranked), axis=0) <= placement.max_devices  # right in the slot of a device's best
    for slot in range(len(ranked)):
        within[slot:] = np.where(ranked[slot:] == ranked[slot], within[slot], within[slot:])
    kept = np.empty(devices.shape, dtype=bool)
    np.put_along_axis(kept, order, within, 0)
    return devices, kept


class _Sums:
    """Sums over the tokens of one layer after one step."""

    def __init__(self, traces: Traces, placement: Placement) -> None:
        self.num_experts, self.top_k, self.placement = traces.num_experts, traces.top_k, placement
        self.load = np.zeros(traces.num_experts, dtype=np.int64)
        self.received, self.limited = np.zeros((2, placement.num_devices), dtype=np.int64)  # without and with the limit
        self.displaced = 0
        self.room = _Room(traces.top_k, placement)
        self.router = np.zeros(3)
        self.shared = 0  # choices that are also among those of the last step

    def add(self, choice: Chosen, last: Chosen) -> None:
        experts = choice.experts
        devices, kept = within_devices(choice, self.num_experts, self.placement)
        self.load += np.bincount(experts.ravel(), minlength=self.num_experts)
        once = ~_repeated(devices)
        self.received += np.bincount(devices[once], minlength=self.placement.num_devices)
        self.limited += np.bincount(devices[once & kept], minlength=self.placement.num_devices)
        displaced = self.top_k - kept.sum(0)
        self.displaced += int(displaced.sum())
        # Their replacements are on the same M devices, and counted evenly for each.
        self.room.add(devices, kept + (once & kept) * (displaced / (once & kept).sum(0)))
        self.router += _router(choice.scores)
        for slot in range(self.top_k):
            self.shared += int(np.count_nonzero(experts == np.roll(last.experts, slot, 0)))


class _Room:
    """Pairs above the budget of each device, over batches that the blocks of rows may cut."""

    def __init__(self, top_k: int, placement: Placement) -> None:
        self.top_k, self.placement = top_k, placement
        self.load, self._over, self.open = np.zeros((3, placement.num_devices))  # pairs, (D,)
        self.tokens = 0  # of the batch that is not full yet, whose load is `open`

    def add(self, devices: Ints, pairs: NDArray[np.float64]) -> None:
        """Add the pairs (K, n) that each token sends to its devices (K, n)."""
        size, num_devices = self.placement.batch_tokens, self.placement.num_devices
        first, end = self.tokens, self.tokens + devices.shape[1]
        cells = (np.arange(first, end) // size * num_devices + devices).ravel()
        full, tokens = divmod(end, size)
        counted = np.bincount(cells, weights=pairs.ravel(), minlength=(full + 1) * num_devices)
        loads = counted.astype(np.float64).reshape(full + 1, num_devices)
        self.load += loads.sum(0)
        loads[0] += self.open
        self._over += self._above(loads[:full], size)
        self.open, self.tokens = loads[full], tokens

    def over(self) -> NDArray[np.float64]:
        """Count the pairs above the budget, (D,); the last batch may be smaller."""
        return self._over + self._above(self.open[None], self.tokens)

    def _above(self, loads: NDArray[np.float64], tokens: int) -> NDArray[np.float64]:
        num_devices, factor = self.placement.num_devices, self.placement.capacity_factor
        room = budget(tokens * self.top_k, num_devices=num_devices, capacity_factor=factor)
        return np.maximum(loads - room, 0).sum(0)


class _Joint:
    """Joint counts of token and expert, and of shuffled tokens."""

    def __init__(self, kinds: Ints, num_experts: int, seed: int = 0) -> None:
        self.num_kinds, self.num_experts = len(kinds), num_experts
        self.index = np.zeros(int(kinds[-1]) + 1, dtype=np.int64)
        self.index[kinds] = np.arange(len(kinds))
        cells = len(kinds) * num_experts
        shuffles = min(max(CELLS // cells, 1), SHUFFLES)
        self.counts = [np.zeros(cells, dtype=np.int64) for _ in range(1 + shuffles)]
        self.rng = np.random.default_rng(seed)

    def add(self, ids: Ints, experts: Ints) -> None:
        tokens = self.index[ids]
        for number, counts in enumerate(self.counts):
            given = self.rng.permutation(tokens) if number else tokens
            np.add.at(counts, (given * self.num_experts + experts).ravel(), 1)

    def tables(self) -> tuple[Ints, list[Ints]]:
        """Return the counts (V, E), and those with tokens shuffled."""
        tables: list[Ints] = [counts.reshape(self.num_kinds, self.num_experts) for counts in self.counts]
        return tables[0], tables[1:]


def _repeated(devices: Ints) -> NDArray[np.bool_]:
    """Return whether an earlier slot of the token has the same device, (K, n)."""
    again = np.zeros(devices.shape, dtype=bool)
    for slot in range(1, len(devices)):
        again[slot:] |= devices[slot:] == devices[:-slot]
    return again


def _router(scores: Scores) -> NDArray[np.float64]:
    """Sum over tokens the sum of scores, the share of the highest and the entropy of the shares over log K.

    NaN if a score is negative, or all of a token are 0.
    """
    gates = scores.astype(np.float64)
    mass = gates.sum(0)
    if (gates < 0).any() or (mass == 0).any():
        return np.full(3, np.nan)
    shares = gates / mass
    entropy = special.entr(shares).sum() / np.log(max(len(gates), 2))
    return np.array([mass.sum(), shares.max(0).sum(), entropy])


def _tables(traces: Traces, layers: list[list[_Sums]]) -> dict[str, pd.DataFrame]:
    """Return the tables that every pass fills."""
    of_layer = dict(zip(traces.layers, layers, strict=True))
    every: list[tuple[dict[str, Any], _Sums]] = [
        ({"layer": layer, "step": step}, sums)
        for layer, of_steps in of_layer.items()
        for step, sums in zip(traces.steps, of_steps, strict=True)
    ]
    experts, devices, num_tokens = range(traces.num_experts), range(len(layers[0][0].received)), traces.num_tokens
    router = ("chosen_mass", "top_gate", "entropy_chosen")
    return {
        "load": pd.DataFrame(at | _measured(sums.load, sums.received, num_tokens, LOAD) for at, sums in every),
        "expert_load": _stacked(at | {"expert": experts, "load": sums.load} for at, sums in every),
        "devices": pd.DataFrame(at | _of_devices(sums, num_tokens) for at, sums in every),
        "device_load": _stacked(
            at | {"device": devices, "load": sums.room.load, "received": sums.limited, "dropped": sums.room.over()}
            for at, sums in every
        ),
        "router": pd.DataFrame(at | dict(zip(router, sums.router / num_tokens, strict=True)) for at, sums in every),
        "saturation": pd.DataFrame(
            at | overlap(sums.shared, sums.load, of_layer[at["layer"]][-1].load, num_tokens=num_tokens)
            for at, sums in every
        ),
    }


def _stacked(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    return pd.concat([pd.DataFrame(row) for row in rows], ignore_index=True)


def _measured(load: NDArray[Any], received: Ints, num_tokens: int, names: Collection[str]) -> dict[str, float]:
    """Return some of the measures of a load, (E,) or (D,), and the tokens received (D,)."""
    none = torch.zeros((), dtype=torch.int64)
    counts = Counts(torch.from_numpy(load), none, torch.from_numpy(received), none, torch.tensor(num_tokens))
    measures = measure(counts)._asdict()
    return {name: measures[name] for name in names}


def _of_devices(sums: _Sums, num_tokens: int) -> dict[str, float]:
    """Return the measures of devices under the limit, and the shares of all pairs that are dropped or displaced.

    `devices_without_limit` and `displaced`, the pairs on other devices than the token's M, are given with a limit only.
    """
    pairs = num_tokens * sums.top_k
    names = ("device_max_violation", "received_max_violation", "devices_per_token")
    row = _measured(sums.room.load, sums.limited, num_tokens, names)
    row["drop_rate"] = float(sums.room.over().sum() / pairs)
    if sums.placement.max_devices is not None:
        row["displaced"] = sums.displaced / pairs
        row["devices_without_limit"] = float(sums.received.sum() / num_tokens)
    return row
