"""Decoding from latents in Triton beside its specification."""

import pytest
import torch
from torch import Tensor

from dsv2.inference.cache import ModelCache, allocate
from dsv2.kernels import reference
from dsv2.kernels.choice import using
from dsv2.kernels.mla_decode import latent_attention, mla_decode, quantised
from dsv2.kernels.triton.mla_decode import blocks, tokens_per_split
from dsv2.models.attention.mla import MLA
from dsv2.models.rope import Rope
from tests.references.fences import DEVICE, fenced
from tests.references.kernels import normal
from tests.references.tolerances import FLOAT32_MODULE, close
from tests.references.triton import traces

pytestmark = pytest.mark.usefixtures("triton_ops")

HALF = {torch.float16: 2e-3, torch.bfloat16: 2e-2}  # weights and outputs rounded to 2^-11 and 2^-8
SIZES = {  # heads, C, R, lengths of the rows of a cache of 70 tokens
    "one of everything": (1, 1, 2, [1]),
    "odd widths": (5, 40, 6, [70, 1, 33]),
    "ragged": (3, 16, 16, [32, 64, 31, 65, 0]),
    "heads of two programs": (20, 17, 2, [70, 2]),
    "V2's widths": (16, 512, 64, [70]),
}


def inputs(heads: int, latent: int, rope: int, lengths: list[int], capacity: int = 70) -> list[Tensor]:
    """Queries and a cache, in which tokens beyond a row's length are NaN."""
    shapes = [(heads, latent), (heads, rope), (capacity, latent), (capacity, rope)]
    parts = [fenced(normal(len(lengths), *shape, seed=seed)) for seed, shape in enumerate(shapes)]
    for b, length in enumerate(lengths):
        for x in parts[2:]:
            x[b, length:] = torch.nan
    return [*parts, fenced(torch.tensor(lengths))]


def decode(parts: list[Tensor], split: int | None = None, scales: Tensor | None = None) -> Tensor:
    return torch.ops.dsv2_triton.mla_decode(*parts, scales, 0.4, split)


@pytest.mark.parametrize("split", [16, 32, 64, 1000])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_values_are_those_of_the_specification(sizes: tuple[int, int, int, list[int]], split: int) -> None:
    """Splits are shorter than the context, as long as some rows, and longer than all."""
    parts = inputs(*sizes)
    close(decode(parts, split), reference.mla_decode(*parts, scale=0.4), FLOAT32_MODULE)


def test_many_splits_of_many_channels_are_combined() -> None:
    """35 splits and 130 channels: a program combines 32 and 128 at once."""
    parts = inputs(2, 130, 2, [70, 3])
    close(decode(parts, 2), reference.mla_decode(*parts, scale=0.4), FLOAT32_MODULE)


def test_the_public_function_chooses_the_split() -> None:
    parts = inputs(2, 16, 4, [300, 129, 128, 3], capacity=300)
    close(mla_decode(*parts, scale=0.4), reference.mla_decode(*parts, scale=0.4), FLOAT32_MODULE)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("heads", [3, 70])
def test_half_precision_is_summed_in_float32(heads: int, dtype: torch.dtype) -> None:
    """It has programs for 64 heads."""
    *parts, lengths = inputs(heads, 40, 8, [70, 33])
    parts = [fenced(x.to(dtype)) for x in parts]
    out = decode([*parts, lengths], 32)
    assert out.dtype == dtype
    close(out, reference.mla_decode(*(x.float() for x in parts), lengths, scale=0.4), HALF[dtype])


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_quantised_cache_is_times_its_scales(dtype: torch.dtype) -> None:
    q_latent, q_rope, c_kv, k_rope, lengths = inputs(5, 40, 8, [70, 1, 33])
    codes, scales = quantised(c_kv.nan_to_num(3.0), dtype)
    for b, length in enumerate(lengths.tolist()):
        scales[b, length:] = torch.nan
    parts = [q_latent, q_rope, fenced(codes), k_rope, lengths]
    got = mla_decode(*parts, scale=0.4, scales=fenced(scales))
    close(got, reference.mla_decode(*parts, scale=0.4, scales=scales), FLOAT32_MODULE)
    assert torch.equal(got, decode(parts, 128, fenced(scales)))


def test_the_cache_may_be_a_view_of_a_larger_one() -> None:
    q_latent, q_rope, c_kv, k_rope, lengths = inputs(3, 16, 4, [40, 5])
    expected = decode([q_latent, q_rope, c_kv, k_rope, lengths], 32)
    joined = torch.cat((c_kv, k_rope), -1)
    for cache in ((c_kv[:, :40], k_rope[:, :40]), joined.split([16, 4], -1), (c_kv.mT.contiguous().mT, k_rope)):
        assert torch.equal(decode([q_latent, q_rope, *cache, lengths], 32), expected)
    turned = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q_latent, q_rope)]
    assert torch.equal(decode([*turned, c_kv, k_rope, lengths], 32), expected)
    codes, scales = quantised(c_kv.nan_to_num(), torch.int8)
    wide = torch.stack((scales, scales), -1)[..., 0]
    parts = [q_latent, q_rope, codes, k_rope, lengths]
    assert torch.equal(decode(parts, 32, wide), decode(parts, 32, scales))


