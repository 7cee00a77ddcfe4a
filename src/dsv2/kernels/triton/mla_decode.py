"""One query per request against cached latents, split over the context. Specification: `reference.mla_decode`.

B requests, H heads, S capacity of the cache in tokens, C latent width, R width of the rotated key.

A step reads every latent once for 16 to 64 heads, so it is bound by the memory's bandwidth, and a batch of few requests
has too few programs for a GPU unless each request's context is split. The first kernel attends to one split, the second
combines the splits by their log sums. A short request has few splits, and tokens beyond its length are never read.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.triton.tiles import LOG2_E, dot, load_tile, padded, store_tile


@triton.jit(do_not_specialize=["capacity", "num_splits"])  # which grow as a text does
def _attend(
    q_latent, q_rope, c_kv, k_rope, scales, lengths, partial, log_sums, scale,
    latent_batch, latent_row, rope_batch, rope_row, scale_batch, capacity, split, num_splits,
    H: tl.constexpr, C: tl.constexpr, R: tl.constexpr,
    QUANTISED: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Write partial (B, H, splits, C), attention to one split alone, and log_sums (B, H, splits), to base 2."""
    i, b = tl.program_id(0), tl.program_id(2).to(tl.int64)
    length = tl.minimum(tl.load(lengths + b), capacity)
    begin = tl.cast(i, tl.int64) * split
    if begin < length:
        first = tl.program_id(1) * BLOCK_H
        a_latent = load_tile(q_latent + b * H * C, first, H, C, C, BLOCK_H)
        a_rope = load_tile(q_rope + b * H * R, first, H, R, R, BLOCK_H)
        top = tl.full((BLOCK_H,), -float("inf"), tl.float32)
        total = tl.zeros((BLOCK_H,), tl.float32)
        sums = tl.zeros((BLOCK_H, padded(C)), tl.float32)
        end = tl.minimum(begin + split, length)
        for start in range(begin, end, BLOCK_S):
            tokens = start + tl.arange(0, BLOCK_S)
            latents = load_tile(c_kv + b * latent_batch, start, end, latent_row, C, BLOCK_S).to(a_latent.dtype)
            ropes = load_tile(k_rope + b * rope_batch, start, end, rope_row, R, BLOCK_S)
            scores = dot(a_latent, tl.trans(latents), tl.zeros((BLOCK_H, BLOCK_S), tl.float32))
            if QUANTISED:  # a row's scale is a factor of its score and of its weight: no latent is multiplied
                row_scales = tl.load(scales + b * scale_batch + tokens, tokens < end, other=0)[None, :]
                scores *= row_scales
            scores = dot(a_rope, tl.trans(ropes), scores) * (scale * LOG2_E)
            scores = tl.where(tokens[None, :] < end, scores, -float("inf"))
            higher = tl.maximum(top, tl.max(scores, 1))
            shrink, weights = tl.exp2(top - higher), tl.exp2(scores - higher[:, None])
            total, top = total * shrink + tl.sum(weights, 1), higher
            if QUANTISED:
                weights *= row_scales
            sums = dot(weights.to(a_latent.dtype), latents, sums * shrink[:, None])
        row = b * H * num_splits + i
        store_tile(partial + row * C, sums / total[:, None], first, H, num_splits * C, C, BLOCK_H)
        heads = first + tl.arange(0, BLOCK_H)
        tl.store(log_sums + row + heads * num_splits, top + tl.log2(total), heads < H)


