"""Multi-head latent attention against loops; decoding on latents against whole sequences; its cache and config."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dsv2.config import ConfigError
from dsv2.inference.cache import ModelCache, allocate
from dsv2.models.attention.mla import MLA
from dsv2.models.rope import Rope
from tests import references
from tests.references import attention_checks as checks
from tests.references.attention_checks import Case
from tests.references.tolerances import FLOAT32, FLOAT64, close

CASES = {
    "one token, one head": Case(
        MLA, (1, 1, 3), {"num_heads": 1, "head_dim": 1, "rope_dim": 2, "v_dim": 1, "kv_latent_dim": 1}
    ),
    "Lite": Case(MLA, (2, 7, 6), {"num_heads": 2, "head_dim": 4, "rope_dim": 2, "v_dim": 4, "kv_latent_dim": 3}),
    "Lite, narrow values": Case(
        MLA, (1, 7, 6), {"num_heads": 3, "head_dim": 4, "rope_dim": 4, "v_dim": 3, "kv_latent_dim": 5}
    ),
    "V2": Case(
        MLA,
        (1, 7, 6),
        {"num_heads": 2, "head_dim": 4, "rope_dim": 2, "v_dim": 4, "kv_latent_dim": 3, "q_latent_dim": 5},
    ),
    "V2, wide values": Case(
        MLA,
        (3, 2, 5),
        {"num_heads": 3, "head_dim": 2, "rope_dim": 4, "v_dim": 6, "kv_latent_dim": 4, "q_latent_dim": 3},
    ),
    "all latents as wide as the model": Case(
        MLA,
        (2, 3, 6),
        {"num_heads": 2, "head_dim": 4, "rope_dim": 4, "v_dim": 4, "kv_latent_dim": 6, "q_latent_dim": 6},
    ),
}
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
with_and_without_yarn = pytest.mark.parametrize("yarn", [False, True], ids=["", "YaRN"])


@every
@with_and_without_yarn
def test_values_and_gradients_are_those_of_loops(case: Case, yarn: bool) -> None:
    checks.agrees_with_loops(case._replace(yarn=yarn))


@pytest.mark.parametrize("name", ["Lite", "V2"])
def test_float32_is_as_close_as_it_can_be(name: str) -> None:
    checks.agrees_with_loops_in_float32(CASES[name])


@every
def test_the_loops_agree_that_absorbing_changes_nothing(case: Case) -> None:
    w = references.twin(dict(case.build().named_parameters()))
    sizes = {key: case.sizes[key] for key in ("num_heads", "head_dim", "rope_dim", "v_dim")} | case.rope_factors()
    h = references.random(*case.shape, seed=5)
    close(references.mla_absorbed(h, w, **sizes), references.mla(h, w, **sizes), FLOAT64)


def test_parameters_are_named_and_shaped_as_the_config_says() -> None:
    sizes = {"num_heads": 4, "head_dim": 6, "rope_dim": 2, "v_dim": 3, "kv_latent_dim": 7}
    common = {"w_dkv": (7, 5), "kv_norm.w": (7,), "w_kr": (2, 5), "w_uk": (24, 7), "w_uv": (12, 7), "w_o": (5, 12)}
    direct = {"w_uq": (24, 5), "w_qr": (8, 5)}
    compressed = {"w_dq": (9, 5), "q_norm.w": (9,), "w_uq": (24, 9), "w_qr": (8, 9)}
    for q_latent_dim, queries in ((None, direct), (9, compressed)):
        attention = MLA.Config(**sizes, q_latent_dim=q_latent_dim).build(5, Rope.Config().build())
        shapes = {name: tuple(weight.shape) for name, weight in attention.named_parameters()}
        assert shapes == common | queries


# ---- decoding --------------------------------------------------------------------------------------------------------


@every
@with_and_without_yarn
def test_token_by_token_is_the_whole_sequence(case: Case, yarn: bool) -> None:
    """Decoding is absorbed and the forward expanded: they are equal, and equal the loops."""
    checks.decodes_token_by_token(case._replace(yarn=yarn))


@pytest.mark.parametrize("name", ["Lite, narrow values", "V2"])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(chunks=checks.chunkings())
def test_chunks_of_any_size_are_the_whole_sequence(name: str, chunks: list[int]) -> None:
    checks.decodes_in_chunks(CASES[name], chunks)


@pytest.mark.parametrize("yarn", [False, True])
@pytest.mark.parametrize(("chunks", "expanded"), [([3, 3, 1], 1), ([3, 4], 2), ([1, 5, 1], 2), ([1, 1, 5], 2)])
def test_later_chunks_expand_the_latents_where_that_is_less_work(
    chunks: list[int], expanded: int, yarn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than 3 queries: with 6 latents for 2 + 2 channels, a query saves 2 x 6 - 4 and expanding costs 6 x 4."""
    sizes = {"num_heads": 2, "head_dim": 2, "rope_dim": 2, "v_dim": 2, "kv_latent_dim": 6}
    calls, plain = [], MLA._expanded
    monkeypatch.setattr(MLA, "_expanded", lambda self, *args, **kw: calls.append(1) or plain(self, *args, **kw))
    checks.decodes_in_chunks(Case(MLA, (2, 7, 6), sizes, yarn=yarn), chunks)
    assert len(calls) == expanded


