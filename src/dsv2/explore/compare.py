"""Agreement of two models' routing of one text, even if their experts are unrelated.

T tokens, E experts, K experts per token. Expert indices of different runs are unrelated, so that only the unevenness of
the loads and the grouping of tokens can be compared.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dsv2.explore.trace import Trace

DRAWS = 20  # pairs of random routers for the chance level


class Agreement(NamedTuple):
    """Agreement of two traces of one text at one layer; None for what cannot be compared."""

    profile: float | None  # 1 - total variation distance of the load shares, each sorted in descending order
    profile_by_chance: float | None  # the same for two random routers
    grouping: float | None  # adjusted Rand index of the tokens grouped by top expert: 1 if equal, 0 by chance
    same_top: float | None  # share of tokens with the same top expert; only for two steps of one run
    overlap: float | None  # mean share of a token's K experts that both chose; only for two steps of one run


def agree(first: Trace, second: Trace, layer: int, *, same_run: bool) -> Agreement:
    """Compare two traces; `same_run` says that they are steps of one run, whose expert indices correspond."""
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
    """Return 1 - total variation distance of two load profiles (E,), each summing to 1."""
    return 1 - float(np.abs(first - second).sum()) / 2


def similarity_by_chance(num_tokens: int, num_experts: int, top_k: int) -> float:
    """Return the mean profile similarity of two random routers, which is high for short texts due to sorting."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(2 * DRAWS, num_tokens, num_experts, generator=generator).topk(top_k).indices
    profiles = [_profile(experts, num_experts) for experts in drawn.numpy()]
    return float(np.mean([similarity(*pair) for pair in zip(profiles[::2], profiles[1::2], strict=True)]))


def rand_index(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Return the adjusted Rand index of two groupings of T items (Hubert and Arabie 1985).

    It is 1 for equal groups, whatever their labels, and 0 on average by chance; 1 if both are trivial in the same way.
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