@triton.jit(do_not_specialize=["num_splits"])
def _combine(
    partial, log_sums, lengths, out, split, num_splits,
    H: tl.constexpr, C: tl.constexpr, SPLITS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write out (B, H, C): the splits of a request weighted by their sums; 0 for a request without tokens."""
    h, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = b * H + h
    columns = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    count = tl.minimum(tl.cdiv(tl.load(lengths + b), split), num_splits)
    top = -float("inf")
    total = 0.0
    sums = tl.zeros((CHANNELS,), tl.float32)
    for first in range(0, count, SPLITS):  # many at once: each step waits for memory
        splits = first + tl.arange(0, SPLITS)
        log_sum = tl.load(log_sums + row * num_splits + splits, splits < count, other=-float("inf"))
        pointers = partial + (row * num_splits + splits[:, None]) * C + columns[None, :]
        means = tl.load(pointers, (splits[:, None] < count) & (columns[None, :] < C), other=0)
        higher = tl.maximum(top, tl.max(log_sum, 0))
        shrink, weights = tl.exp2(top - higher), tl.exp2(log_sum - higher)
        sums = sums * shrink + tl.sum(weights[:, None] * means, 0)
        total, top = total * shrink + tl.sum(weights, 0), higher
    mean = sums / tl.where(total > 0, total, 1.0)
    tl.store(out + row * C + columns, mean.to(out.dtype.element_ty), columns < C)


def blocks(num_heads: int, element_size: int) -> dict[str, int]:
    """Return the block sizes and launch options: latents are read once for the 64 heads that fill Hopper's warpgroup.

    Sums of 64 heads and 512 channels fill the registers of 8 warps. Float32 is multiplied without tensor cores, out of
    registers: its blocks are as small as they can be.
    """
    if element_size > 2:
        return {"BLOCK_H": 16, "BLOCK_S": 16, "num_warps": 8, "num_stages": 1}
    heads = min(padded(num_heads), 64)
    return {"BLOCK_H": heads, "BLOCK_S": 32, "num_warps": 4 if heads == 16 else 8, "num_stages": 2}


def tokens_per_split(programs: int, capacity: int, places: int) -> int:
    """Return the tokens to which a program attends, of at least 128: so that all programs run at once, each in a place.

    More would be written and read again in vain: a split of 64 heads and 512 channels costs as much as 230 tokens.
    """
    split = triton.cdiv(capacity, max(places // max(programs, 1), 1))
    return max(triton.cdiv(split, 32) * 32, 128)


def _processors(device: torch.device) -> int:
    """Return the number of multiprocessors, an H100's where there is no GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


@torch.library.custom_op("dsv2_triton::mla_decode", mutates_args=())
def mla_decode(
    q_latent: Tensor, q_rope: Tensor, c_kv: Tensor, k_rope: Tensor, lengths: Tensor,
    scales: Tensor | None, scale: float, split: int | None = None,
) -> Tensor:  # fmt: skip
    """Attend to the first `lengths` (B,) tokens of each row of the cache, `split` tokens per program: (B, H, C).

    The cache may be a view of a larger one: it is copied only if the channels of a token do not lie together.
    """
    (batch, heads, width), capacity = q_latent.shape, c_kv.shape[1]
    options = blocks(heads, q_latent.element_size())
    programs = triton.cdiv(heads, options["BLOCK_H"]) * batch
    places = _processors(c_kv.device) * (2 if options["num_warps"] == 4 else 1)
    split = split or tokens_per_split(programs, capacity, places)
    q_latent, q_rope, lengths = q_latent.contiguous(), q_rope.contiguous(), lengths.contiguous()
    c_kv, k_rope = (x if x.stride(-1) == 1 else x.contiguous() for x in (c_kv, k_rope))
    if scales is not None and scales.stride(-1) != 1:
        scales = scales.contiguous()
    num_splits, scale_batch = triton.cdiv(capacity, split), 0 if scales is None else scales.stride(0)
    out = torch.zeros_like(q_latent)  # which a request without tokens keeps
    partial, log_sums = out, q_latent.new_empty(batch, heads, num_splits, dtype=torch.float32)
    if num_splits > 1:
        partial = q_latent.new_empty(batch, heads, num_splits, width, dtype=torch.float32)
    _attend[(num_splits, triton.cdiv(heads, options["BLOCK_H"]), batch)](
        q_latent, q_rope, c_kv, k_rope, scales, lengths, partial, log_sums, scale,
        *c_kv.stride()[:2], *k_rope.stride()[:2], scale_batch, capacity, split, num_splits,
        H=heads, C=width, R=q_rope.shape[2], QUANTISED=scales is not None, **options,
    )  # fmt: skip
    if num_splits > 1:
        tile = {"SPLITS": 32, "CHANNELS": 128, "num_warps": 4}
        grid = (heads, batch, triton.cdiv(width, tile["CHANNELS"]))
        _combine[grid](partial, log_sums, lengths, out, split, num_splits, H=heads, C=width, **tile)
    return out


@mla_decode.register_fake
def _(
    q_latent: Tensor, q_rope: Tensor, c_kv: Tensor, k_rope: Tensor, lengths: Tensor,
    scales: Tensor | None, scale: float, split: int | None = None,
) -> Tensor:  # fmt: skip
    return q_latent.new_empty(q_latent.shape)
