"""Specialisation of experts: mutual information between the expert and the domain, or the token, routed to it.

It is estimated from the token-expert pairs of validation text, layer by layer, and compared with its value by chance:
it is above 0 even with domains or tokens shuffled.

S sequences, T tokens, L MoE layers, E routed experts, K of them per token, D domains, V distinct tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from dsv2.routing.observed import Observed

SHUFFLES = 200
TOP = 10  # most frequent tokens per expert
RESOLVED = 1e-9  # nats; smaller differences are rounding errors


def mutual_information(counts: NDArray[np.integer[Any]]) -> float:
    """Return the mutual information of row and column of joint counts in nats; 0 if they are independent."""
    joint = counts / counts.sum()
    parts = (special.entr(joint.sum(axis)).sum() for axis in (0, 1))
    return float(max(sum(parts) - special.entr(joint).sum(), 0.0))


def domain_shares(observed: Observed, names: tuple[str, ...]) -> pd.DataFrame:
    """Return per layer, domain and expert the expert's share of the domain's pairs, and its lift.

    The lift is that share over the expert's share of all text. Raises ValueError if the text has fewer than two
    domains.
    """
    domains = _domains(observed)
    frames = []
    for layer, experts in zip(observed.layers, observed.experts, strict=True):
        counts = _joint(domains, experts, len(names), observed.num_experts)
        share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        overall = counts.sum(0) / counts.sum()
        for domain in np.flatnonzero(counts.sum(1)):
            columns = {"layer": layer, "domain": names[domain], "expert": range(observed.num_experts)}
            lift = np.divide(share[domain], overall, out=np.ones_like(overall), where=overall > 0)
            frames.append(pd.DataFrame(columns | {"share": share[domain], "lift": lift}))
    return pd.concat(frames, ignore_index=True)


def domain_information(observed: Observed, *, shuffles: int = SHUFFLES, seed: int = 0) -> pd.DataFrame:
    """Return per layer the mutual information of domain and expert in nats, its value by chance, and its maximum.

    For chance, domains are shuffled over whole sequences, since tokens of one text are alike. `most`, the maximum, is
    the entropy of the domains, reached if each expert serves one domain. `p` is that of the permutation test.
    """
    domains = _domains(observed)
    num_domains = int(domains.max()) + 1
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(domains)) for _ in range(shuffles)]
    share = np.bincount(domains.ravel(), minlength=num_domains) / domains.size
    most = float(special.entr(share).sum())
    rows = []
    for layer, experts in zip(observed.layers, observed.experts, strict=True):

        def information(given: NDArray[np.int64], experts: NDArray[np.int16] = experts) -> float:
            return mutual_information(_joint(given, experts, num_domains, observed.num_experts))

        rows.append({"layer": layer} | _against_chance(information(domains), [information(domains[o]) for o in orders]))
    return pd.DataFrame(rows).assign(most=most, share_of_most=lambda t: (t["information"] - t["chance"]) / most)


def token_information(observed: Observed, *, shuffles: int = 20, seed: int = 0) -> pd.DataFrame:
    """Return per layer the mutual information of token and expert in nats, its value by chance, and its maximum.

    For chance, tokens are shuffled over all positions. `most`, the maximum, is the entropy of the load minus log K:
    it is reached if the token alone decides the routing, since a pair may have any of its K experts. `share_of_most`
    is NaN where all tokens have the same experts.
    """
    tokens, kinds = _kinds(observed)
    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(tokens.ravel()).reshape(tokens.shape) for _ in range(shuffles)]
    rows = []
    for layer, experts in zip(observed.layers, observed.experts, strict=True):
        counts, *by_chance = (_joint(t, experts, len(kinds), observed.num_experts) for t in (tokens, *shuffled))
        rows.append(information_of(layer, counts, by_chance, top_k=experts.shape[-1]))
    return with_share(pd.DataFrame(rows))


def information_of(
    layer: int, counts: NDArray[np.integer[Any]], by_chance: Iterable[NDArray[np.integer[Any]]], *, top_k: int
) -> dict[str, float]:
    """Return the row of one layer from the joint counts of token and expert (V, E), also with tokens shuffled."""
    load = counts.sum(0) / counts.sum()
    row = _against_chance(mutual_information(counts), [mutual_information(shuffled) for shuffled in by_chance])
    return {"layer": layer} | row | {"most": float(special.entr(load).sum() - np.log(top_k))}


def with_share(table: pd.DataFrame) -> pd.DataFrame:
    """Add `share_of_most` to the rows of `information_of`."""
    room = table["most"] - table["chance"]
    return table.assign(share_of_most=(table["information"] - table["chance"]) / room.where(room > RESOLVED))


def expert_tokens(observed: Observed, text_of: Callable[[int], str], *, top: int = TOP, seed: int = 0) -> pd.DataFrame:
    """Return per layer and expert its load over the mean, the concentration of its tokens, and the most telling ones.

    `concentration` is the share of the expert's pairs that belong to its `top` most frequent tokens, `chance` the same
    with tokens shuffled. `tokens_in_text` are the tokens with the largest terms of the mutual information.
    """
    tokens, kinds = _kinds(observed)
    shuffled = np.random.default_rng(seed).permutation(tokens.ravel()).reshape(tokens.shape)
    texts = [text_of(int(kind)) for kind in kinds]
    frames = []
    for layer, experts in zip(observed.layers, observed.experts, strict=True):
        counts, by_chance = (_joint(t, experts, len(kinds), observed.num_experts) for t in (tokens, shuffled))
        frames.append(tokens_of(layer, counts, by_chance, texts, top=top))
    return pd.concat(frames, ignore_index=True)


def tokens_of(
    layer: int,
    counts: NDArray[np.integer[Any]],
    by_chance: NDArray[np.integer[Any]],
    texts: Sequence[str],
    *,
    top: int = TOP,
) -> pd.DataFrame:
    """Return the table of one layer from the joint counts of token and expert (V, E), also with tokens shuffled."""
    counts, by_chance = counts.T, by_chance.T
    mean = counts.sum(1).mean()
    share = counts.sum(0) / counts.sum()
    rows = []
    for expert, (own, shuffled) in enumerate(zip(counts, by_chance, strict=True)):
        terms = special.rel_entr(own, own.sum() * share)
        best = [kind for kind in np.argsort(-terms, kind="stable")[:top] if terms[kind] > 0]
        row = {"layer": layer, "expert": expert, "load": own.sum() / mean}
        row |= {"concentration": _top_share(own, top), "chance": _top_share(shuffled, top)}
        rows.append(row | {"tokens_in_text": " ".join(repr(texts[kind]) for kind in best)})
    return pd.DataFrame(rows)


def _against_chance(information: float, by_chance: list[float]) -> dict[str, float]:
    reached = sum(value >= information for value in by_chance)
    return {"information": information, "chance": float(np.mean(by_chance)), "p": (1 + reached) / (1 + len(by_chance))}


def _domains(observed: Observed) -> NDArray[np.int64]:
    if observed.domains is None or len(np.unique(observed.domains)) < 2:
        raise ValueError("data: the validation text has fewer than two domains; data=mixture has three")
    return observed.domains


def _kinds(observed: Observed) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the tokens as indices (S, T) into the distinct tokens that occur, and these (V,)."""
    kinds, indices = np.unique(observed.tokens, return_inverse=True)
    return indices.reshape(observed.tokens.shape), kinds


def _joint(given: NDArray[np.int64], experts: NDArray[np.int16], num_given: int, num_experts: int) -> NDArray[np.int64]:
    """Count jointly the category of each token, `given` (S, T), and the experts (S, T, K) that it chose."""
    cells = given[..., None] * num_experts + experts
    return np.bincount(cells.ravel(), minlength=num_given * num_experts).reshape(num_given, num_experts)


def _top_share(counts: NDArray[np.integer[Any]], top: int) -> float:
    return float(np.sort(counts)[::-1][:top].sum() / max(counts.sum(), 1))
