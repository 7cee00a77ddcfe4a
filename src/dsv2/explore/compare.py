"""How alike two models treat one text, also where their experts have nothing to do with each other.

T tokens, E experts, K experts per token. Experts of runs that started apart carry arbitrary numbers, so equal numbers
mean nothing there; what can be compared is how uneven the loads are and which tokens are kept together.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dsv2.explore.trace import Trace

DRAWS = 20  # pairs of random routers for the chance level


class Agreement(NamedTuple):
    """Two traces of one text, at a layer of each; None where the two cannot be compared so."""

    profile: float | None  # 1 less the total variation between the load shares, each sorted from busiest to idlest
    profile_by_chance: float | None  # the same between two routers that choose at random
    grouping: float | None  # adjusted Rand index of the tokens grouped by top expert: 1 the same groups, 0 by chance
    same_top: float | None  # share of tokens with the same top expert; only for two steps of one run
    overlap: float | None  # mean share of a token's K experts that both chose; only for two steps of one run


def agree(first: Trace, second: Trace, layer: int, *, same_run: bool) -> Agreement:
    """`same_run`: the two are steps of one run, so that the numbers of their experts mean the same."""
    mine, theirs = (traced.routings[layer].experts[0] for traced in (first, second))
    num_experts, others = (traced.routings[layer].affinities.shape[-1] for traced in (first, second))
    comparable = num_experts == others and mine.shape == theirs.shape
    same_tokens = first.pieces == second.pieces
    profile = chance = same_top = overlap = None
    if comparable:
        profile = similarity(*(_profile(experts.numpy(), num_experts) for experts in (mine, theirs)))
        chance = similarity_by_chance(len(mine), num_experts, mine.shape[1])
    if same_run:
        same_top = float((mine[:, 0] == theirs[:, 0]).float().mean())
        overlap = float((mine[:, :, None] == theirs[:, None, :]).any(-1).float().mean())
    grouping = rand_index(mine[:, 0].numpy(), theirs[:, 0].numpy()) if same_tokens else None
    return Agreement(profile, chance, grouping, same_top, overlap)


def similarity(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """1 less the total variation between two load profiles (E,), each summing to 1."""
    return 1 - float(np.abs(first - second).sum()) / 2


def similarity_by_chance(num_tokens: int, num_experts: int, top_k: int) -> float:
    """Mean profile similarity of two routers that choose K of E uniformly: sorting alone makes short texts alike."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(2 * DRAWS, num_tokens, num_experts, generator=generator).topk(top_k).indices
    profiles = [_profile(experts, num_experts) for experts in drawn.numpy()]
    return float(np.mean([similarity(*pair) for pair in zip(profiles[::2], profiles[1::2], strict=True)]))


def rand_index(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Adjusted Rand index of two groupings of T items (Hubert and Arabie 1985): 1 for the same groups whatever their
    names, 0 on average by chance. 1 where both groupings are trivial in the same way.
    """
    table = np.zeros((first.max() + 1, second.max() + 1), dtype=np.int64)
    np.add.at(table, (first, second), 1)
    together, in_one, in_other = (_in_pairs(counts) for counts in (table, table.sum(1), table.sum(0)))
    expected = in_one * in_other / max(_in_pairs(np.array([len(first)])), 1)
    most = (in_one + in_other) / 2
    return 1.0 if most == expected else (together - expected) / (most - expected)


def _in_pairs(counts: NDArray[np.int64]) -> float:
    return float((counts * (counts - 1) // 2).sum())


def _profile(experts: NDArray[np.int64], num_experts: int) -> NDArray[np.float64]:
    load = np.bincount(experts.ravel(), minlength=num_experts)
    return -np.sort(-load / load.sum())
