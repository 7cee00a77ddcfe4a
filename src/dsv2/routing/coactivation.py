"""Which experts are chosen together, how sure the router is, and when over training its choices settled.

L MoE layers, E routed experts, K of them per token, N tokens.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from dsv2.routing.observed import Observed


def coactivation(observed: Observed) -> pd.DataFrame:
    """Count, per layer and pair of experts i < j, the tokens that chose both, against what independence expects.

    Independent experts with these loads p would be chosen together by a share of tokens proportional to p_i p_j, scaled
    to the K (K - 1) / 2 pairs that every token chooses. Raises ValueError for K = 1.
    """
    top_k = observed.experts.shape[-1]
    if top_k < 2:
        raise ValueError("top_k=1: a token chooses one expert, so none are chosen together")
    first, second = np.triu_indices(observed.num_experts, 1)
    frames = []
    for layer, experts in zip(observed.layers, observed.experts, strict=True):
        chosen = one_hot(experts.reshape(-1, top_k), observed.num_experts)
        together = (chosen.T @ chosen)[first, second]
        load = chosen.mean(0)
        weight = load[first] * load[second]
        expected = weight / weight.sum() * together.sum()
        ratio = np.divide(together, expected, out=np.ones_like(expected), where=expected > 0)
        columns = {"layer": layer, "expert": first, "other": second}
        frames.append(pd.DataFrame(columns | {"tokens": together.astype(int), "expected": expected, "ratio": ratio}))
    return pd.concat(frames, ignore_index=True)


def far_from_independent(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return per layer the share of pairs that lie over 3 standard deviations of a count from what is expected."""
    far = (pairs["tokens"] - pairs["expected"]).abs() > 3 * np.sqrt(pairs["expected"])
    table = pairs.assign(far=far, log_ratio=np.log2(pairs["ratio"].clip(lower=2**-5)).abs())
    return table.groupby("layer", as_index=False).agg(far=("far", "mean"), log_ratio=("log_ratio", "mean"))


def router_certainty(observed: Observed) -> pd.DataFrame:
    """Return per layer the entropies of the affinities over log E, and where the mass of the gates lies.

    `entropy_token`: mean over tokens (0: sure); `entropy_mean`: of the mean over tokens (1: all experts used alike);
    `chosen_mass`: affinity of the K chosen, summed; `top_gate`: share of the highest gate in the chosen.
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
    """Return per layer and step the share of a token's experts that are also among those of the last step.

    `snapshots` is `routing_snapshots.parquet` of a run. `chance` is what the two steps' loads give if the tokens of one
    are shuffled; K / E where all experts are used alike.
    """
    rows = []
    for layer, table in snapshots.groupby("layer"):
        chosen = {step: one_hot(_experts(at_step), num_experts) for step, at_step in table.groupby("step")}
        last = chosen[table["step"].max()]
        top_k = last.sum(1).mean()
        for step, at_step in chosen.items():
            overlap = (at_step * last).sum(1).mean() / top_k
            chance = (at_step.mean(0) * last.mean(0)).sum() / top_k
            rows.append({"layer": layer, "step": step, "overlap": overlap, "chance": chance})
    return pd.DataFrame(rows)


def one_hot(experts: NDArray[np.int16], num_experts: int) -> NDArray[np.float64]:
    """Return (N, E): 1 where token n chose the expert, from experts (N, K)."""
    chosen = np.zeros((len(experts), num_experts))
    np.put_along_axis(chosen, experts.astype(np.int64), 1.0, axis=1)
    return chosen


def _experts(rows: pd.DataFrame) -> NDArray[np.int16]:
    return rows.pivot(index="token", columns="slot", values="expert").to_numpy()
