"""Attention to cached latents: the plain form against a loop, and what a quantised cache holds."""

import math

import pytest
import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.mla_decode import latent_attention, mla_decode, quantised
from tests.references.kernels import normal
from tests.references.tolerances import EXACT, FLOAT64, close

LENGTHS = [7, 1, 4, 0]


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """4 rows, 3 heads, 7 tokens, a latent of 5 and a key of 2 channels."""
    shapes = [(4, 3, 5), (4, 3, 2), (4, 7, 5), (4, 7, 2)]
    return [normal(*shape, seed=seed, dtype=torch.float64).to(dtype) for seed, shape in enumerate(shapes)]


def looped(q_latent: Tensor, q_rope: Tensor, c_kv: Tensor, k_rope: Tensor, lengths: list[int], scale: float) -> Tensor:
    out = torch.zeros_like(q_latent)
    for b, length in enumerate(lengths):
        for h in range(q_latent.shape[1]):
            scores = [scale * float(q_latent[b, h] @ c_kv[b, s] + q_rope[b, h] @ k_rope[b, s]) for s in range(length)]
            total = sum(math.exp(score) for score in scores)
            for s, score in enumerate(scores):
                out[b, h] += math.exp(score) / total * c_kv[b, s]
    return out


def test_rows_attend_to_their_first_tokens() -> None:
    """What lies beyond a row's length may be anything; a row without tokens gives 0."""
    parts = inputs()
    expected = looped(*parts, LENGTHS, scale=0.7)
    for b, length in enumerate(LENGTHS):
        for x in parts[2:]:
            x[b, length:] = torch.nan
    close(mla_decode(*parts, torch.tensor(LENGTHS), scale=0.7), expected, FLOAT64)


def test_rows_of_a_quantised_cache_are_times_their_scales() -> None:
    q_latent, q_rope, c_kv, k_rope = inputs()
    codes, scales = quantised(c_kv, torch.int8)
    lengths = torch.tensor(LENGTHS)
    scales[1, 1:] = torch.nan
    got = mla_decode(q_latent, q_rope, codes, k_rope, lengths, scale=0.7, scales=scales)
    latents = codes.double() * scales.double().nan_to_num()[..., None]
    close(got, reference.mla_decode(q_latent, q_rope, latents, k_rope, lengths, scale=0.7), FLOAT64)


def test_several_queries_at_the_end_of_a_row_are_decoded_one_by_one() -> None:
    q_latent, q_rope, c_kv, k_rope = inputs()
    two = [torch.stack((x, x.flip(0)), 1) for x in (q_latent, q_rope)]  # (B, 2, H, .)
    together = latent_attention(*two, c_kv, k_rope, scale=0.7)
    for index, length in enumerate((6, 7)):
        alone = mla_decode(*(x[:, index] for x in two), c_kv, k_rope, torch.full((4,), length), scale=0.7)
        close(together[:, index], alone, FLOAT64)
        visible = (torch.arange(7) < length).expand(4, 1, 7)
        single = [x[:, index : index + 1] for x in two]
        close(latent_attention(*single, c_kv, k_rope, scale=0.7, visible=visible)[:, 0], alone, FLOAT64)


@pytest.mark.parametrize(("dtype", "largest"), [(torch.int8, 127), (torch.float8_e4m3fn, 448)])
def test_the_largest_channel_of_a_row_is_kept(dtype: torch.dtype, largest: int) -> None:
    x = torch.tensor([[1.0, -3.0, 0.5, 2.0], [0.0, 0.0, 0.0, 0.0], [1e-3, 5e-4, 0.0, -1e-3], [1e9, 1.0, -1e9, 0.0]])
    codes, scales = quantised(x, dtype)
    assert codes.dtype == dtype
    assert codes.float().abs().amax(1).tolist() == [largest, 0, largest, largest]
    close(codes.float() * scales[:, None], x, 0.5 / 127 if dtype == torch.int8 else 1 / 16)


def test_a_row_of_few_values_is_quantised_to_them() -> None:
    codes, scales = quantised(torch.tensor([-127.0, -2.0, 0.0, 1.0, 127.0]).half(), torch.int8)
    assert codes.tolist() == [-127, -2, 0, 1, 127]
    close(scales, torch.tensor(1.0), EXACT)


def test_int8_is_off_by_half_a_step_at_most() -> None:
    x = normal(50, 64)
    codes, scales = quantised(x, torch.int8)
    assert len(codes.unique()) > 200  # it does quantise
    assert ((codes * scales[:, None] - x).abs() <= 0.5001 * scales[:, None]).all()