@pytest.mark.parametrize("chunks", [[1] * 7, [7], [4, 1, 2]])
@pytest.mark.parametrize("name", ["Lite", "V2"])
def test_the_cache_holds_the_normed_latent_and_the_turned_key(name: str, chunks: list[int]) -> None:
    """Two tensors and nothing else: norm(c_KV) (B, S, r) and RoPE(k_R) (B, S, rope), one key for all heads."""
    case = CASES[name]._replace(yarn=True)
    attention, h = case.build().eval(), references.random(2, 7, 6, seed=8)
    with torch.no_grad():
        _, cache = case.decoded(attention, h, chunks)
    expected = references.mla_cached(h, dict(attention.named_parameters()), **case.rope_factors())
    widths = case.sizes["kv_latent_dim"], case.sizes["rope_dim"]
    assert [tuple(x.shape) for x in cache.tensors] == [(2, 9, width) for width in widths]
    for tensor, value in zip(cache.tensors, expected, strict=True):
        close(tensor[:, :7], value, FLOAT32)


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
    case = Case(MLA, (1, 512, 6), {"num_heads": 8, "head_dim": 32, "rope_dim": 2, "v_dim": 32, "kv_latent_dim": 4})
    attention, h = case.build().eval(), references.random(*case.shape, seed=10)
    cache = allocate(case.config, batch_size=1, max_length=512, device="cpu", dtype=torch.float64)
    with torch.no_grad():
        caches = ModelCache([cache])
        places = caches.places(511)
        attention(h[:, :511], case.rotations(0, 511), cache, places)
        caches.advance(places)
        with Largest() as seen:
            attention(h[:, 511:], case.rotations(511, 512), cache, caches.places(1))
    assert 512 * 4 <= seen.elements < 512 * 8 * 32


def test_absorbed_softmax_is_in_float32() -> None:
    """In bfloat16, scores 100 and 101 are exact but 100 / sqrt(3) and 101 / sqrt(3) are not: rounded to 57.75 and
    58.25 before the softmax, the second key would have a weight of 0.622 for 0.640."""
    sizes = {"num_heads": 1, "head_dim": 1, "rope_dim": 2, "v_dim": 1, "kv_latent_dim": 1}
    layer = Case(MLA, (1, 2, 2), sizes).build().bfloat16()
    torch.nn.init.ones_(layer.w_uv)
    q_nope, q_rope = torch.zeros(1, 1, 1, 1), torch.tensor([[[[1.0, 0.0]]]])
    c_kv, k_rope = torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[100.0, 0.0], [101.0, 0.0]]])
    out = layer._absorbed(*(x.bfloat16() for x in (q_nope, q_rope, c_kv, k_rope)))
    assert out.item() == pytest.approx(1 / (1 + math.exp(-1 / math.sqrt(3))), rel=2**-8)


# ---- what a call may see and leave behind ----------------------------------------------------------------------------


@every
def test_no_token_sees_a_later_one(case: Case) -> None:
    checks.sees_nothing_later(case)


@every
@pytest.mark.parametrize("training", [True, False])
def test_a_call_leaves_nothing_behind(case: Case, training: bool) -> None:
    checks.remembers_nothing(case, training)


# ---- config ----------------------------------------------------------------------------------------------------------


def test_a_token_caches_one_latent_and_one_key() -> None:
    """d_c + d_h^R elements for 128 heads as for one: 576 in every layer of DeepSeek-V2, 34.6K in its 60 (Table 9)."""
    for num_heads in (1, 128):
        config = MLA.Config(num_heads=num_heads, head_dim=128, rope_dim=64, v_dim=128, kv_latent_dim=512)
        assert config.cache_shapes() == ((512,), (64,))
    assert 60 * sum(torch.Size(shape).numel() for shape in config.cache_shapes()) == 34_560


def test_scores_cost_two_products_of_every_head_and_key() -> None:
    """Queries and keys are 4 + 2 wide, values 5: a multiplication and an addition each, 3 heads, 10 keys."""
    config = MLA.Config(num_heads=3, head_dim=4, rope_dim=2, v_dim=5, kv_latent_dim=7)
    assert config.score_flops(10) == 2 * 3 * (4 + 2 + 5) * 10
    assert config.rotary_dim == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 0}, "num_heads=0 is not valid: positive"),
        ({"head_dim": 0}, "head_dim=0 is not valid: positive"),
        ({"v_dim": 0}, "v_dim=0 is not valid: positive"),
        ({"kv_latent_dim": -1}, "kv_latent_dim=-1 is not valid: positive"),
        ({"rope_dim": 0}, "rope_dim=0 is not valid: even and at least 2"),
        ({"rope_dim": 3}, "rope_dim=3 is not valid: even and at least 2"),
        ({"q_latent_dim": 0}, "q_latent_dim=0 is not valid: positive, or null for none"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, int], message: str) -> None:
    sizes = {"num_heads": 4, "head_dim": 6, "rope_dim": 2, "v_dim": 3, "kv_latent_dim": 7}
    with pytest.raises(ConfigError, match=f"^{message}"):
        MLA.Config(**sizes | change)
