"""Coactivation of experts, confidence of the router, and saturation of its choices over training.

L MoE layers, E routed experts, K of them per token, N tokens.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from dsv2.routing.observed import Observed


def coactivation(observed: Observed) -> pd.DataFrame:
    """Count the tokens that chose both experts of each pair i < j per layer, and the number expected by independence.

    Under independence, with loads p, the share of tokens that choose a pair is proportional to p_i p_j, scaled to the
    K (K - 1) / 2 pairs that every token chooses. Raises ValueError for K = 1.
    """
    top_k = observed.experts.shape[-1]
    if top_k < 2:
        raise ValueError("top_k=1: each token chooses one expert, so none are chosen together")
    frames = []
    for layer, experts in zip(observed.layers, observed.experts, strict=True):
        chosen = one_hot(experts.reshape(-1, top_k), observed.num_experts)
        frames.append(pairs_of(layer, chosen.T @ chosen))
    return pd.concat(frames, ignore_index=True)


def pairs_of(layer: int, together: NDArray[np.float64]) -> pd.DataFrame:
    """Return the table of one layer from the number of tokens that chose both of two experts (E, E).

    The diagonal has the number of tokens that chose each.
    """
    first, second = np.triu_indices(len(together), 1)
    load, tokens = together.diagonal(), together[first, second]
    weight = load[first] * load[second]
    expected = weight / weight.sum() * tokens.sum()
    ratio = np.divide(tokens, expected, out=np.ones_like(expected), where=expected > 0)
    columns = {"layer": layer, "expert": first, "other": second}
    return pd.DataFrame(columns | {"tokens": tokens.astype(int), "expected": expected, "ratio": ratio})


def far_from_independent(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return per layer the share of pairs whose count is over 3 standard deviations from the expected one."""
    far = (pairs["tokens"] - pairs["expected"]).abs() > 3 * np.sqrt(pairs["expected"])
    table = pairs.assign(far=far, log_ratio=np.log2(pairs["ratio"].clip(lower=2**-5)).abs())
    return table.groupby("layer", as_index=False).agg(far=("far", "mean"), log_ratio=("log_ratio", "mean"))


def router_certainty(observed: Observed) -> pd.DataFrame:
    """Return per layer the entropies of the affinities over log E, and how the affinities are distributed.

    `entropy_token`: mean over tokens (0: certain); `entropy_mean`: of the mean over tokens (1: uniform use of experts);
    `chosen_mass`: sum of the K chosen affinities; `top_gate`: share of the highest gate in that sum.
    """
    scale = np.log(max(observed.num_experts, 2))
    gates = observed.gates.astype(np.float64)
    return pd.DataFrame(
        {
            "layer": observed.layers,
            "entropy_token": observed.entropy.astype(np.float64).mean((1, 2)),
            "entropy_mean": special.entr(observed.mean_affinity).sum(1) / scale,
            "chosen_mass": gates.sum(-1).mean((1, 2)),
            "top_gate": (gates.max(-1) / gates.sum(-1)).mean((1, 2)),
        }
    )


def saturation(snapshots: pd.DataFrame, num_experts: int) -> pd.DataFrame:
    """Return per layer and step the share of a token's experts that are also among its experts at the last step.

    `snapshots` is a run's `routing_snapshots.parquet`. `chance` is the share if the tokens of one step are shuffled;
    K / E if all experts have equal load.
    """
    rows = []
    for layer, table in snapshots.groupby("layer"):
        chosen = {step: one_hot(_experts(at_step), num_experts) for step, at_step in table.groupby("step")}
        last = chosen[table["step"].max()]
        for step, at_step in chosen.items():
            shared = overlap((at_step * last).sum(), at_step.sum(0), last.sum(0), num_tokens=len(last))
            rows.append({"layer": layer, "step": step} | shared)
    return pd.DataFrame(rows)


def overlap(shared: float, load: NDArray[Any], last: NDArray[Any], *, num_tokens: int) -> dict[str, float]:
    """Return the overlap with the last step and its chance from the choices that a step shares with it.

    `load` and `last` (E,) are the pairs of each expert at the step and at the last one.
    """
    pairs = last.sum()
    return {"overlap": float(shared / pairs), "chance": float((load * last).sum() / (num_tokens * pairs))}


def one_hot(experts: NDArray[np.integer[Any]], num_experts: int) -> NDArray[np.float64]:
    """Return (N, E) from experts (N, K): 1 for the experts that a token chose."""
    chosen = np.zeros((len(experts), num_experts))
    np.put_along_axis(chosen, experts.astype(np.int64), 1.0, axis=1)
    return chosen


def _experts(rows: pd.DataFrame) -> NDArray[np.int16]:
    return rows.pivot(index="token", columns="slot", values="expert").to_numpy()