@pytest.mark.parametrize("lengths", [torch.tensor([70, 3], dtype=torch.int32), torch.tensor([[70, 9], [3, 9]])[:, 0]])
def test_lengths_of_any_integer_type_and_stride(lengths: Tensor) -> None:
    parts = inputs(2, 16, 4, [70, 3])
    assert torch.equal(decode([*parts[:4], lengths.to(DEVICE)], 32), decode(parts, 32))


def test_no_more_than_the_cache_is_read() -> None:
    parts = inputs(2, 16, 4, [70, 3])
    expected = decode(parts, 32)
    parts[4] = torch.tensor([500, 3], device=DEVICE)
    assert torch.equal(decode(parts, 32), expected)
    close(expected, reference.mla_decode(*parts, scale=0.4), FLOAT32_MODULE)


def test_rows_beyond_two_to_the_31_are_read() -> None:
    """The cache's memory is asked for but not touched, except at the start of rows 2^30 elements apart."""
    tokens, latent = 2**25, 32
    c_kv = torch.empty_strided((3, tokens, latent), (tokens * latent, latent, 1), dtype=torch.int8, device=DEVICE)
    c_kv[:, 0] = torch.tensor([3, 5, 7])[:, None]
    parts = [normal(3, 2, latent).to(DEVICE), normal(3, 2, 4).to(DEVICE), c_kv[:, :1], torch.zeros(3, 1, 4).to(DEVICE)]
    got = decode([*parts, torch.ones(3, dtype=torch.int64, device=DEVICE)], 32, torch.ones(3, 1, device=DEVICE))
    assert got[:, 0, 0].tolist() == [3, 5, 7]


def test_no_tokens_and_no_rows() -> None:
    parts = inputs(2, 16, 4, [0, 0], capacity=0)
    assert torch.equal(decode(parts), torch.zeros(2, 2, 16, device=DEVICE))
    assert decode([x[:0] for x in parts]).shape == (0, 2, 16)


@pytest.mark.parametrize("heads", [1, 16, 17, 64, 128])
def test_every_head_has_a_program_and_every_program_tokens(heads: int) -> None:
    for element_size in (2, 4):
        assert 16 <= blocks(heads, element_size)["BLOCK_H"] <= 64
    for capacity in (1, 127, 129, 4096, 100_000):
        for programs in (1, 7, 300, 10_000):
            split = tokens_per_split(programs, capacity, 132)
            assert split % 32 == 0
            assert split >= 128
            assert programs * -(-capacity // split) <= max(132, programs)


def test_shapes_can_be_traced_without_data() -> None:
    parts = [x.nan_to_num() for x in inputs(2, 16, 4, [70, 3])]
    traces(torch.ops.dsv2_triton.mla_decode, *parts, None, 0.4, 32)


# ---- in MLA ----------------------------------------------------------------------------------------------------------


def test_a_query_attends_as_without_triton() -> None:
    *parts, lengths = inputs(2, 16, 4, [70, 33])
    c_kv, k_rope = (x.nan_to_num() for x in parts[2:])
    queries = [x[:, None] for x in parts[:2]]
    visible = (torch.arange(70, device=DEVICE) < lengths[:, None])[:, None]
    for mask in (None, visible):
        with torch.no_grad():
            got = latent_attention(*queries, c_kv, k_rope, scale=0.4, visible=mask)
            with using("torch"):
                close(got, latent_attention(*queries, c_kv, k_rope, scale=0.4, visible=mask), FLOAT32_MODULE)


def test_with_gradients_the_plain_form_runs() -> None:
    *parts, _ = inputs(2, 16, 4, [70])
    q_latent = parts[0][:, None].requires_grad_()
    latent_attention(q_latent, parts[1][:, None], *parts[2:], scale=0.4).sum().backward()
    assert q_latent.grad is not None


@torch.no_grad()
def test_mla_decodes_as_without_triton() -> None:
    config = MLA.Config(num_heads=2, head_dim=4, rope_dim=4, v_dim=3, kv_latent_dim=8)
    rope = Rope.Config().build()
    mla = config.build(6, rope)
    for seed, weight in enumerate(mla.parameters()):
        weight.copy_(normal(*weight.shape, seed=seed))
    mla, h = mla.to(DEVICE), normal(2, 5, 6).to(DEVICE)
    outs = []
    for kernels in ("torch", "triton"):
        cache = allocate(config, batch_size=2, max_length=9, device=DEVICE, dtype=torch.float32)
        caches = ModelCache([cache])
        steps = []
        with using(kernels, ["mla_decode"]):
            for tokens in (range(3), range(3, 4), range(4, 5)):
                positions = torch.tensor(tokens, device=DEVICE)
                places = caches.places(len(tokens), device=torch.device(DEVICE))
                steps.append(mla(h[:, positions], rope.rotations(positions, 4), cache, places))
                caches.advance(places)
        outs.append(torch.cat(steps, 1))
    assert not torch.equal(*outs)  # two forms did run
    close(outs[1], outs[0], FLOAT32_MODULE)
