"""GQA (MHA to MQA) and MLA against loops; cached decoding against whole sequences."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dsv2.inference.cache import allocate
from dsv2.models.attention.gqa import GQA
from dsv2.models.attention.mla import MLA
from dsv2.models.rope import Rope, Yarn
from tests import references
from tests.references.tolerances import FLOAT32, FLOAT32_MODULE, FLOAT64, close, same_values_and_gradients

# (B, T, d) and the config
GQA_CASES = {
    "one token, one head": ((1, 1, 3), {"num_heads": 1, "num_kv_heads": 1, "head_dim": 2}),
    "MHA": ((2, 7, 5), {"num_heads": 3, "num_kv_heads": 3, "head_dim": 4}),
    "GQA": ((1, 7, 6), {"num_heads": 6, "num_kv_heads": 2, "head_dim": 4}),
    "MQA": ((3, 2, 5), {"num_heads": 4, "num_kv_heads": 1, "head_dim": 2}),
    "key norm": ((2, 5, 6), {"num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "rope_dim": 2, "key_norm": True}),
    "RoPE in part": ((1, 5, 6), {"num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "rope_dim": 2}),
    "RoPE in part, wide": ((2, 3, 6), {"num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "rope_dim": 4}),
}
MLA_CASES = {
    "one token, one head": (
        (1, 1, 3),
        {"num_heads": 1, "head_dim": 1, "rope_dim": 2, "v_dim": 1, "kv_latent_dim": 1},
    ),
    "Lite": ((2, 7, 6), {"num_heads": 2, "head_dim": 4, "rope_dim": 2, "v_dim": 4, "kv_latent_dim": 3}),
    "Lite, narrow values": ((1, 7, 6), {"num_heads": 3, "head_dim": 4, "rope_dim": 4, "v_dim": 3, "kv_latent_dim": 5}),
    "V2": (
        (1, 7, 6),
        {"num_heads": 2, "head_dim": 4, "rope_dim": 2, "v_dim": 4, "kv_latent_dim": 3, "q_latent_dim": 5},
    ),
    "V2, wide values": (
        (3, 2, 5),
        {"num_heads": 3, "head_dim": 2, "rope_dim": 4, "v_dim": 6, "kv_latent_dim": 4, "q_latent_dim": 3},
    ),
    "all latents as wide as the model": (
        (2, 3, 6),
        {"num_heads": 2, "head_dim": 4, "rope_dim": 4, "v_dim": 4, "kv_latent_dim": 6, "q_latent_dim": 6},
    ),
}
EVERY = {f"GQA {name}": (GQA, *case) for name, case in GQA_CASES.items()} | {
    f"MLA {name}": (MLA, *case) for name, case in MLA_CASES.items()
}
# Stretched enough that three tokens notice, with factors on cosines, sines and the softmax scale that are not 1.
YARN = {"factor": 4.0, "original_length": 16, "mscale": 1.0, "mscale_all_dim": 0.5}
every = pytest.mark.parametrize(("kind", "shape", "sizes"), EVERY.values(), ids=EVERY.keys())


def build(kind: type, dim: int, sizes: dict, rope: Rope, seed: int = 1) -> torch.nn.Module:
    """A float64 attention with random weights."""
    return references.randomise(kind.Config(**sizes).build(dim, rope).double(), seed)


def rope_dim(sizes: dict) -> int:
    """How many channels of a head turn."""
    return sizes.get("rope_dim") or sizes["head_dim"]


def turns(rope: Rope, sizes: dict, start: int, end: int) -> Tensor:
    """Rotations of positions start to end - 1."""
    return rope.rotations(torch.arange(start, end), rope_dim(sizes))


def reference(kind: type, h: Tensor, w: dict[str, Tensor], sizes: dict, yarn: bool = False) -> Tensor:
    """The loops' output."""
    sizes = {key: value for key, value in sizes.items() if key not in ("kv_latent_dim", "q_latent_dim")}
    sizes["rope_dim"] = rope_dim(sizes)
    sizes["thetas"] = references.rope_frequencies(sizes["rope_dim"], 10000.0)
    if yarn:
        sizes["thetas"] = references.yarn_frequencies(sizes["rope_dim"], 10000.0, 4.0, 16, 32.0, 1.0)
        sizes["rope_factor"] = references.yarn_cos_sin_factor(4.0, 1.0, 0.5)
        sizes["softmax_factor"] = references.yarn_softmax_factor(4.0, 0.5)
    return (references.mla if kind is MLA else references.gqa)(h, w, **sizes)


