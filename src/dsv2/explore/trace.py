"""Traces of a text through a model: the routing of every token in every MoE layer, and the loss per token.

T tokens, E experts, K experts per token, D devices. The text is one sequence, routed as in evaluation: nothing is
dropped. `dropped` returns the pairs that a given capacity would drop by DeepSeek-V2's rule, also for GShard and Switch,
which drop by expert in training.
"""

import math
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from dsv2.data.source import bits_per_byte
from dsv2.data.tokenizer import Tokenizer
from dsv2.kernels.cross_entropy import token_nats
from dsv2.models.moe import dropping
from dsv2.models.moe.router import Routing
from dsv2.models.transformer import Transformer


class Trace(NamedTuple):
    """Losses and routings of one text."""

    pieces: tuple[str, ...]  # T, joined they are the text; a character split over tokens is in the last
    num_bytes: int  # of the text after its first token
    losses: Tensor  # (T,) float32, nats; NaN for the first token, which is not predicted
    routings: dict[int, Routing]  # layer -> (1, T, .), MoE layers only
    num_devices: int  # D

    @property
    def loss(self) -> float:
        """Mean loss in nats per predicted token; NaN for a text of one token."""
        return float(self.losses[1:].mean())

    @property
    def bits_per_byte(self) -> float:
        """Loss in bits per byte, independent of the tokenizer; NaN for a text of one token."""
        return bits_per_byte(float(self.losses[1:].sum()), self.num_bytes) if self.num_bytes else math.nan


@torch.no_grad()
def trace(model: Transformer, tokenizer: Tokenizer, text: str, *, most_tokens: int, num_devices: int) -> Trace:
    """Run a text as one sequence through a model in evaluation mode.

    Raises ValueError for an empty text, more than `most_tokens` tokens, or invalid Unicode.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start + 1} of the text is a lone surrogate") from None
    ids = tokenizer.encode(text)
    if not ids:
        raise ValueError("the text is empty: type or paste at least one character")
    if len(ids) > most_tokens:
        fits = len(tokenizer.decode(ids[:most_tokens]))
        raise ValueError(
            f"the text has {len(ids):,} tokens, but the run was trained on sequences of {most_tokens:,}: "
            f"use at most {most_tokens:,} tokens, about {fits:,} characters"
        )
    tokens = torch.tensor([ids], device=model.embedding.device)
    logits, routings = model(tokens)
    losses = token_nats(logits[:, :-1], tokens[:, 1:])[0].cpu()
    first = model.config.num_layers - len(routings)
    return Trace(
        pieces=tuple(tokenizer.pieces(ids)),
        num_bytes=int(tokenizer.token_bytes[ids[1:]].sum()),
        losses=torch.cat((torch.full((1,), math.nan), losses)),
        routings={first + index: _cpu(routing) for index, routing in enumerate(routings)},
        num_devices=num_devices,
    )


def _cpu(routing: Routing) -> Routing:
    return Routing(routing.affinities.cpu(), routing.experts.cpu(), routing.gates.cpu())  # evaluation drops nothing


def dropped(traced: Trace, layer: int, capacity_factor: float) -> Tensor:
    """Return (T, K) bool, the pairs above their device's budget of `capacity_factor` times the mean load."""
    return dropping.drop(traced.routings[layer], num_devices=traced.num_devices, capacity_factor=capacity_factor)[0]


def budget(traced: Trace, layer: int, capacity_factor: float) -> int:
    """Return the budget of each device in pairs."""
    pairs = traced.routings[layer].experts.numel()
    return dropping.budget(pairs, num_devices=traced.num_devices, capacity_factor=capacity_factor)


def pairs(traced: Trace, layer: int, capacity_factor: float) -> pd.DataFrame:
    """Return one row per token and chosen expert, highest affinity first.

    Columns: token, slot, expert, device, gate, dropped.
    """
    routing = traced.routings[layer]
    num_tokens, top_k = routing.experts.shape[1:]
    expert = routing.experts.flatten()
    return pd.DataFrame(
        {
            "token": torch.arange(num_tokens).repeat_interleave(top_k).numpy(),
            "slot": torch.arange(top_k).repeat(num_tokens).numpy(),
            "expert": expert.numpy(),
            "device": (expert // _per_device(traced, layer)).numpy(),
            "gate": routing.gates.flatten().float().numpy(),
            "dropped": dropped(traced, layer, capacity_factor).flatten().numpy(),
        }
    )


def loads(traced: Trace, layer: int, capacity_factor: float) -> pd.DataFrame:
    """Return one row per expert: expert, device, load (pairs, including dropped ones), dropped."""
    experts = traced.routings[layer].experts[0]
    num_experts = traced.routings[layer].affinities.shape[-1]
    over = experts[dropped(traced, layer, capacity_factor)]
    expert = torch.arange(num_experts)
    return pd.DataFrame(
        {
            "expert": expert.numpy(),
            "device": (expert // _per_device(traced, layer)).numpy(),
            "load": torch.bincount(experts.flatten(), minlength=num_experts).numpy(),
            "dropped": torch.bincount(over, minlength=num_experts).numpy(),
        }
    )


def _per_device(traced: Trace, layer: int) -> int:
    return traced.routings[layer].affinities.shape[-1] // traced.num_devices
