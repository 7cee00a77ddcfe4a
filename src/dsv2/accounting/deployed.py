"""Bytes of a model in inference: its weights in each precision, and what a cache holds per token."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

from dsv2.accounting.account import Account, account
from dsv2.composition import compose
from dsv2.config import structure
from dsv2.kernels.fp8 import BLOCK
from dsv2.models.attention.precision import BITS, KVPrecision
from dsv2.models.transformer import Transformer
from dsv2.models.weights import Weight

ELEMENT = {"fp32": 4, "bf16": 2}  # bytes
SCALE = 4  # bytes of a block's scale in FP8


class CacheBytes(NamedTuple):
    """Bytes per token over all layers, scales and offsets included."""

    bits: int  # of a code; 16: bfloat16
    bytes_per_token: int
    average_bits: float  # per element


def cache_bytes(model: Transformer.Config) -> tuple[CacheBytes, ...]:
    """Return what the caches of `generate(kv_bits=...)` hold, for all bits that are offered."""
    accounts = {bits: account(model, kv=KVPrecision.Config(bits=bits)) for bits in BITS}
    return tuple(CacheBytes(bits, int(one.kv_bytes_per_token), one.kv_bits) for bits, one in accounts.items())


PUBLISHED = {  # model -> overrides, bits of its cache
    "V2 with MHA": (("model=v2", "model/attention=mha"), 16),
    "7B (MHA)": (("model=deepseek_7b",), 16),
    "67B (GQA-8)": (("model=deepseek_67b",), 16),
    "V2-Lite with MHA": (("model=v2_lite", "model/attention=mha"), 16),
    "V2 (MLA)": (("model=v2",), 16),
    "V2-Lite (MLA)": (("model=v2_lite",), 16),
    "V2 (MLA), 6 bits": (("model=v2",), 6),
    "V2-Lite (MLA), 6 bits": (("model=v2_lite",), 6),
}


@cache
def published_caches() -> Mapping[str, Account]:
    """Account for the published models, at 16 bits and with MLA at 6, scales and offsets included."""
    return {name: _account(words, bits) for name, (words, bits) in PUBLISHED.items()}


class KindOfAttention(NamedTuple):
    """A model with one kind of attention and its cache; scales and offsets are counted."""

    name: str
    bits: int
    account: Account


@cache
def kinds_of_attention(preset: str) -> tuple[KindOfAttention, ...]:
    """Account for a preset with MHA, GQA with 8 groups, MQA and MLA at 16 bits, and with MLA at 6."""
    kinds = {
        "MHA": ("mha", 16),
        "GQA-8": ("gqa", 16),
        "MQA": ("mqa", 16),
        "MLA": ("mla", 16),
        "MLA, 6 bits": ("mla", 6),
    }
    rows = []
    for name, (attention, bits) in kinds.items():
        groups = ("model.attention.num_kv_heads=8",) if attention == "gqa" else ()
        words = (f"model={preset}", f"model/attention={attention}", *groups)
        rows.append(KindOfAttention(name, bits, _account(words, bits)))
    return tuple(rows)


def _account(overrides: Sequence[str], bits: int) -> Account:
    model = structure(compose(overrides)["model"], Transformer.Config, "model")
    return account(model, kv=KVPrecision.Config(bits=bits))


def weight_bytes(model: Transformer.Config) -> dict[str, int]:
    """Return the bytes of all weights in fp32, bf16 and fp8.

    In fp8, matrices that `linear` and `grouped` multiply by are e4m3 with a float32 scale per block, and embedding,
    router and norms are bfloat16.
    """
    total = account(model).total_params
    layers = [weight for layer in range(model.num_layers) for weight in model.layer_weights(layer)]
    head = [] if model.tie_embeddings else [Weight("head", (model.vocab_size, model.dim))]
    in_fp8 = [weight for weight in (*layers, *head) if weight.is_matrix and weight.name != "ffn.router.w"]
    codes = sum(weight.total for weight in in_fp8)
    fp8 = codes + sum(map(_scale_bytes, in_fp8)) + ELEMENT["bf16"] * (total - codes)
    return {precision: size * total for precision, size in ELEMENT.items()} | {"fp8": fp8}


def _scale_bytes(weight: Weight) -> int:
    *experts, rows, columns = weight.shape
    matrices = experts[0] if experts else 1
    return SCALE * matrices * -(-rows // BLOCK) * -(-columns // BLOCK)
