"""Quantised caches: that they quantise, what they hold, and that rows and chunks do not matter."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

import dsv2
from dsv2.config import ConfigError
from dsv2.inference.cache import LayerCache, ModelCache, allocate_model
from dsv2.inference.quantised import QuantisedCache, allocate_quantised, allocate_quantised_model
from dsv2.kernels import packed
from dsv2.kernels.quantise import PIECES, Grouped
from dsv2.models.attention import MLA
from dsv2.models.attention.cache import cached_places
from dsv2.models.attention.precision import BITS, KVPrecision
from dsv2.models.transformer import Transformer

ATTENTIONS = ("mla", "mha", "gqa", "mqa")
ROW = 1e-9  # relative to the largest logit, in float64: in float32, sums in another order may change a code
PRECISIONS = [
    KVPrecision.Config(bits=6),
    KVPrecision.Config(bits=4, rope_bits=16),
    KVPrecision.Config(bits=3, rope_bits=8, group_size=5, range_bits=32),
    KVPrecision.Config(bits=16),
]


def build(*overrides: str) -> Transformer:
    return dsv2.load(["model.vocab_size=2048", *overrides]).model.build(seed=3).eval()


def one_tensor(rows: int, length: int, width: int, bits: int) -> ModelCache:
    """A cache of one layer with one tensor, in one group."""
    form = Grouped(width, bits, width, range_bits=32)
    tensors = (torch.zeros(rows, length, *shape, dtype=dtype) for shape, dtype in form.shapes())
    return ModelCache([QuantisedCache(LayerCache(tuple(tensors)), ((form,),), rotated=False)])


def feed(cache: ModelCache, x: Tensor, sizes: list[int]) -> Tensor:
    """Write tokens (B, T, W) in pieces and return all that is held, decoded."""
    for piece in x.split(sizes, dim=1):
        places = cache.places(piece.shape[1])
        cache[0].write(piece, places=places)
        cache.advance(places)
    (held,) = cache[0].read(int(cache.lengths.max()))
    return held.decode(0, held.num_keys)


@pytest.mark.parametrize("sizes", [[32], [1] * 32, [5, 27]])
def test_two_bits_hold_four_values(sizes: list[int]) -> None:
    """Pitfall 35: values t / 31 in one group, the same however tokens are fed."""
    x = torch.stack([torch.arange(32).roll(shift) / 31 for shift in range(32)])[None]  # (1, 32, 32)
    values = feed(one_tensor(1, 40, 32, 2), x, sizes)
    assert all(len(token.unique()) == 4 for token in values[0])
    assert float((values - x).abs().max()) == pytest.approx(0.161290, abs=1e-6)
    assert torch.equal(values, feed(one_tensor(1, 40, 32, 2), x, [32]))


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_bytes_held_are_those_of_the_account(attention: str, precision: KVPrecision.Config) -> None:
    """What is reported is the memory of the tensors, per token and layer, and of a view the part of its rows."""
    model = build(f"model/attention={attention}")
    cache = allocate_quantised_model(model, precision, batch_size=3, max_length=7)
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage() for layer in cache for x in layer.held.tensors}
    held = sum(storage.nbytes() for storage in storages.values())
    assert cache.num_bytes == held
    assert held == 3 * 7 * dsv2.account(model.config, kv=precision).kv_bytes_per_token
    assert cache.rows(1, 3).num_bytes == held * 2 // 3


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_bytes_per_token_of_every_kind_and_precision(attention: str) -> None:
    config = dsv2.load(["model=v2_lite", f"model/attention={attention}"]).model
    for bits, rope_bits in itertools.product(BITS, (None, 16, 8)):
        precision = KVPrecision.Config(bits=bits, rope_bits=rope_bits)
        layer = allocate_quantised(config.attention, precision, batch_size=1, max_length=2, device="meta")
        assert config.num_layers * layer.num_bytes / 2 == dsv2.account(config, kv=precision).kv_bytes_per_token


@torch.no_grad()
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_chunks_and_rows_do_not_matter(attention: str, precision: KVPrecision.Config) -> None:
    """A ragged batch in pieces, then token by token, gives what each row gives alone and at once."""
    model = build(f"model/attention={attention}").double()
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(2048, (length,), generator=generator) for length in (9, 2, 6)]
    alone = []
    for ids in rows:
        cache = allocate_quantised_model(model, precision, batch_size=1, max_length=12)
        alone.append(model(ids[None], caches=cache).logits[0])
    cache = allocate_quantised_model(model, precision, batch_size=3, max_length=12)
    positions = torch.full((3, 5), -1)
    tokens = torch.zeros(3, 5, dtype=torch.int64)
    for row, ids in enumerate(rows):
        count = min(len(ids), 5)
        tokens[row, :count], positions[row, :count] = ids[:count], torch.arange(count)
    logits = model(tokens, positions=positions, caches=cache).logits
    got = [list(logits[row][positions[row] >= 0]) for row in range(3)]
    for step in range(5, 9):
        ids = torch.tensor([[row[step] if step < len(row) else 0] for row in rows])
        places = torch.tensor([[step if step < len(row) else -1] for row in rows])
        logits = model(ids, positions=places, caches=cache).logits
        for row in range(3):
            got[row] += [logits[row, 0]] if step < len(rows[row]) else []
    for mine, expected in zip(got, alone, strict=True):
        assert (torch.stack(mine) - expected).abs().max() <= ROW * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_more_bits_are_nearer_to_the_plain_cache(attention: str) -> None:
    model = build(f"model/attention={attention}", "model.init_std=0.1")
    tokens = torch.randint(2048, (2, 24), generator=torch.Generator().manual_seed(1))
    plain = model(tokens).logits
    errors = []
    for bits in (2, 3, 4, 6, 8):
        cache = allocate_quantised_model(model, KVPrecision.Config(bits=bits), batch_size=2, max_length=24)
        errors.append(float((model(tokens, caches=cache).logits - plain).norm() / plain.norm()))
    assert all(more < 0.8 * fewer for fewer, more in itertools.pairwise(errors))
    assert 1e-5 < errors[-1] < 0.02  # it does quantise
    cache = allocate_quantised_model(model, KVPrecision.Config(), batch_size=2, max_length=24)
    assert (model(tokens, caches=cache).logits - plain).norm() < 0.01 * plain.norm()


@torch.no_grad()
def test_a_rotated_latent_changes_the_error_alone() -> None:
    model = build("model.init_std=0.1")
    tokens = torch.randint(2048, (2, 24), generator=torch.Generator().manual_seed(1))
    plain = model(tokens).logits
    fine, coarse = ({"bits": 8, "range_bits": 32}, {"bits": 3})
    for settings, error in ((fine, 0.02), (coarse, 0.5)):
        logits = []
        for rotated in (False, True):
            precision = KVPrecision.Config(**settings, hadamard=rotated)
            cache = allocate_quantised_model(model, precision, batch_size=2, max_length=24)
            logits.append(model(tokens, caches=cache).logits)
            assert (logits[-1] - plain).norm() < error * plain.norm()
        assert not torch.equal(*logits)


def test_rows_that_are_exchanged_copied_and_cleared_follow() -> None:
    """After packing, so that codes and ranges go together; loops over all tensors that are held."""
    model = build()
    cache = allocate_quantised_model(model, KVPrecision.Config(bits=6), batch_size=3, max_length=8)
    tokens = torch.randint(2048, (3, 5), generator=torch.Generator().manual_seed(2))
    more = torch.randint(2048, (3, 1), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        model(tokens, caches=cache)
        before = [[x.clone() for x in layer.held.tensors] for layer in cache]
        cache.swap(0, 2)
        for layer, tensors in zip(cache, before, strict=True):
            for now, then in zip(layer.held.tensors, tensors, strict=True):
                assert torch.equal(now, then[[2, 1, 0]])
        fresh = allocate_quantised_model(model, KVPrecision.Config(bits=6), batch_size=3, max_length=8)
        model(tokens[[2, 1, 0]], caches=fresh)
        assert torch.equal(model(more, caches=cache).logits, model(more, caches=fresh).logits)
        cache.copy(1, 0, 4)
        assert cache.lengths.tolist() == [4, 6, 6]
        cache.truncate(2, 0)
        for layer in cache:
            for x in layer.held.tensors:
                assert torch.equal(x[0, :4], x[1, :4])
                assert not x[0, 4:].any()
                assert not x[2].any()


@torch.no_grad()
def test_a_view_writes_into_the_rows_that_it_is_of() -> None:
    model = build()
    precision = KVPrecision.Config(bits=5, rope_bits=16)
    cache = allocate_quantised_model(model, precision, batch_size=3, max_length=8)
    tokens = torch.randint(2048, (1, 5), generator=torch.Generator().manual_seed(2))
    alone = allocate_quantised_model(model, precision, batch_size=1, max_length=8)
    assert torch.equal(model(tokens, caches=cache.rows(1, 2)).logits, model(tokens, caches=alone).logits)
    assert cache.lengths.tolist() == [0, 5, 0]
    assert all(
        torch.equal(x[1], y[0])
        for a, b in zip(cache, alone, strict=True)
        for x, y in zip(a.held.tensors, b.held.tensors, strict=True)
    )


@torch.no_grad()
def test_a_full_cache_refuses_and_stays_as_it_was() -> None:
    model = build()
    cache = allocate_quantised_model(model, KVPrecision.Config(bits=4), batch_size=2, max_length=8)
    with pytest.raises(ValueError, match="9 tokens do not fit in a cache of 8"):
        model(torch.zeros(2, 9, dtype=torch.int64), caches=cache)
    assert cache.lengths.tolist() == [0, 0]


@torch.no_grad()
@pytest.mark.parametrize("attention", ["mla", "mha"])
def test_a_row_of_padding_alone_is_finite(attention: str) -> None:
    """It sees a place in which nothing was stored."""
    model = build(f"model/attention={attention}")
    cache = allocate_quantised_model(model, KVPrecision.Config(bits=4), batch_size=2, max_length=4)
    tokens, positions = torch.zeros(2, 3, dtype=torch.int64), torch.tensor([[0, 1, 2], [-1, -1, -1]])
    assert model(tokens, positions=positions, caches=cache).logits.isfinite().all()
    assert cache.lengths.tolist() == [3, 0]


def test_memory_is_not_decoded_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """At no time are more than CHUNK keys decoded."""
    monkeypatch.setattr(packed, "CHUNK", 3)
    seen = []
    decode = Grouped.decode

    def watched(self: Grouped, codes: Tensor, ranges: Tensor) -> Tensor:
        seen.append(codes.shape[1])
        return decode(self, codes, ranges)

    monkeypatch.setattr(Grouped, "decode", watched)
    model = build()
    with torch.no_grad():
        cache = allocate_quantised_model(model, KVPrecision.Config(bits=6), batch_size=1, max_length=8)
        model(torch.zeros(1, 8, dtype=torch.int64), caches=cache)
    assert set(seen) == {3, 2}


def test_a_gradient_that_would_be_missing_is_refused() -> None:
    model = build()
    cache = allocate_quantised_model(model, KVPrecision.Config(bits=6), batch_size=1, max_length=2)
    with pytest.raises(ValueError, match="a quantised cache has no gradient"):
        model(torch.zeros(1, 2, dtype=torch.int64), caches=cache)
    assert cache.lengths.tolist() == [0]


def test_a_rotation_without_a_latent_is_refused() -> None:
    with pytest.raises(ConfigError, match="hadamard=True is not valid: false for attention without a latent"):
        allocate_quantised_model(
            build("model/attention=gqa"), KVPrecision.Config(bits=4, hadamard=True), batch_size=1, max_length=2
        )


@pytest.mark.parametrize("width", [48, 72, 576])
def test_latents_of_any_width(width: int) -> None:
    attention = MLA.Config(num_heads=2, head_dim=8, rope_dim=6, v_dim=8, kv_latent_dim=width)
    x, r = torch.randn(2, 4, width), torch.randn(2, 4, 6)
    for bits in PIECES:
        layer = allocate_quantised(attention, KVPrecision.Config(bits=bits), batch_size=2, max_length=4)
        layer.write(x, r, places=cached_places(np.zeros(2, dtype=np.int64), 4, 4))
        latents, keys = layer.read(4)
        for held, given in ((latents, x), (keys, r)):
            (part,) = held.parts
            bound = part.form.error_bound(part.held[1]).repeat_interleave(part.form.group_size, -1)
            assert ((held.decode(0, 4) - given).abs() <= bound[..., : given.shape[-1]]).all()


def test_plain_and_quantised_caches_are_used_alike() -> None:
    """Whatever `ModelCache` and the engine ask of a layer's cache."""
    plain, packed = (
        allocate_model(build(), batch_size=1, max_length=1)[0],
        allocate_quantised_model(build(), KVPrecision.Config(bits=8), batch_size=1, max_length=1)[0],
    )
    asked = {name for name in dir(plain) if not name.startswith("_")} - {"tensors", "flat"}
    assert asked <= set(dir(packed))
