"""The router's affinities and its choice of experts, plain and device-limited, against their equations."""

import re
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv2 import Routing, route
from dsv2.models.moe.layer import MoE
from dsv2.models.moe.router import token_devices
from tests import references
from tests.references.tolerances import EXACT, FLOAT32, close, same_values_and_gradients


@st.composite
def routers(draw: st.DrawFn) -> dict[str, int]:
    """B, T, E, K, D, M that fit together: K experts exist on any M devices."""
    num_devices, group = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    max_devices = draw(st.integers(1, num_devices))
    return {
        "batch": draw(st.integers(1, 3)),
        "length": draw(st.sampled_from([1, 2, 7])),
        "num_experts": num_devices * group,
        "top_k": draw(st.integers(1, max_devices * group)),
        "num_devices": num_devices,
        "max_devices": max_devices,
        "seed": draw(st.integers(0, 1000)),
    }


def affinities(case: dict[str, int]) -> torch.Tensor:
    """A softmax over normal numbers, float32."""
    generator = torch.Generator().manual_seed(case["seed"])
    logits = torch.randn(case["batch"], case["length"], case["num_experts"], generator=generator)
    return (2 * logits).softmax(-1)


def by_expert(experts: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in order of the expert's number: only `drop` cares which choice comes first."""
    order = experts.sort(-1)
    return order.values, values.gather(-1, order.indices)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=routers())
def test_route(case: dict[str, int]) -> None:
    leaves = {"affinities": affinities(case).requires_grad_()}
    own = references.twin(leaves)
    limits = {key: case[key] for key in ("top_k", "num_devices", "max_devices")}
    experts, gates = route(leaves["affinities"], **limits)
    assert experts.dtype == torch.int64
    chosen, _ = references.route(own["affinities"], **limits)
    assert torch.equal(experts.sort(-1).values, chosen.sort(-1).values)
    expected = references.gates(own["affinities"], experts)
    close(gates, expected, EXACT)
    same_values_and_gradients(gates, expected, leaves, own, FLOAT32)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(case=routers())
def test_all_devices_is_plain_top_k(case: dict[str, int]) -> None:
    """M = D, no limit at all and one device are the same choice."""
    s = affinities(case)
    plain = by_expert(*route(s, top_k=case["top_k"]))
    assert torch.equal(plain[0], s.topk(case["top_k"]).indices.sort(-1).values)
    for max_devices in (case["num_devices"], None):
        limited = route(s, top_k=case["top_k"], num_devices=case["num_devices"], max_devices=max_devices)
        assert all(torch.equal(a, b) for a, b in zip(by_expert(*limited), plain, strict=True))


def test_a_device_is_as_good_as_its_best_expert() -> None:
    """By hand, 3 devices of 2: the best pair of experts lies on device 1, the best sum on device 0."""
    s = torch.tensor([[[0.24, 0.25, 0.30, 0.05, 0.15, 0.01]]])
    assert route(s, top_k=2, num_devices=3, max_devices=1)[0].sort().values.tolist() == [[[2, 3]]]
    assert route(s, top_k=2, num_devices=3, max_devices=2)[0].sort().values.tolist() == [[[1, 2]]]
    assert route(s, top_k=3, num_devices=3, max_devices=2)[0].sort().values.tolist() == [[[0, 1, 2]]]