@every
@pytest.mark.parametrize("yarn", [False, True], ids=["", "YaRN"])
def test_output(kind: type, shape: tuple[int, int, int], sizes: dict, yarn: bool) -> None:
    """Values and the gradients of h and every weight."""
    rope = Rope.Config(yarn=Yarn.Config(**YARN) if yarn else None).build()
    attention = build(kind, shape[-1], sizes, rope)
    leaves = {"h": references.random(*shape, seed=2), **dict(attention.named_parameters())}
    own = references.twin(leaves)
    y = attention(leaves["h"], turns(rope, sizes, 0, shape[1]))
    same_values_and_gradients(y, reference(kind, own["h"], own, sizes, yarn), leaves, own, FLOAT32)


def test_as_many_groups_as_heads_is_mha() -> None:
    """Against a loop that has no groups."""
    rope = Rope.Config().build()
    sizes = {"num_heads": 3, "num_kv_heads": 3, "head_dim": 4}
    attention = build(GQA, 5, sizes, rope)
    leaves = {"h": references.random(2, 5, 5, seed=3), **dict(attention.named_parameters())}
    own = references.twin(leaves)
    thetas = references.rope_frequencies(4, 10000.0)
    expected = references.mha(own["h"], own, num_heads=3, head_dim=4, thetas=thetas)
    same_values_and_gradients(attention(leaves["h"], turns(rope, sizes, 0, 5)), expected, leaves, own, FLOAT32)


def test_groups_are_heads_with_their_keys_repeated() -> None:
    """GQA equals MHA whose heads of a group have equal keys and values; neighbours share, not every G-th head."""
    rope = Rope.Config().build()
    shared = build(GQA, 6, {"num_heads": 4, "num_kv_heads": 2, "head_dim": 4}, rope)
    sizes = {"num_heads": 4, "num_kv_heads": 4, "head_dim": 4}
    every_head = build(GQA, 6, sizes, rope)
    weights = dict(shared.state_dict())
    for name in ("w_k", "w_v"):
        weights[name] = weights[name].reshape(2, 4, 6).repeat_interleave(2, dim=0).reshape(16, 6)
    every_head.load_state_dict(weights)
    h = references.random(1, 7, 6, seed=4)
    close(shared(h, turns(rope, sizes, 0, 7)), every_head(h, turns(rope, sizes, 0, 7)), FLOAT32)


def test_parameters() -> None:
    rope = Rope.Config().build()
    gqa = GQA.Config(num_heads=4, num_kv_heads=2, head_dim=6, rope_dim=2).build(5, rope)
    assert shapes(gqa) == {"w_q": (24, 5), "w_k": (12, 5), "w_v": (12, 5), "w_o": (5, 24)}
    sizes = {"num_heads": 4, "head_dim": 6, "rope_dim": 2, "v_dim": 3, "kv_latent_dim": 7}
    every_mla = {"w_dkv": (7, 5), "kv_norm.w": (7,), "w_kr": (2, 5), "w_uk": (24, 7), "w_uv": (12, 7), "w_o": (5, 12)}
    assert shapes(MLA.Config(**sizes).build(5, rope)) == every_mla | {"w_uq": (24, 5), "w_qr": (8, 5)}
    compressed = {"w_dq": (9, 5), "q_norm.w": (9,), "w_uq": (24, 9), "w_qr": (8, 9)}
    assert shapes(MLA.Config(**sizes, q_latent_dim=9).build(5, rope)) == every_mla | compressed


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


@pytest.mark.parametrize(("shape", "sizes"), MLA_CASES.values(), ids=MLA_CASES.keys())
def test_the_references_agree_that_absorbing_changes_nothing(shape: tuple[int, int, int], sizes: dict) -> None:
    rope = Rope.Config().build()
    w = references.twin(dict(build(MLA, shape[-1], sizes, rope).named_parameters()))
    widths = {key: sizes[key] for key in ("num_heads", "head_dim", "rope_dim", "v_dim")}
    h, thetas = references.random(*shape, seed=5), references.rope_frequencies(sizes["rope_dim"], 10000.0)
    close(
        references.mla_absorbed(h, w, **widths, thetas=thetas), references.mla(h, w, **widths, thetas=thetas), FLOAT64
    )


# Decoding


