"""The three balance losses (Eq. 23-31) against loops and by hand, and the one of GShard and Switch."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv2 import Routing, balance_losses
from dsv2.models.moe.balance import balance_losses_per_sequence, first_choice_losses, load_per_sequence
from dsv2.models.moe.gshard import GShard
from dsv2.models.moe.switch import Switch
from tests import references
from tests.references.tolerances import FLOAT32, close, same_values_and_gradients

NAMES = ("expert", "device", "communication")


@st.composite
def routings(draw: st.DrawFn) -> dict[str, int]:
    """Sizes of a routing, and M for the communication loss (0: not given)."""
    num_devices, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return {
        "batch": draw(st.integers(1, 3)),
        "length": draw(st.sampled_from([1, 2, 7])),
        "num_experts": num_devices * group,
        "top_k": draw(st.integers(1, num_devices * group)),
        "num_devices": num_devices,
        "max_devices": draw(st.integers(0, num_devices)),
        "seed": draw(st.integers(0, 1000)),
    }


def random_routing(case: dict[str, int]) -> Routing:
    """Any K distinct experts per token, likely or not: the losses are defined for every choice."""
    generator = torch.Generator().manual_seed(case["seed"])
    shape = (case["batch"], case["length"], case["num_experts"])
    s = torch.randn(shape, generator=generator).softmax(-1)
    experts = torch.rand(shape, generator=generator).argsort(-1)[..., : case["top_k"]]
    return Routing(affinities=s, experts=experts, gates=s.gather(-1, experts))


def counted(experts: list, num_experts: int) -> Routing:
    """A routing with these experts (B, T, K) and some affinities that sum to 1."""
    chosen = torch.tensor(experts)
    generator = torch.Generator().manual_seed(5)
    s = torch.randn(*chosen.shape[:2], num_experts, generator=generator).softmax(-1)
    return Routing(affinities=s, experts=chosen, gates=s.gather(-1, chosen))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(case=routings())
def test_each_loss(name: str, case: dict[str, int]) -> None:
    """Values, and gradients with respect to every affinity: f is a count, so they flow through P alone."""
    routing = random_routing(case)
    leaves = {"affinities": routing.affinities.requires_grad_()}
    own = references.twin(leaves)
    D, M = case["num_devices"], case["max_devices"] or None
    losses = balance_losses(routing, num_devices=D, max_devices=M)
    loss = getattr(losses, name)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    expected = {
        "expert": lambda s, experts: references.expert_loss(s, experts),
        "device": lambda s, experts: references.device_loss(s, experts, D),
        "communication": lambda s, experts: references.communication_loss(s, experts, D, M),
    }[name](own["affinities"], routing.experts)
    same_values_and_gradients(loss, expected, leaves, own, FLOAT32)


def test_gates_get_no_gradient() -> None:
    """f and the tokens sent are counts of choices; nothing flows into them from the gates."""
    routing = random_routing(
        {"batch": 2, "length": 7, "num_experts": 6, "top_k": 2, "num_devices": 3, "max_devices": 0, "seed": 1}
    )
    gates = routing.gates.detach().requires_grad_()
    affinities = routing.affinities.detach().requires_grad_()
    losses = balance_losses(routing._replace(affinities=affinities, gates=gates), num_devices=3)
    (gradient,) = torch.autograd.grad(sum(losses), [gates], allow_unused=True, materialize_grads=True)
    assert not gradient.any()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    rounds=st.integers(1, 3),
    top_k=st.integers(1, 6),
    num_devices=st.sampled_from([1, 2, 3, 6]),
)
def test_perfect_balance_costs_one(batch: int, rounds: int, top_k: int, num_devices: int) -> None:
    """Every expert chosen equally often: f = f' = 1, so the sum over P is 1 before alpha, whatever the affinities."""
    choices = [[(t + k) % 6 for k in range(top_k)] for t in range(6 * rounds)]
    losses = balance_losses(counted([choices] * batch, 6), num_devices=num_devices)
    close(losses.expert, torch.tensor(1.0), FLOAT32)
    close(losses.device, torch.tensor(1.0), FLOAT32)


@pytest.mark.parametrize("max_devices", [1, 2, 3, 4])
def test_perfectly_balanced_communication_costs_one(max_devices: int) -> None:
    """Every token sent to M of 4 devices, every device sent the same: f'' = 1, though devices hold two experts each."""
    tokens = [[(t + j) % 4 * 2 + half for j in range(max_devices) for half in (0, 1)] for t in range(4)]
    losses = balance_losses(counted([tokens], 8), num_devices=4, max_devices=max_devices)
    close(losses.communication, torch.tensor(1.0), FLOAT32)


