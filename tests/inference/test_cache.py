"""Caches: what is written is what is held, in place; how large they are; what a full one says."""

import pytest
import torch

import dsv2
from dsv2.inference.cache import LayerCache, allocate, allocate_model
from dsv2.models.attention import GQA, MLA
from dsv2.models.transformer import Transformer


def build(*overrides: str) -> Transformer:
    return dsv2.load(["model.dim=16", "model.vocab_size=2048", *overrides]).model.build()


def test_what_is_appended_is_what_is_held() -> None:
    """Chunk after chunk, each returned with all before it, in the order of the tensors."""
    cache = LayerCache((torch.empty(2, 5, 3), torch.empty(2, 5)))
    keys, values = torch.arange(24.0).view(2, 4, 3), torch.arange(8.0).view(2, 4)
    start = 0
    for length in (1, 2, 1):
        end = start + length
        held = cache.append(keys[:, start:end], values[:, start:end])
        assert cache.length == end
        assert torch.equal(held[0], keys[:, :end])
        assert torch.equal(held[1], values[:, :end])
        start = end


def test_what_is_held_is_not_copied() -> None:
    """What `append` returns are views into the memory that was allocated once."""
    cache = LayerCache((torch.empty(2, 5, 3),))
    (held,) = cache.append(torch.zeros(2, 2, 3))
    assert held.data_ptr() == cache.tensors[0].data_ptr()


def test_another_dtype_is_cast_to_the_caches() -> None:
    cache = LayerCache((torch.empty(1, 2, 1, dtype=torch.bfloat16),))
    (held,) = cache.append(torch.tensor([[[1.001]]]))
    assert held.dtype == torch.bfloat16
    assert held.item() == 1.0


def test_a_full_cache_refuses_and_stays_as_it_was() -> None:
    cache = LayerCache((torch.zeros(1, 3, 2),))
    cache.append(torch.ones(1, 2, 2))
    with pytest.raises(ValueError, match="4 tokens do not fit in a cache of 3: allocate a larger max_length"):
        cache.append(torch.full((1, 2, 2), 2.0))
    assert cache.length == 2
    assert cache.tensors[0].sum() == 4
    cache.append(torch.ones(1, 1, 2))  # the last place


def test_a_model_says_that_its_cache_is_full() -> None:
    model = build().eval()
    caches = allocate_model(model, batch_size=2, max_length=8)
    with pytest.raises(ValueError, match="9 tokens do not fit in a cache of 8"):
        model(torch.zeros(2, 9, dtype=torch.int64), caches=caches)
    assert caches[0].length == 0


@pytest.mark.parametrize(
    ("attention", "shapes"),
    [
        (GQA.Config(num_heads=8, num_kv_heads=2, head_dim=4), [(3, 5, 2, 4), (3, 5, 2, 4)]),
        (MLA.Config(num_heads=8, head_dim=4, rope_dim=2, v_dim=6, kv_latent_dim=7), [(3, 5, 7), (3, 5, 2)]),
    ],
)
def test_a_cache_is_as_large_as_the_attention_asks(attention: GQA.Config | MLA.Config, shapes: list) -> None:
    """(B, S, ...) with what a token leaves; empty, with the dtype asked for."""
    cache = allocate(attention, batch_size=3, max_length=5, dtype=torch.bfloat16)
    assert [tuple(tensor.shape) for tensor in cache.tensors] == shapes
    assert {tensor.dtype for tensor in cache.tensors} == {torch.bfloat16}
    assert cache.length == 0


@pytest.mark.parametrize("attention", ["mha", "gqa", "mqa", "mla"])
def test_a_cache_holds_what_the_accounting_counts(attention: str) -> None:
    config = dsv2.load([f"model/attention={attention}"]).model
    cache = allocate(config.attention, batch_size=1, max_length=1)
    held = config.num_layers * sum(tensor.numel() for tensor in cache.tensors)
    assert held == dsv2.account(config).kv_elements_per_token


def test_a_model_has_one_cache_per_layer_in_its_own_precision() -> None:
    """Layers share no memory."""
    model = build("model.num_layers=3").double()
    caches = allocate_model(model, batch_size=1, max_length=2)
    assert len(caches) == 3
    tensors = [tensor for cache in caches for tensor in cache.tensors]
    assert {tensor.dtype for tensor in tensors} == {torch.float64}
    assert {tensor.device for tensor in tensors} == {model.embedding.device}
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)
