"""Caches: what is written is what is held, in place; rows of their own, copied and shared; what a full one says."""

import numpy as np
import pytest
import torch
from torch import Tensor

import dsv2
from dsv2.inference.cache import LayerCache, ModelCache, allocate, allocate_model
from dsv2.models.attention import GQA, MLA
from dsv2.models.transformer import Transformer

LAYOUTS = {
    "even": [[2, 2], [1, 1], [1, 1]],
    "uneven": [[3, 1], [1, 1], [0, 2]],
    "one row after the other": [[4, 0], [0, 4]],
    "uneven, then even": [[1, 2], [2, 1], [1, 1]],
}


def build(*overrides: str) -> Transformer:
    return dsv2.load(["model.dim=16", "model.vocab_size=2048", *overrides]).model.build()


def two_rows(room: int = 5, *, lengths: np.ndarray | None = None) -> tuple[ModelCache, LayerCache]:
    """A cache of two tensors in two rows, which is empty, and its only layer."""
    layer = LayerCache((torch.zeros(2, room, 3), torch.zeros(2, room)))
    return ModelCache([layer], lengths=lengths), layer


def store(cache: ModelCache, tokens: list[list[float]]) -> None:
    """Store some tokens, told apart by numbers, in each row, the shorter ones padded on the left."""
    length = max(map(len, tokens))
    padded = torch.tensor([[-99.0] * (length - len(row)) + row for row in tokens])
    positions = torch.tensor(
        [
            [-1] * (length - len(row)) + [*range(start, start + len(row))]
            for row, start in zip(tokens, cache.lengths, strict=True)
        ]
    )
    places = cache.places(length, positions)
    for layer in cache:
        layer.write(padded[..., None].expand(-1, -1, 3), padded, places=places)
    cache.advance(places)


def held(cache: ModelCache, row: int) -> list[float]:
    """The numbers that a row holds."""
    (keys, values) = cache[0].read(int(cache.lengths[row]))
    assert torch.equal(keys, values[..., None].expand(-1, -1, 3))
    return values[row].tolist()


@pytest.mark.parametrize("counts", LAYOUTS.values(), ids=LAYOUTS)
def test_what_is_written_is_what_is_held(counts: list[list[int]]) -> None:
    """Each row has its own tokens in order, however many the others have, and zeros or stale tokens beyond."""
    cache, layer = two_rows()
    expected: list[list[float]] = [[], []]
    for step, pair in enumerate(counts):
        new = [[100.0 * row + 10 * step + n for n in range(count)] for row, count in enumerate(pair)]
        store(cache, new)
        for row, tokens in enumerate(new):
            expected[row] += tokens
        assert [held(cache, row) for row in range(2)] == expected
        assert cache.lengths.tolist() == [len(row) for row in expected]
    assert all(tensor.isfinite().all() for tensor in layer.tensors)
    assert -99 not in layer.tensors[1]  # padding is stored nowhere


def test_what_is_held_is_not_copied() -> None:
    """What `read` returns are views into the memory that was allocated once."""
    cache, layer = two_rows()
    store(cache, [[1.0], [2.0, 3.0]])
    assert layer.read(2)[0].data_ptr() == layer.tensors[0].data_ptr()


def test_another_dtype_is_cast_to_the_caches() -> None:
    layer = LayerCache((torch.zeros(2, 2, 1, dtype=torch.bfloat16),))
    cache = ModelCache([layer])
    for positions in (None, torch.tensor([[1], [-1]])):  # even, uneven
        places = cache.places(1, positions)
        layer.write(torch.tensor([[[1.001]], [[1.001]]]), places=places)
        cache.advance(places)
    assert layer.tensors[0].flatten().tolist() == [1, 1, 1, 0]


def test_a_full_cache_refuses_and_stays_as_it_was() -> None:
    cache, _ = two_rows(3)
    store(cache, [[1.0, 2.0], [3.0]])
    for positions in (None, torch.tensor([[2, 3], [-1, -1]])):
        with pytest.raises(ValueError, match="4 tokens do not fit in a cache of 3: allocate a larger max_length"):
            cache.places(2, positions)
    assert [held(cache, row) for row in range(2)] == [[1, 2], [3]]
    store(cache, [[4.0], [5.0, 6.0]])  # the last places
    assert [held(cache, row) for row in range(2)] == [[1, 2, 4], [3, 5, 6]]


def test_a_model_says_that_its_cache_is_full() -> None:
    model = build().eval()
    caches = allocate_model(model, batch_size=2, max_length=8)
    with pytest.raises(ValueError, match="9 tokens do not fit in a cache of 8"):
        model(torch.zeros(2, 9, dtype=torch.int64), caches=caches)
    assert caches.lengths.tolist() == [0, 0]


@torch.no_grad()
def test_a_pass_that_fails_leaves_the_lengths_and_can_be_repeated() -> None:
    model = build("model.num_layers=2").eval()
    tokens = torch.arange(6).view(2, 3)
    caches = allocate_model(model, batch_size=2, max_length=4)
    model.layers[1].forward, kept = lambda *_: 1 / 0, model.layers[1].forward
    with pytest.raises(ZeroDivisionError):
        model(tokens, caches=caches)
    assert caches.lengths.tolist() == [0, 0]
    model.layers[1].forward = kept
    assert torch.equal(
        model(tokens, caches=caches).logits,
        model(tokens, caches=allocate_model(model, batch_size=2, max_length=3)).logits,
    )