def decode(attention: torch.nn.Module, h: Tensor, rope: Rope, kind: type, sizes: dict, chunks: list[int]) -> tuple:
    """The outputs of h fed chunk by chunk through one cache, and the cache."""
    cache = allocate(
        kind.Config(**sizes), batch_size=len(h), max_length=h.shape[1] + 2, device="cpu", dtype=torch.float64
    )
    assert cache.length == 0
    outputs, start = [], 0
    for chunk in chunks:
        end = start + chunk
        outputs.append(attention(h[:, start:end], turns(rope, sizes, start, end), cache))
        assert cache.length == end
        start = end
    return torch.cat(outputs, dim=1), cache


@every
@pytest.mark.parametrize("yarn", [False, True], ids=["", "YaRN"])
def test_token_by_token_is_the_whole_sequence(kind: type, shape: tuple[int, int, int], sizes: dict, yarn: bool) -> None:
    """For MLA, decoding is absorbed and the forward expanded: they are equal, and equal the loops."""
    rope = Rope.Config(yarn=Yarn.Config(**YARN) if yarn else None).build()
    attention = build(kind, shape[-1], sizes, rope).eval()
    h = references.random(*shape, seed=6)
    with torch.no_grad():
        whole = attention(h, turns(rope, sizes, 0, shape[1]))
        steps, _ = decode(attention, h, rope, kind, sizes, [1] * shape[1])
    close(steps, whole, FLOAT32)
    close(steps, reference(kind, h, dict(attention.named_parameters()), sizes, yarn), FLOAT32)


@st.composite
def chunkings(draw: st.DrawFn) -> list[int]:
    """7 tokens in chunks of any size."""
    left, chunks = 7, []
    while left:
        chunks.append(draw(st.integers(1, left)))
        left -= chunks[-1]
    return chunks


@pytest.mark.parametrize("case", ["GQA GQA", "GQA RoPE in part", "MLA Lite, narrow values", "MLA V2"])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(chunks=chunkings())
def test_chunks_of_any_size_are_the_whole_sequence(case: str, chunks: list[int]) -> None:
    """A chunk sees all that the cache holds and, of itself, what is not later."""
    kind, (_, _, dim), sizes = EVERY[case]
    rope = Rope.Config().build()
    attention = build(kind, dim, sizes, rope).eval()
    h = references.random(2, 7, dim, seed=7)
    with torch.no_grad():
        steps, _ = decode(attention, h, rope, kind, sizes, chunks)
        close(steps, attention(h, turns(rope, sizes, 0, 7)), FLOAT32)


@pytest.mark.parametrize("chunks", [[1] * 7, [7], [4, 1, 2]])
@pytest.mark.parametrize("case", ["MLA Lite", "MLA V2"])
def test_mla_caches_the_normed_latent_and_the_turned_key(case: str, chunks: list[int]) -> None:
    """Two tensors and nothing else: norm(c_KV) (B, S, r) and RoPE(k_R) (B, S, rope), one key for all heads."""
    kind, (_, _, dim), sizes = EVERY[case]
    rope = Rope.Config(yarn=Yarn.Config(**YARN)).build()
    attention = build(kind, dim, sizes, rope).eval()
    h = references.random(2, 7, dim, seed=8)
    with torch.no_grad():
        _, cache = decode(attention, h, rope, kind, sizes, chunks)
    expected = references.mla_cached(
        h,
        dict(attention.named_parameters()),
        thetas=references.yarn_frequencies(sizes["rope_dim"], 10000.0, 4.0, 16, 32.0, 1.0),
        rope_factor=references.yarn_cos_sin_factor(4.0, 1.0, 0.5),
    )
    assert [tuple(x.shape) for x in cache.tensors] == [(2, 9, sizes["kv_latent_dim"]), (2, 9, sizes["rope_dim"])]
    for tensor, value in zip(cache.tensors, expected, strict=True):
        close(tensor[:, :7], value, FLOAT32)


def test_gqa_caches_groups_and_not_heads() -> None:
    kind, (_, _, dim), sizes = EVERY["GQA GQA"]
    rope = Rope.Config().build()
    attention = build(kind, dim, sizes, rope).eval()
    h = references.random(2, 7, dim, seed=9)
    with torch.no_grad():
        _, cache = decode(attention, h, rope, kind, sizes, [3, 4])
    assert [tuple(x.shape) for x in cache.tensors] == [(2, 9, 2, 4)] * 2
    thetas = references.rope_frequencies(4, 10000.0)
    for b in range(2):
        for t in range(7):
            keys = references.heads(attention.w_k @ h[b, t], 4)
            turned = torch.stack([references.turn(key, t, thetas) for key in keys])
            close(cache.tensors[0][b, t], turned, FLOAT32)
            close(cache.tensors[1][b, t], (attention.w_v @ h[b, t]).reshape(2, 4), FLOAT64)


