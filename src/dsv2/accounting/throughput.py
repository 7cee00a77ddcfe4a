"""Tokens per second that memory, bandwidth and arithmetic allow in inference: an upper bound, for a node of GPUs.

What is assumed:

- 90% of the memory is for weights and cache; the batch is as large as fits, all sequences at the same context.
- Every decoding step reads all weights, since a large batch reaches every expert, and the whole cache, at the peak
  bandwidth and spread evenly over the GPUs.
- Products run at the peak rate of dense bfloat16, also with weights in FP8. MLA decodes with absorbed projections: all
  heads are scored against the latent.
- A step takes the longer of the two. Communication, sampling and prefill cost nothing.
"""

from typing import NamedTuple

from dsv2.accounting.account import MOST, account
from dsv2.accounting.cost import H800_PEAK
from dsv2.config import ConfigError
from dsv2.models.attention import MLA
from dsv2.models.transformer import Transformer

USABLE = 0.9  # of the memory


class Node(NamedTuple):
    """GPUs that hold one model together."""

    gpus: int
    memory: float  # bytes of each
    bandwidth: float  # bytes per second of each
    peak_flops: float  # per second of each, dense bfloat16


H800_NODE = Node(8, 80e9, 3.35e12, H800_PEAK)


class Decoding(NamedTuple):
    """A decoding step of the largest batch that fits."""

    batch: int  # sequences
    read_seconds: float  # weights and cache from memory
    compute_seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.batch / max(self.read_seconds, self.compute_seconds)


def decoding(
    model: Transformer.Config, *, weight_bytes: float, kv_bits: float, context: int, node: Node = H800_NODE
) -> Decoding:
    """Return the step that decodes one token of every sequence at a `context` in tokens.

    Raises ConfigError if the weights leave no room for the cache of one sequence.
    """
    if not 1 <= context <= MOST:
        raise ConfigError("context", context, f"1 to {MOST:,} tokens")
    cache = account(model, kv_bits=kv_bits).kv_bytes_per_token * context
    batch = int((USABLE * node.gpus * node.memory - weight_bytes) / cache)
    if batch < 1:
        valid = f"few enough tokens for a cache beside weights of {weight_bytes:,.0f} bytes"
        raise ConfigError("context", context, valid)
    flops = batch * (_product_flops(model) + model.num_layers * _score_flops(model, context))
    read = (weight_bytes + batch * cache) / (node.gpus * node.bandwidth)
    return Decoding(batch, read, flops / (node.gpus * node.peak_flops))


def prefill_tokens_per_second(model: Transformer.Config, *, context: int, node: Node = H800_NODE) -> float:
    """Return the tokens of prompts of `context` tokens that the peak rate can compute, attending to half of them."""
    scores = model.num_layers * model.attention.score_flops(context) / 2
    return node.gpus * node.peak_flops / (_product_flops(model) + scores)


def _product_flops(model: Transformer.Config) -> float:
    """Return the forward FLOPs per token of all products with weights."""
    return account(model, context=1).flops_per_token / 3 - model.num_layers * model.attention.score_flops(1)


def _score_flops(model: Transformer.Config, context: int) -> int:
    """Return the FLOPs of one layer in which one token attends to `context` cached ones, as decoding computes them."""
    attention = model.attention
    if isinstance(attention, MLA.Config):
        return 2 * attention.num_heads * (2 * attention.kv_latent_dim + attention.rope_dim) * context
    return attention.score_flops(context)
