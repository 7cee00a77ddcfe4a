"""Grouped-query attention, MHA to MQA, against loops; decoding against whole sequences; its config."""

import pytest
import torch
from hypothesis import given, settings

from dsv2.config import ConfigError
from dsv2.models.attention.gqa import GQA
from dsv2.models.rope import Rope
from tests import references
from tests.references import attention_checks as checks
from tests.references.attention_checks import Case
from tests.references.tolerances import FLOAT32, FLOAT64, close, same_values_and_gradients

CASES = {
    "one token, one head": Case(GQA, (1, 1, 3), {"num_heads": 1, "num_kv_heads": 1, "head_dim": 2}),
    "MHA": Case(GQA, (2, 7, 5), {"num_heads": 3, "num_kv_heads": 3, "head_dim": 4}),
    "GQA": Case(GQA, (1, 7, 6), {"num_heads": 6, "num_kv_heads": 2, "head_dim": 4}),
    "MQA": Case(GQA, (3, 2, 5), {"num_heads": 4, "num_kv_heads": 1, "head_dim": 2}),
    "key norm": Case(
        GQA, (2, 5, 6), {"num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "rope_dim": 2, "key_norm": True}
    ),
    "RoPE in part": Case(GQA, (1, 5, 6), {"num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "rope_dim": 2}),
    "RoPE in part, wide": Case(GQA, (2, 3, 6), {"num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "rope_dim": 4}),
}
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
with_and_without_yarn = pytest.mark.parametrize("yarn", [False, True], ids=["", "YaRN"])


@every
@with_and_without_yarn
def test_values_and_gradients_are_those_of_loops(case: Case, yarn: bool) -> None:
    checks.agrees_with_loops(case._replace(yarn=yarn))


def test_float32_is_as_close_as_it_can_be() -> None:
    checks.agrees_with_loops_in_float32(CASES["GQA"])


def test_as_many_groups_as_heads_is_mha() -> None:
    """Against a loop that has no groups."""
    case = Case(GQA, (2, 5, 5), {"num_heads": 3, "num_kv_heads": 3, "head_dim": 4})
    attention = case.build()
    leaves = {"h": references.random(*case.shape, seed=3), **dict(attention.named_parameters())}
    own = references.twin(leaves)
    expected = references.mha(own["h"], own, num_heads=3, head_dim=4, **case.rope_factors())
    same_values_and_gradients(case.whole(attention, leaves["h"]), expected, leaves, own, FLOAT32)


def test_groups_are_heads_with_their_keys_repeated() -> None:
    """GQA equals MHA whose heads of a group have equal keys and values; neighbours share, not every G-th head."""
    case = Case(GQA, (1, 7, 6), {"num_heads": 4, "num_kv_heads": 2, "head_dim": 4})
    repeated = case._replace(sizes=case.sizes | {"num_kv_heads": 4})
    shared, every_head = case.build(), repeated.build()
    weights = dict(shared.state_dict())
    for name in ("w_k", "w_v"):
        weights[name] = weights[name].reshape(2, 4, 6).repeat_interleave(2, dim=0).reshape(16, 6)
    every_head.load_state_dict(weights)
    h = references.random(*case.shape, seed=4)
    close(case.whole(shared, h), repeated.whole(every_head, h), FLOAT32)


def test_the_output_matrix_reads_what_the_heads_read() -> None:
    """`attend` is each head's output, of its own width; the whole is W_O times all of them side by side."""
    case = CASES["GQA"]
    attention, h = case.build(), references.random(*case.shape, seed=5)
    heads = attention.attend(h, case.rotations(0, 7))
    assert heads.shape == (1, 7, 6, 4)
    close(heads.reshape(1, 7, 24) @ attention.w_o.T, case.whole(attention, h), FLOAT64)


def test_parameters_are_named_and_shaped_as_the_config_says() -> None:
    config = GQA.Config(num_heads=4, num_kv_heads=2, head_dim=6, rope_dim=2)
    expected = {"w_q": (24, 5), "w_k": (12, 5), "w_v": (12, 5), "w_o": (5, 24)}
    attention = config.build(5, Rope.Config().build())
    assert {name: tuple(weight.shape) for name, weight in attention.named_parameters()} == expected


# ---- decoding --------------------------------------------------------------------------------------------------------


@every
@with_and_without_yarn
def test_token_by_token_is_the_whole_sequence(case: Case, yarn: bool) -> None:
    checks.decodes_token_by_token(case._replace(yarn=yarn))


@pytest.mark.parametrize("name", ["GQA", "RoPE in part"])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(chunks=checks.chunkings())
def test_chunks_of_any_size_are_the_whole_sequence(name: str, chunks: list[int]) -> None:
    checks.decodes_in_chunks(CASES[name], chunks)


def test_the_cache_holds_groups_and_not_heads() -> None:
    """Turned keys and values, two groups of them for six heads."""
    case = CASES["GQA"]
    attention, h = case.build().eval(), references.random(2, 7, 6, seed=9)
    with torch.no_grad():
        _, cache = case.decoded(attention, h, [3, 4])
    assert [tuple(x.shape) for x in cache.tensors] == [(2, 9, 2, 4)] * 2
    thetas = references.rope_frequencies(4, 10000.0)
    for b in range(2):
        for t in range(7):
            keys = references.heads(attention.w_k @ h[b, t], 4)
            turned = torch.stack([references.turn(key, t, thetas) for key in keys])
            close(cache.tensors[0][b, t], turned, FLOAT32)
            close(cache.tensors[1][b, t], (attention.w_v @ h[b, t]).reshape(2, 4), FLOAT64)


# ---- what a call may see and leave behind ----------------------------------------------------------------------------


@every
def test_no_token_sees_a_later_one(case: Case) -> None:
    checks.sees_nothing_later(case)


@every
@pytest.mark.parametrize("training", [True, False])
def test_a_call_leaves_nothing_behind(case: Case, training: bool) -> None:
    checks.remembers_nothing(case, training)


# ---- config ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_kv_heads", "elements"), [(32, 8192), (8, 2048), (1, 256)])
def test_a_token_caches_keys_and_values_of_its_groups(num_kv_heads: int, elements: int) -> None:
    """2 n_g d_h elements: MHA, GQA and MQA of 32 heads of 128."""
    config = GQA.Config(num_heads=32, num_kv_heads=num_kv_heads, head_dim=128)
    assert config.cache_shapes() == ((num_kv_heads, 128), (num_kv_heads, 128))
    assert sum(torch.Size(shape).numel() for shape in config.cache_shapes()) == elements


def test_scores_cost_two_products_of_every_head_and_key() -> None:
    """A multiplication and an addition for each of 3 x 4 numbers of a query and of a value, at each of 10 keys."""
    assert GQA.Config(num_heads=3, num_kv_heads=1, head_dim=4).score_flops(10) == 2 * (3 * 4 + 3 * 4) * 10


@pytest.mark.parametrize(("rope_dim", "expected"), [(None, 6), (4, 4), (6, 6)])
def test_the_whole_head_turns_unless_a_part_is_named(rope_dim: int | None, expected: int) -> None:
    assert GQA.Config(num_heads=2, num_kv_heads=1, head_dim=6, rope_dim=rope_dim).rotary_dim == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 0}, "num_heads=0 is not valid: positive"),
        ({"num_kv_heads": 3}, "num_kv_heads=3 is not valid: a divisor of num_heads=4"),
        ({"num_kv_heads": 0}, "num_kv_heads=0 is not valid: a divisor of num_heads=4"),
        ({"num_kv_heads": 8}, "num_kv_heads=8 is not valid: a divisor of num_heads=4"),
        ({"head_dim": 0}, "head_dim=0 is not valid: positive"),
        ({"head_dim": 5}, "head_dim=5 is not valid: even, since RoPE rotates pairs"),
        ({"rope_dim": 3}, "rope_dim=3 is not valid: even and between 2 and head_dim=6"),
        ({"rope_dim": 0}, "rope_dim=0 is not valid: even and between 2 and head_dim=6"),
        ({"rope_dim": 8}, "rope_dim=8 is not valid: even and between 2 and head_dim=6"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        GQA.Config(**{"num_heads": 4, "num_kv_heads": 2, "head_dim": 6} | change)