def test_rows_share_memory_and_lengths() -> None:
    """Of views too, and of views of one row; other rows stay as they are."""
    layer = LayerCache((torch.zeros(5, 4, 3), torch.zeros(5, 4)))
    cache = ModelCache([layer])
    middle = cache.rows(1, 4)
    store(middle, [[1.0], [2.0, 3.0], []])
    store(middle.rows(1, 2), [[4.0]])
    store(cache, [[], [5.0], [], [6.0, 7.0], []])
    assert [held(cache, row) for row in range(5)] == [[], [1, 5], [2, 3, 4], [6, 7], []]
    assert middle.lengths.tolist() == [2, 3, 2]
    assert middle.num_bytes * 5 == cache.num_bytes * 3


def test_a_row_begins_with_the_tokens_of_another() -> None:
    """Whether it held more than those or fewer, and whatever the source holds beyond them."""
    cache, _ = two_rows()
    store(cache, [[1.0, 2.0, 3.0], [4.0]])
    cache.copy(0, 1, 2)
    assert [held(cache, row) for row in range(2)] == [[1, 2, 3], [1, 2]]
    cache.copy(1, 0, 1)
    assert [held(cache, row) for row in range(2)] == [[1], [1, 2]]
    store(cache, [[8.0], [9.0]])
    assert [held(cache, row) for row in range(2)] == [[1, 8], [1, 2, 9]]
    cache.copy(0, 0, 1)
    assert held(cache, 0) == [1]
    with pytest.raises(AssertionError, match="row 0 has 1 tokens, not 2"):
        cache.copy(0, 1, 2)


def test_rows_are_exchanged_whole() -> None:
    """Neither is doubled, in a view and of different lengths too; each goes on where the other was."""
    layer = LayerCache((torch.zeros(4, 4, 3), torch.zeros(4, 4)))
    cache = ModelCache([layer])
    store(cache, [[1.0], [2.0, 3.0, 4.0], [5.0], []])
    cache.rows(1, 4).swap(0, 2)
    cache.swap(0, 2)
    assert [held(cache, row) for row in range(4)] == [[5], [], [1], [2, 3, 4]]
    cache.swap(3, 3)
    store(cache, [[6.0], [7.0], [8.0], [9.0]])
    assert [held(cache, row) for row in range(4)] == [[5, 6], [7], [1, 8], [2, 3, 4, 9]]


def test_a_shortened_row_leaves_nothing_behind() -> None:
    """A token that is no number would spoil the row's next tokens, since masked keys are multiplied by 0."""
    cache, layer = two_rows()
    store(cache, [[1.0, float("nan"), float("inf")], [2.0]])
    cache.truncate(0, 1)
    assert [held(cache, row) for row in range(2)] == [[1], [2]]
    assert all(tensor.isfinite().all() for tensor in layer.tensors)
    cache.truncate(0, 4)  # it is shorter already
    assert held(cache, 0) == [1]
    cache.truncate(0)
    assert cache.lengths.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("attention", "shapes"),
    [
        (GQA.Config(num_heads=8, num_kv_heads=2, head_dim=4), [(3, 5, 2, 4), (3, 5, 2, 4)]),
        (MLA.Config(num_heads=8, head_dim=4, rope_dim=2, v_dim=6, kv_latent_dim=7), [(3, 5, 7), (3, 5, 2)]),
    ],
)
def test_a_cache_is_as_large_as_the_attention_asks(attention: GQA.Config | MLA.Config, shapes: list) -> None:
    """(B, S, ...) with what a token leaves; with the dtype asked for."""
    cache = allocate(attention, batch_size=3, max_length=5, dtype=torch.bfloat16)
    assert [tuple(tensor.shape) for tensor in cache.tensors] == shapes
    assert {tensor.dtype for tensor in cache.tensors} == {torch.bfloat16}
    assert (cache.batch_size, cache.max_length) == (3, 5)
    assert cache.num_bytes == 2 * sum(torch.Size(shape).numel() for shape in shapes)


@pytest.mark.parametrize("attention", ["mha", "gqa", "mqa", "mla"])
def test_a_cache_holds_what_the_accounting_counts(attention: str) -> None:
    config = dsv2.load([f"model/attention={attention}"]).model
    with torch.device("meta"):
        caches = allocate_model(config.build(), batch_size=3, max_length=7)
    account = dsv2.account(config, kv_bits=32)
    assert caches.num_bytes == 3 * 7 * account.kv_bytes_per_token == 4 * 3 * 7 * account.kv_elements_per_token


def test_a_model_has_one_cache_per_layer_in_its_own_precision() -> None:
    """Layers share no memory."""
    model = build("model.num_layers=3").double()
    caches = allocate_model(model, batch_size=1, max_length=2)
    assert len(caches) == 3
    tensors: list[Tensor] = [tensor for layer in caches.layers for tensor in layer.tensors]
    assert {tensor.dtype for tensor in tensors} == {torch.float64}
    assert {tensor.device for tensor in tensors} == {model.embedding.device}
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)
