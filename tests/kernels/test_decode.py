"""Attention layers with one new token per row, as compiled ops, beside the same layers in plain torch."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dsv2.inference.cache import LayerCache, allocate
from dsv2.inference.quantised import allocate_quantised
from dsv2.kernels.choice import using
from dsv2.kernels.decode import has_step
from dsv2.models.attention import AttentionConfig
from dsv2.models.attention.cache import Places, cached_places
from dsv2.models.attention.gqa import GQA
from dsv2.models.attention.mla import MLA
from dsv2.models.attention.precision import KVPrecision
from dsv2.models.rope import Rope, Yarn
from tests.references.kernels import normal
from tests.references.tolerances import FLOAT32_MODULE, close

DIM, ROOM = 19, 600
MLAS = {
    "compressed queries": MLA.Config(num_heads=3, head_dim=5, rope_dim=6, v_dim=7, kv_latent_dim=9, q_latent_dim=11),
    "direct queries": MLA.Config(num_heads=1, head_dim=33, rope_dim=2, v_dim=17, kv_latent_dim=130),
    "wide": MLA.Config(num_heads=9, head_dim=16, rope_dim=16, v_dim=32, kv_latent_dim=64),
}
GQAS = {
    "mha": GQA.Config(num_heads=3, num_kv_heads=3, head_dim=6, key_norm=True),
    "gqa": GQA.Config(num_heads=10, num_kv_heads=2, head_dim=17, rope_dim=4),
    "mqa": GQA.Config(num_heads=9, num_kv_heads=1, head_dim=20),
}
KINDS: dict[str, AttentionConfig] = {**MLAS, **GQAS}
LENGTHS = {  # held by each row before the new token
    "empty": [0],
    "one": [1],
    "around a piece": [254, 255, 256, 257],
    "even": [599, 599, 599],
    "uneven": [0, 3, 599, 40, 512, 17, 300, 1, 256],
}


def layer(config: AttentionConfig, rope: Rope.Config | None = None) -> nn.Module:
    module = config.build(DIM, (rope or Rope.Config()).build())
    with torch.no_grad():
        for seed, weight in enumerate(module.parameters()):
            weight.copy_(normal(*weight.shape, seed=seed) / weight.shape[-1] ** 0.5 + (weight.dim() == 1))
    return module.eval()


def filled(config: AttentionConfig, lengths: list[int], beyond: float) -> LayerCache:
    """A cache of random tokens, with a number in all places beyond the rows' lengths."""
    cache = allocate(config, batch_size=len(lengths), max_length=ROOM)
    for seed, tensor in enumerate(cache.tensors):
        tensor.copy_(normal(*tensor.shape, seed=100 + seed))
        for row, length in enumerate(lengths):
            tensor[row, length:] = beyond
    return cache


def step(module: nn.Module, rope: Rope, cache: LayerCache, places: Places, kernels: str) -> Tensor:
    h = normal(len(cache.tensors[0]), 1, DIM, seed=7)
    with torch.no_grad(), using(kernels):
        return module(h, rope.rotations(places.positions, module.config.rotary_dim), cache, places)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_that_of_plain_torch(kind: str, lengths: str) -> None:
    """In its output and in what it leaves in the cache; what a row holds beyond its length is never read."""
    config, held = KINDS[kind], LENGTHS[lengths]
    extended = Rope.Config(yarn=Yarn.Config(mscale=1.0, mscale_all_dim=0.707))
    module, rope = layer(config, extended), extended.build()
    places = cached_places(np.array(held), ROOM, 1)
    expected, plain = filled(config, held, 0.0), step(module, rope, cache := filled(config, held, 0.0), places, "torch")
    compiled = step(module, rope, poisoned := filled(config, held, torch.nan), places, "cpu")
    close(compiled, plain, FLOAT32_MODULE)
    for before, after, op in zip(expected.tensors, cache.tensors, poisoned.tensors, strict=True):
        for row, length in enumerate(held):
            close(op[row, length], after[row, length], FLOAT32_MODULE)
            assert torch.equal(op[row, :length], before[row, :length])
            assert op[row, length + 1 :].isnan().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("compiled_ops")
def test_a_row_is_bit_for_bit_the_same_alone(kind: str) -> None:
    config, held, rope = KINDS[kind], LENGTHS["uneven"], Rope.Config().build()
    module, cache = layer(config), filled(KINDS[kind], LENGTHS["uneven"], 0.0)
    h = normal(len(held), 1, DIM, seed=7)

    def run(rows: slice) -> Tensor:
        places = cached_places(np.array(held[rows]), ROOM, 1)
        rotations = rope.rotations(places.positions, config.rotary_dim)
        with torch.no_grad():
            return module(h[rows], rotations, cache.rows(rows.start, rows.stop), places)

    whole = run(slice(0, len(held)))
    for row in range(len(held)):
        assert torch.equal(run(slice(row, row + 1))[0], whole[row])


@pytest.mark.parametrize("kind", ["wide", "gqa"])
@pytest.mark.usefixtures("compiled_ops")
def test_the_number_of_threads_changes_no_bit(kind: str) -> None:
    threads, results = torch.get_num_threads(), []
    held, rope = LENGTHS["uneven"], Rope.Config().build()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            places = cached_places(np.array(held), ROOM, 1)
            results.append(step(layer(KINDS[kind]), rope, filled(KINDS[kind], held, 0.0), places, "cpu"))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.usefixtures("compiled_ops")
def test_what_the_ops_do_not_take_goes_the_plain_way() -> None:
    one, two, cache = torch.ones(2, 1, 3), torch.ones(2, 2, 3), (torch.ones(2, 5, 3), torch.ones(2, 5, 3))
    with torch.no_grad():
        assert has_step(cache, one)
        assert not has_step(cache, two)
        assert not has_step(cache, one.double())
        assert not has_step((cache[0], cache[1].bfloat16()), one)
        packed = allocate_quantised(MLAS["wide"], KVPrecision.Config(bits=8), batch_size=2, max_length=5).read(5)
        assert not has_step(packed, one)
        with using("torch"):
            assert not has_step(cache, one)
    assert not has_step(cache, one)  # a gradient may be wanted


@pytest.mark.usefixtures("compiled_ops")
def test_a_length_without_a_place_is_refused_and_nothing_is_written() -> None:
    config = MLAS["wide"]
    module, cache = layer(config), filled(config, [5, 5], 0.0)
    before = [tensor.clone() for tensor in cache.tensors]
    weights = (None, None, *(w for _, w in module.named_parameters()))
    rotations, h = Rope.Config().build().rotations(torch.tensor([4]), 16), normal(2, 1, DIM)
    for lengths in ([0, 5], [5, ROOM + 1]):
        rest = (9, 1e-6, 0.3, *cache.tensors, torch.tensor(lengths))
        with torch.no_grad(), pytest.raises(RuntimeError, match="is not between 1 and 600"):
            torch.ops.dsv2.mla_step(h, rotations, *weights, *rest)
    assert all(torch.equal(*pair) for pair in zip(before, cache.tensors, strict=True))
