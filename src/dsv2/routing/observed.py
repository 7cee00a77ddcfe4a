"""Passes of a model over validation text: the loss of every sequence and the routing of its tokens.

S sequences, T tokens, L MoE layers, E routed experts, K of them per token.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special

from dsv2.data.source import NOT_SCORED, Batch
from dsv2.kernels.cross_entropy import token_nats
from dsv2.models.transformer import Output, Transformer

Floats = NDArray[np.float64]
CONFIDENCE = 0.95


class SequenceLosses(NamedTuple):
    """Loss of each sequence in nats, summed over its scored tokens, and the number of these."""

    nats: Floats  # (S,)
    scored: Floats  # (S,)

    @property
    def mean(self) -> float:
        """Mean loss in nats per scored token."""
        return float(self.nats.sum() / self.scored.sum())


class Change(NamedTuple):
    """The change of a mean loss in nats per token, with its 95% interval."""

    mean: float
    low: float
    high: float


class Observed(NamedTuple):
    """Losses and routing of one pass over the validation text."""

    losses: SequenceLosses
    tokens: NDArray[np.int64]  # (S, T)
    domains: NDArray[np.int64] | None  # (S, T), index into the data's domains; None: the data have none
    num_experts: int  # E
    layers: tuple[int, ...]  # L, indices of the MoE layers within the model
    experts: NDArray[np.int16]  # (L, S, T, K)
    gates: NDArray[np.float32]  # (L, S, T, K)
    entropy: NDArray[np.float32]  # (L, S, T) of a token's affinities as shares of their sum, over log E
    mean_affinity: Floats  # (L, E), of the same shares


def losses_of(
    model: Transformer, batch: Batch, *, batch_size: int, seen: Callable[[int], Any] = lambda sequences: None
) -> SequenceLosses:
    """Run `batch` through the model, `batch_size` sequences at a time, calling `seen` with the number after each."""
    return _joined([losses for _, losses in passes(model, batch, batch_size, seen)])


def observe(
    model: Transformer, batch: Batch, *, batch_size: int, seen: Callable[[int], Any] = lambda sequences: None
) -> Observed:
    """Record losses and routing in one pass. Raises ValueError for a model without MoE layers."""
    if model.config.moe is None:
        raise ValueError("model: it has no MoE layers, so there is no routing")
    losses, experts, gates, entropy, affinity = [], [], [], [], []
    for output, part in passes(model, batch, batch_size, seen):
        losses.append(part)
        num_experts = output.routings[0].affinities.shape[-1]
        experts.append(torch.stack([r.experts for r in output.routings]).to(torch.int16).cpu())
        gates.append(torch.stack([r.gates for r in output.routings]).float().cpu())
        affinities = torch.stack([r.affinities for r in output.routings]).double()
        affinities = affinities / affinities.sum(-1, keepdim=True)  # sigmoid ones do not add up to 1
        entropy.append((torch.special.entr(affinities).sum(-1) / np.log(max(num_experts, 2))).float().cpu())
        affinity.append(affinities.sum((1, 2)).cpu())
    config = model.config
    return Observed(
        losses=_joined(losses),
        tokens=batch.inputs.numpy(),
        domains=None if batch.domains is None else batch.domains.long().numpy(),
        num_experts=num_experts,
        layers=tuple(config.moe_layers),
        experts=torch.cat(experts, 1).numpy(),
        gates=torch.cat(gates, 1).numpy(),
        entropy=torch.cat(entropy, 1).numpy(),
        mean_affinity=(torch.stack(affinity).sum(0) / batch.inputs.numel()).numpy(),
    )


def difference(losses: SequenceLosses, plain: SequenceLosses) -> Change:
    """Return the change of the mean loss, paired by sequence, with its interval over the choice of sequences.

    The interval does not cover other seeds. With fewer than two sequences it is infinite.
    """
    if not np.array_equal(losses.scored, plain.scored):
        raise ValueError("losses: not of the same sequences as those to compare with")
    change, scored = losses.nats - plain.nats, plain.scored
    mean = float(change.sum() / scored.sum())
    count = len(change)
    if count < 2:
        return Change(mean, -np.inf, np.inf)
    residual = change - mean * scored  # of the ratio of two sums, to first order
    error = float(np.sqrt((residual**2).sum() * count / (count - 1)) / scored.sum())
    half_width = float(special.stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * error
    return Change(mean, mean - half_width, mean + half_width)


def passes(
    model: Transformer, batch: Batch, batch_size: int, seen: Callable[[int], Any]
) -> Iterator[tuple[Output, SequenceLosses]]:
    """Yield the output and losses of `batch_size` sequences at a time, calling `seen` with their number after each."""
    assert not model.training, "training mode may drop tokens"
    device = model.embedding.device
    for first in range(0, len(batch.inputs), batch_size):
        inputs, targets, _, positions = batch.rows(first, batch_size)
        targets = targets.to(device)
        with torch.no_grad():
            output = model(inputs.to(device), positions=positions)
            nats = token_nats(output.logits, targets)
        scored = (targets != NOT_SCORED).sum(1)
        yield output, SequenceLosses(nats.double().sum(1).cpu().numpy(), scored.double().cpu().numpy())
        seen(len(inputs))


def _joined(parts: list[SequenceLosses]) -> SequenceLosses:
    return SequenceLosses(*(np.concatenate(column) for column in zip(*parts, strict=True)))