@pytest.mark.parametrize("length", [1, 7])
def test_collapse_costs_the_most(length: int) -> None:
    """All tokens on expert 0 of 4, affinities along: the expert loss is E = 4 and the others D = 2, for any length."""
    s = torch.zeros(1, length, 4)
    s[..., 0] = 1.0
    routing = Routing(affinities=s, experts=torch.zeros(1, length, 1, dtype=torch.int64), gates=s[..., :1])
    losses = balance_losses(routing, num_devices=2)
    assert [float(getattr(losses, name)) for name in NAMES] == pytest.approx([4.0, 2.0, 2.0], rel=FLOAT32)


def test_a_token_is_sent_to_a_device_once() -> None:
    """By hand, 2 devices of 2, K = M = 2: token 0 has both experts on device 0, token 1 one on each."""
    s = torch.tensor([[[0.4, 0.3, 0.2, 0.1], [0.3, 0.1, 0.1, 0.5]]])
    experts = torch.tensor([[[0, 1], [3, 0]]])
    losses = balance_losses(Routing(s, experts, s.gather(-1, experts)), num_devices=2, max_devices=2)
    # sent: 2 tokens to device 0 and 1 to device 1, D / (M T) = 1 / 2; P'' = 0.55 and 0.45
    assert float(losses.communication) == pytest.approx(0.5 * 2 * 0.55 + 0.5 * 1 * 0.45, rel=FLOAT32)
    # f = 4 / (2 x 2) x (2, 1, 0, 1); f' = (1.5, 0.5)
    assert float(losses.device) == pytest.approx(1.5 * 0.55 + 0.5 * 0.45, rel=FLOAT32)
    assert float(losses.expert) == pytest.approx(2 * 0.35 + 1 * 0.2 + 0 * 0.15 + 1 * 0.3, rel=FLOAT32)


@pytest.mark.parametrize(("num_devices", "top_k", "expected"), [(1, 3, 1), (2, 1, 1), (2, 4, 2), (3, 2, 2)])
def test_m_is_the_most_devices_a_token_can_reach(num_devices: int, top_k: int, expected: int) -> None:
    """max_devices not given: M = min(D, K)."""
    case = {"batch": 2, "length": 5, "num_experts": 6, "top_k": top_k, "seed": 2}
    routing = random_routing(case)
    unlimited = balance_losses(routing, num_devices=num_devices)
    limited = balance_losses(routing, num_devices=num_devices, max_devices=expected)
    assert float(unlimited.communication) == float(limited.communication)


def test_sequences_are_balanced_one_by_one() -> None:
    """The loss of a batch is the mean of its sequences' losses, not the loss of the batch as one sequence."""
    tokens = [[[0, 1], [0, 1], [1, 0]], [[2, 3], [3, 2], [2, 3]]]
    routing = counted(tokens, 4)
    whole = balance_losses(routing, num_devices=2)
    alone = [balance_losses(Routing(*(x[b : b + 1] for x in routing[:3])), num_devices=2) for b in range(2)]
    each = balance_losses_per_sequence(routing, num_devices=2)
    pooled = balance_losses(Routing(*(x.reshape(1, 6, -1) for x in routing[:3])), num_devices=2)
    for name in NAMES:
        mean = sum(getattr(losses, name) for losses in alone) / 2
        close(getattr(whole, name), mean, FLOAT32)
        close(getattr(each, name), torch.stack([getattr(losses, name) for losses in alone]), FLOAT32)
        assert abs(float(getattr(pooled, name)) - float(mean)) > 1e-3


def test_dropped_pairs_still_count() -> None:
    """c_i counts the tokens that chose i; what became of them afterwards does not matter."""
    routing = random_routing(
        {"batch": 2, "length": 7, "num_experts": 6, "top_k": 2, "num_devices": 3, "max_devices": 0, "seed": 3}
    )
    half = routing._replace(dropped=torch.arange(28).reshape(2, 7, 2) % 2 == 0)
    assert balance_losses(half, num_devices=3) == balance_losses(routing, num_devices=3)


@pytest.mark.parametrize("num_devices", [0, 4, 7])
def test_devices_that_do_not_divide_the_experts_are_refused(num_devices: int) -> None:
    with pytest.raises(ValueError, match=f"^num_devices={num_devices}: must be a divisor of the number of experts, 6"):
        balance_losses(counted([[[0, 1]]], 6), num_devices=num_devices)


def test_load_counts_the_tokens_that_chose_each_expert() -> None:
    experts = torch.tensor([[[0, 1], [1, 3]], [[2, 0], [0, 2]]])
    assert load_per_sequence(experts, 4).tolist() == [[1, 2, 0, 1], [2, 0, 2, 0]]


# ---- GShard's and Switch's -------------------------------------------------------------------------------------------