def test_the_limit_holds_where_affinities_underflow() -> None:
    """A softmax can give exact zeros; an expert of a device that was not chosen is no better than they are."""
    for highest in range(6):
        s = torch.zeros(1, 1, 6)
        s[..., highest] = 1.0
        experts, _ = route(s, top_k=2, num_devices=3, max_devices=1)
        assert sorted(experts.flatten().tolist()) == [highest // 2 * 2, highest // 2 * 2 + 1]


@pytest.mark.parametrize(
    ("shape", "num_experts", "top_k", "num_devices", "max_devices"),
    [
        ((1, 1, 1), 1, 1, 1, None),
        ((1, 7, 5), 4, 1, 1, None),
        ((3, 2, 4), 4, 4, 1, None),
        ((2, 7, 3), 6, 2, 3, 1),
        ((2, 7, 3), 6, 3, 3, 2),
        ((1, 7, 3), 8, 3, 4, 4),
    ],
)
def test_the_layers_routing(
    shape: tuple[int, int, int], num_experts: int, top_k: int, num_devices: int, max_devices: int | None
) -> None:
    """Affinities are a softmax over all centroids, gates those of the chosen, not renormalised; with gradients."""
    limits = {"top_k": top_k, "num_devices": num_devices, "max_devices": max_devices}
    config = MoE.Config(num_experts=num_experts, expert_dim=2, **limits)
    layer = references.randomise(config.build(shape[-1]).double(), seed=1)
    leaves = {"u": references.random(*shape, seed=2), "w": layer.router.w}
    own = references.twin(leaves)
    _, routing = layer(leaves["u"])
    assert isinstance(routing, Routing)
    assert routing.dropped is None
    s = references.affinities(own["u"], own["w"])
    same_values_and_gradients(routing.affinities, s, leaves, own, FLOAT32)
    chosen, _ = references.route(s, **limits)
    assert torch.equal(routing.experts.sort(-1).values, chosen.sort(-1).values)
    own = references.twin(leaves)
    _, routing = layer(leaves["u"])
    expected = references.gates(references.affinities(own["u"], own["w"]), routing.experts)
    same_values_and_gradients(routing.gates, expected, leaves, own, FLOAT32)


def test_affinities_are_float32_in_a_bfloat16_layer() -> None:
    """Products of bfloat16 numbers, summed and exponentiated in float32: near-ties between experts survive."""
    layer = MoE.Config(num_experts=8, top_k=2, expert_dim=4).build(32)
    references.randomise(layer, seed=3).bfloat16()
    u = (4 * references.random(1, 7, 32, seed=4)).bfloat16()
    _, routing = layer(u)
    assert routing.affinities.dtype == torch.float32
    close(routing.affinities, references.affinities(u.double(), layer.router.w.double()), FLOAT32)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"top_k": 0}, "top_k=0: must be between 1 and 6, the experts on 1 devices"),
        ({"top_k": 7}, "top_k=7: must be between 1 and 6, the experts on 1 devices"),
        ({"top_k": 2, "num_devices": 4}, "num_devices=4: must be a divisor of num_experts=6"),
        ({"top_k": 2, "num_devices": 0}, "num_devices=0: must be a divisor of num_experts=6"),
        (
            {"top_k": 2, "num_devices": 3, "max_devices": 0},
            "max_devices=0: must be between 1 and num_devices=3, or null",
        ),
        (
            {"top_k": 2, "num_devices": 3, "max_devices": 4},
            "max_devices=4: must be between 1 and num_devices=3, or null",
        ),
        (
            {"top_k": 3, "num_devices": 3, "max_devices": 1},
            "top_k=3: must be between 1 and 2, the experts on 1 devices",
        ),
    ],
)
def test_what_cannot_be_had_is_refused(limits: dict[str, int], message: str) -> None:
    """The same rules for the function as for the layer's config."""
    with pytest.raises(ValueError, match=f"^{message}"):
        route(torch.full((1, 1, 6), 1 / 6), **limits)
    field, value = message.partition(":")[0].split("=")
    with pytest.raises(ValueError, match=f"^{field}={value} is not valid"):
        MoE.Config(num_experts=6, expert_dim=2, **limits)


def test_experts_come_with_the_highest_affinity_first() -> None:
    s = affinities({"batch": 2, "length": 7, "num_experts": 8, "seed": 4})
    for max_devices in (None, 2):
        _, gates = route(s, top_k=4, num_devices=4, max_devices=max_devices)
        assert (gates[..., :-1] >= gates[..., 1:]).all()


def test_a_token_is_sent_to_the_devices_of_its_experts() -> None:
    """3 devices of 2 experts each; two experts of a device send the token there once."""
    experts = torch.tensor([[[0, 1], [1, 4], [5, 2]]])
    assert token_devices(experts, 6, 3).tolist() == [[[True, False, False], [True, False, True], [False, True, True]]]


def test_the_limit_holds_for_numbers_of_any_size() -> None:
    """Also where affinities are below -1, as logits may be."""
    affinities = torch.tensor([[[-5.0, -6.0, -2.0, -3.0]]])
    experts, gates = route(affinities, top_k=2, num_devices=2, max_devices=1)
    assert experts.tolist() == [[[2, 3]]]
    assert gates.tolist() == [[[-2.0, -3.0]]]


@pytest.mark.parametrize("value", [True, "2", 1.5, [2]], ids=str)
@pytest.mark.parametrize("name", ["top_k", "num_devices", "max_devices"])
def test_a_number_of_experts_or_devices_is_whole(name: str, value: object) -> None:
    limits: dict[str, object] = {"top_k": 2, "num_devices": 3, "max_devices": 2, name: value}
    with pytest.raises(ValueError, match=f"^{name}={re.escape(repr(value))}: must be a whole number$"):
        route(torch.full((1, 1, 6), 1 / 6), **limits)  # type: ignore[arg-type]
    if name != "max_devices":
        with pytest.raises(ValueError, match=f"^{name}=None: must be a whole number$"):
            route(torch.full((1, 1, 6), 1 / 6), **limits | {name: None})  # type: ignore[arg-type]


@pytest.mark.parametrize("infinite", [range(8), range(6), [0, 1, 2, 4, 5, 6, 7]], ids=str)
def test_the_limit_holds_where_experts_are_masked(infinite: Sequence[int]) -> None:
    """An affinity of -inf is that of an expert which should not be chosen: of other devices, none is chosen before."""
    s = affinities({"batch": 2, "length": 7, "num_experts": 8, "seed": 0})
    s[..., list(infinite)] = float("-inf")
    for num_devices, max_devices, top_k in ((4, 1, 2), (4, 2, 3), (2, 1, 4), (4, 3, 6)):
        experts, _ = route(s, top_k=top_k, num_devices=num_devices, max_devices=max_devices)
        assert token_devices(experts, 8, num_devices).sum(-1).max() <= max_devices
        assert (experts.sort(-1).values.diff(dim=-1) > 0).all()


@pytest.mark.parametrize("affinities", [None, [[0.5]], torch.ones(1, 1, 4, dtype=torch.int64)], ids=str)
def test_what_has_no_affinities_is_refused(affinities: object) -> None:
    with pytest.raises(TypeError, match=r"^affinities has .*: must be a floating-point tensor"):
        route(affinities, top_k=1)  # type: ignore[arg-type]
