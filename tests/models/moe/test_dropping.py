"""Token dropping (2.2.4) against loops: budgets, order, exempt sequences, and what a layer makes of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv2 import Routing, drop
from dsv2.config import ConfigError
from dsv2.models.moe.dropping import Dropping
from dsv2.models.moe.hints import Hints
from dsv2.models.moe.layer import MoE
from tests import references
from tests.references.tolerances import FLOAT32, same_values_and_gradients


@st.composite
def routings(draw: st.DrawFn) -> tuple[Routing, torch.Tensor, int]:
    """A routing whose affinities are eighths, so that many are equal; which sequences are exempt; D."""
    num_devices, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    batch, length, E = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 7])), num_devices * group
    top_k = draw(st.integers(1, E))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    s = torch.randint(0, 5, (batch, length, E), generator=generator) / 8
    experts = torch.rand(batch, length, E, generator=generator).argsort(-1)[..., :top_k]
    exempt = torch.tensor(draw(st.lists(st.booleans(), min_size=batch, max_size=batch)))
    return Routing(affinities=s, experts=experts, gates=s.gather(-1, experts)), exempt, num_devices


@settings(max_examples=80, deadline=None, derandomize=True)
@given(case=routings(), capacity_factor=st.sampled_from([0.25, 0.5, 1.0, 1.25, 2.0]), with_exempt=st.booleans())
def test_drop(case: tuple[Routing, torch.Tensor, int], capacity_factor: float, with_exempt: bool) -> None:
    routing, exempt, num_devices = case
    mask = exempt if with_exempt else None
    dropped = drop(routing, num_devices=num_devices, capacity_factor=capacity_factor, exempt=mask)
    expected = references.drop(routing.affinities, routing.experts, num_devices, capacity_factor, mask)
    assert dropped.dtype == torch.bool
    assert torch.equal(dropped, expected)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(case=routings())
def test_exempt_sequences_use_the_budget_and_lose_nothing(case: tuple[Routing, torch.Tensor, int]) -> None:
    routing, exempt, num_devices = case
    dropped = drop(routing, num_devices=num_devices, capacity_factor=1.0, exempt=exempt)
    assert not dropped[exempt].any()
    B, T, K = routing.experts.shape
    group = routing.affinities.shape[-1] // num_devices
    for device in range(num_devices):
        here = routing.experts // group == device
        kept, protected = int((here & ~dropped).sum()), int(here[exempt].sum())
        assert kept == min(int(here.sum()), max(B * T * K // num_devices, protected))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(case=routings())
def test_room_for_all_drops_nothing(case: tuple[Routing, torch.Tensor, int]) -> None:
    """D times the average load is all pairs there are."""
    routing, exempt, num_devices = case
    for capacity_factor in (float(num_devices), 1e6):
        assert not drop(routing, num_devices=num_devices, capacity_factor=capacity_factor, exempt=exempt).any()


def test_the_lowest_affinities_go() -> None:
    """By hand: 4 pairs, all on device 0 of 2, a budget of 2; then with the second sequence exempt, which takes one."""
    s = torch.tensor([[[0.5, 0.1, 0.2, 0.2], [0.3, 0.4, 0.2, 0.1], [0.6, 0.2, 0.1, 0.1]], [[0.05, 0.35, 0.3, 0.3]] * 3])
    experts = torch.tensor([[[0], [1], [0]], [[0], [2], [3]]])
    routing = Routing(affinities=s, experts=experts, gates=s.gather(-1, experts))
    assert drop(routing, num_devices=2, capacity_factor=1.0).tolist() == [
        [[False], [False], [False]],
        [[True], [False], [False]],
    ]
    exempt = torch.tensor([False, True])
    assert drop(routing, num_devices=2, capacity_factor=1.0, exempt=exempt).tolist() == [
        [[False], [True], [False]],
        [[False], [False], [False]],
    ]


def test_of_equals_the_earlier_stays() -> None:
    """In token order, then in the order in which a token chose."""
    s = torch.full((1, 2, 4), 0.25)
    experts = torch.tensor([[[3, 0], [1, 2]]])
    routing = Routing(affinities=s, experts=experts, gates=s.gather(-1, experts))
    kept = {0.25: [[3]], 0.5: [[3, 0]], 0.75: [[3, 0], [1]]}
    for capacity_factor, expected in kept.items():
        dropped = drop(routing, num_devices=1, capacity_factor=capacity_factor)
        left = [[int(e) for e in experts[0, t][~dropped[0, t]]] for t in range(2)]
        assert [token for token in left if token] == expected


SIZES = {"num_experts": 6, "top_k": 2, "expert_dim": 3, "num_shared": 1, "num_devices": 3}


@pytest.mark.parametrize("exempt", [[False, False], [True, False], [True, True]])
@pytest.mark.parametrize("capacity_factor", [0.5, 1.0])
def test_a_layer_in_training(capacity_factor: float, exempt: list[bool]) -> None:
    """A dropped pair adds nothing, the shared expert stays, and neither weights nor gates hear of the pair."""
    config = MoE.Config(**SIZES, dropping=Dropping.Config(capacity_factor=capacity_factor, exempt_ratio=0.1))
    layer = references.randomise(config.build(5).double(), seed=1).train()
    leaves = {"u": references.random(2, 7, 5, seed=2), **dict(layer.named_parameters())}
    own = references.twin(leaves)
    y, routing = layer(leaves["u"], Hints(exempt=torch.tensor(exempt)))
    s = references.affinities(own["u"], own["router.w"])
    dropped = references.drop(s, routing.experts, 3, capacity_factor, torch.tensor(exempt))
    assert torch.equal(routing.dropped, dropped)
    assert bool(dropped.any()) == (not all(exempt))
    expected = references.moe(own["u"], own, experts=routing.experts, expert_dim=3, dropped=dropped)
    same_values_and_gradients(y, expected, leaves, own, FLOAT32)


def test_a_layer_in_evaluation_drops_nothing() -> None:
    """Not even at a capacity of next to nothing; and the next training step drops again."""
    config = MoE.Config(**SIZES, dropping=Dropping.Config(capacity_factor=0.01, exempt_ratio=0.1))
    layer = references.randomise(config.build(5).double(), seed=3)
    leaves = {"u": references.random(2, 7, 5, seed=4), **dict(layer.named_parameters())}
    own = references.twin(leaves)
    y, routing = layer.eval()(leaves["u"], Hints(exempt=torch.tensor([False, True])))
    assert routing.dropped is None
    expected = references.moe(own["u"], own, experts=routing.experts, expert_dim=3)
    same_values_and_gradients(y, expected, leaves, own, FLOAT32)
    _, routing = layer.train()(leaves["u"], Hints(exempt=torch.tensor([False, True])))
    assert routing.dropped[0].all()
    assert not routing.dropped[1].any()


def test_a_huge_capacity_is_no_dropping() -> None:
    """Bit for bit, forward and backward."""
    u = references.random(2, 7, 5, seed=5)
    results = []
    for dropping in (None, Dropping.Config(capacity_factor=1e6, exempt_ratio=0.0)):
        layer = references.randomise(MoE.Config(**SIZES, dropping=dropping).build(5).double(), seed=6).train()
        y, routing = layer(u, Hints(exempt=torch.tensor([False, False])))
        assert routing.dropped is None or not routing.dropped.any()
        results.append([y, *torch.autograd.grad(y.square().sum(), [u, *layer.parameters()])])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_devices": 1, "capacity_factor": 0.0}, "capacity_factor=0.0: must be positive"),
        ({"num_devices": 1, "capacity_factor": "1"}, "capacity_factor=1: must be positive"),
        ({"num_devices": 1, "capacity_factor": True}, "capacity_factor=True: must be positive"),
        ({"num_devices": True, "capacity_factor": 1.0}, "num_devices=True: must be a whole number"),
        ({"num_devices": "1", "capacity_factor": 1.0}, "num_devices='1': must be a whole number"),
        ({"num_devices": 3, "capacity_factor": 1.0}, "num_devices=3: must be a divisor of the number of experts, 4"),
        ({"num_devices": 0, "capacity_factor": 1.0}, "num_devices=0: must be a divisor of the number of experts, 4"),
        (
            {"num_devices": 1, "capacity_factor": 1.0, "exempt": torch.tensor([True])},
            r"exempt has shape \(1,\) torch.bool: must be one entry per sequence, \(2,\) bool",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict, message: str) -> None:
    s = torch.full((2, 3, 4), 0.25)
    experts = torch.zeros(2, 3, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"^{message}"):
        drop(Routing(s, experts, s.gather(-1, experts)), **arguments)


def test_arguments_of_another_type_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^routing has type NoneType: must be a Routing"):
        drop(None, num_devices=1, capacity_factor=1.0)  # type: ignore[arg-type]
    s = torch.full((2, 3, 4), 0.25)
    experts = torch.zeros(2, 3, 1, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"^exempt has type list: must be a tensor"):
        drop(Routing(s, experts, s.gather(-1, experts)), num_devices=1, capacity_factor=1.0, exempt=[True, True])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "valid"),
    [
        ("capacity_factor", 0.0, "positive"),
        ("exempt_ratio", -0.1, "between 0 and 1"),
        ("exempt_ratio", 1.1, "between 0 and 1"),
    ],
)
def test_impossible_settings_are_refused(field: str, value: float, valid: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}={value} is not valid: {valid}"):
        Dropping.Config(**{field: value})


def test_experts_out_of_range_are_refused() -> None:
    routing = Routing(torch.ones(1, 2, 4), torch.tensor([[[0, 4], [1, 2]]]), torch.ones(1, 2, 2))
    with pytest.raises(ValueError, match=r"^experts has values from 0 to 4: must be 0 to 3"):
        drop(routing, num_devices=2, capacity_factor=1.0)


def test_no_pairs_drop_nothing() -> None:
    routing = Routing(torch.ones(0, 2, 4), torch.zeros(0, 2, 2, dtype=torch.int64), torch.ones(0, 2, 2))
    assert drop(routing, num_devices=2, capacity_factor=1.0).shape == (0, 2, 2)