def test_first_choices_by_hand() -> None:
    """4 tokens, 2 experts: 3 prefer the first, P = (0.65, 0.35), so 2 (0.75 x 0.65 + 0.25 x 0.35) = 1.15."""
    s = torch.tensor([[[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]]])
    experts = s.argsort(-1, descending=True)
    for config in (GShard.Config(num_experts=2, expert_dim=1), Switch.Config(num_experts=2, expert_dim=1)):
        routing = Routing(s, experts[..., : config.top_k], s.gather(-1, experts)[..., : config.top_k])
        assert config.balance_losses(routing).expert.tolist() == pytest.approx([1.15])
        half = torch.full_like(s, 0.5)
        even = Routing(half, torch.tensor([[[0, 1], [1, 0], [0, 1], [1, 0]]]), half)
        assert config.balance_losses(even).expert.tolist() == pytest.approx([1.0])


def test_first_choices_are_counted_over_the_batch_and_affinities_over_each_sequence() -> None:
    """f is the whole batch's, (3, 1) / 4; P of the two sequences (0.8, 0.2) and (0.4, 0.6). The mean over sequences is
    the loss of the whole batch, 2 (0.75 x 0.6 + 0.25 x 0.4); gradients reach P only."""
    s = torch.tensor([[[0.9, 0.1], [0.7, 0.3]], [[0.6, 0.4], [0.2, 0.8]]], requires_grad=True)
    experts = torch.tensor([[[0], [0]], [[0], [1]]])
    losses = first_choice_losses(Routing(s, experts, s.detach().gather(-1, experts)))
    assert losses.expert.tolist() == pytest.approx([2 * (0.75 * 0.8 + 0.25 * 0.2), 2 * (0.75 * 0.4 + 0.25 * 0.6)])
    assert losses.expert.mean().item() == pytest.approx(2 * (0.75 * 0.6 + 0.25 * 0.4))
    assert losses.device.tolist() == losses.communication.tolist() == [0.0, 0.0]
    (gradient,) = torch.autograd.grad(losses.expert.sum(), s)
    close(gradient, torch.tensor([0.75, 0.25]).expand(2, 2, 2), FLOAT32)  # 2 f / T


FINE = Routing(torch.full((2, 3, 4), 0.25), torch.zeros(2, 3, 2, dtype=torch.int64), torch.full((2, 3, 2), 0.25))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"affinities": torch.ones(2, 3)},
            "affinities has shape (2, 3) torch.float32: must be a floating-point tensor",
        ),
        ({"affinities": FINE.experts}, "affinities has shape (2, 3, 2) torch.int64: must be a floating-point tensor"),
        ({"experts": FINE.experts[:1]}, "experts has shape (1, 3, 2) torch.int64: must be (B, T, K) with the B and T"),
        ({"experts": FINE.experts[:, :2]}, "experts has shape (2, 2, 2) torch.int64: must be (B, T, K)"),
        ({"experts": FINE.experts.int()}, "experts has shape (2, 3, 2) torch.int32: must be int64"),
        ({"experts": FINE.experts + 4}, "experts has values from 4 to 4: must be 0 to 3"),
        ({"experts": FINE.experts - 1}, "experts has values from -1 to -1: must be 0 to 3"),
        ({"gates": FINE.gates[..., :1]}, "gates has shape (2, 3, 1) torch.float32: must have the shape of the experts"),
        ({"gates": None}, "gates has type NoneType: must be"),
        (
            {name: FINE._asdict()[name][:0] for name in ("affinities", "experts", "gates")},
            "experts has shape (0, 3, 2)",
        ),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_a_routing_whose_tensors_do_not_fit_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        balance_losses(FINE._replace(**changes))


@pytest.mark.parametrize("max_devices", [-1, 0, 3, 99])
def test_limits_out_of_range_are_refused(max_devices: int) -> None:
    with pytest.raises(ValueError, match=f"^max_devices={max_devices}: must be between 1 and num_devices=2, or None"):
        balance_losses(FINE, num_devices=2, max_devices=max_devices)


@pytest.mark.parametrize("value", [True, float("nan"), 1.5, "2", [2]], ids=str)
def test_numbers_of_devices_are_whole(value: object) -> None:
    for name, limits in (("num_devices", {}), ("max_devices", {"num_devices": 2})):
        with pytest.raises(ValueError, match=f"^{name}={re.escape(repr(value))}: must be a whole number$"):
            balance_losses(FINE, **limits, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("routing", [None, (1, 2, 3), "Routing", torch.ones(2)], ids=str)
def test_what_is_no_routing_is_refused(routing: object) -> None:
    with pytest.raises(TypeError, match=r"^routing has .*: must be a Routing$"):
        balance_losses(routing)  # type: ignore[arg-type]