class Largest(TorchDispatchMode):
    """Notes the most elements that any operation's result occupies in memory; views occupy what they look at."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors(result):
            self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def test_decoding_never_expands_keys_or_values() -> None:
    """With 512 tokens cached, nothing as large as their keys, 8 heads x 32, comes to be; latents are 4 wide."""
    rope = Rope.Config().build()
    sizes = {"num_heads": 8, "head_dim": 32, "rope_dim": 2, "v_dim": 32, "kv_latent_dim": 4}
    attention = build(MLA, 6, sizes, rope).eval()
    cache = allocate(MLA.Config(**sizes), batch_size=1, max_length=512, device="cpu", dtype=torch.float64)
    h = references.random(1, 512, 6, seed=10)
    with torch.no_grad():
        attention(h[:, :511], turns(rope, sizes, 0, 511), cache)
        with Largest() as seen:
            attention(h[:, 511:], turns(rope, sizes, 511, 512), cache)
    assert 512 * 4 <= seen.elements < 512 * 8 * 32


# What holds for both


@every
def test_no_token_sees_a_later_one(kind: type, shape: tuple[int, int, int], sizes: dict) -> None:
    rope = Rope.Config().build()
    attention = build(kind, shape[-1], sizes, rope)
    h = references.random(1, 7, shape[-1], seed=11)
    whole = attention(h, turns(rope, sizes, 0, 7))
    for t in range(7):
        (gradient,) = torch.autograd.grad(whole[:, t].sum(), h, retain_graph=True)
        assert not gradient[:, t + 1 :].any()
        assert gradient[:, : t + 1].abs().sum(-1).gt(0).all()


@every
@pytest.mark.parametrize("training", [True, False])
def test_it_remembers_nothing(kind: type, shape: tuple[int, int, int], sizes: dict, training: bool) -> None:
    """No buffer, list or attribute differs after a call, and a second call gives the same."""
    rope = Rope.Config().build()
    attention = build(kind, shape[-1], sizes, rope).train(training)
    before = references.remembered(attention)
    h = references.random(*shape, seed=12)
    first, second = (attention(h, turns(rope, sizes, 0, shape[1])) for _ in range(2))
    with torch.no_grad():
        decode(attention, h, rope, kind, sizes, [shape[1]])
    third = attention(h, turns(rope, sizes, 0, shape[1]))
    assert references.remembered(attention) == before
    assert torch.equal(first, second)
    assert torch.equal(first, third)


@pytest.mark.parametrize("case", ["GQA GQA", "MLA Lite", "MLA V2"])
def test_in_float32(case: str) -> None:
    kind, shape, sizes = EVERY[case]
    rope = Rope.Config().build()
    attention = build(kind, shape[-1], sizes, rope).float()
    leaves = {"h": references.random(*shape, seed=13).detach().float().requires_grad_()}
    leaves |= dict(attention.named_parameters())
    own = references.twin(leaves)
    y = attention(leaves["h"], turns(rope, sizes, 0, shape[1]))
    assert y.dtype == torch.float32
    same_values_and_gradients(y, reference(kind, own["h"], own, sizes), leaves, own, FLOAT32_MODULE)


def test_absorbed_softmax_is_in_float32() -> None:
    """In bfloat16, scores 100 and 101 are exact but 100 / sqrt(3) and 101 / sqrt(3) are not: rounded to 57.75 and
    58.25 before the softmax, the second key would have a weight of 0.622 for 0.640."""
    layer = build(
        MLA, 2, {"num_heads": 1, "head_dim": 1, "rope_dim": 2, "v_dim": 1, "kv_latent_dim": 1}, Rope.Config().build()
    )
    layer = layer.bfloat16()
    torch.nn.init.ones_(layer.w_uv)
    q_nope, q_rope = torch.zeros(1, 1, 1, 1), torch.tensor([[[[1.0, 0.0]]]])
    c_kv, k_rope = torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[100.0, 0.0], [101.0, 0.0]]])
    out = layer._absorbed(*(x.bfloat16() for x in (q_nope, q_rope, c_kv, k_rope)))
    assert out.item() == pytest.approx(1 / (1 + math.exp(-1 / math.sqrt(3))), rel=2**-8)
