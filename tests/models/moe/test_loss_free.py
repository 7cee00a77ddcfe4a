"""Loss-free balancing against loops: whom the bias chooses, that it weighs nothing, and how it moves."""

import pytest
import torch
from torch import Tensor

import dsv2
from dsv2.config import ConfigError
from dsv2.kernels.choice import using
from dsv2.models.moe.layer import MoE
from dsv2.models.moe.loss_free import LossFree
from tests import references
from tests.references import balancing
from tests.references import moe_checks as checks
from tests.references.baselines import moe as moe_by_loops
from tests.references.moe_checks import SHAPE, SIZES
from tests.references.tolerances import EXACT, FLOAT32, close, same_values_and_gradients

# Large enough to change about half of the choices, and none twice the size of another, so that nothing ties.
BIAS = (0.31, -0.17, 0.02, 0.13, -0.29, 0.07)
LIMITS = [
    {"num_experts": 4, "top_k": 2},
    {"num_experts": 6, "top_k": 1},
    {"num_experts": 6, "top_k": 3, "num_devices": 3, "max_devices": 2},
    {"num_experts": 6, "top_k": 2, "num_devices": 3, "max_devices": 1},
]


def built(config: LossFree.Config) -> LossFree:
    """The layer with weights that are seen and a bias, in float64."""
    layer = references.randomise(config.build(SHAPE[-1]).double(), seed=1)
    layer.bias.copy_(torch.tensor(BIAS[: config.num_experts]))
    return layer


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_the_layer_is_that_of_loops(limits: dict[str, int], training: bool) -> None:
    """Experts of highest s + b, gates of s alone, output and every gradient."""
    config = LossFree.Config(expert_dim=3, num_shared=1, **limits)
    layer = built(config).train(training)
    leaves = {"u": references.random(*SHAPE, seed=2), **dict(layer.named_parameters())}
    own = references.twin(leaves)
    y, routing = layer(leaves["u"])
    s = references.affinities(own["u"], own["router.w"])
    chosen = {key: limits[key] for key in ("top_k", "num_devices", "max_devices") if key in limits}
    experts = balancing.choose(s, layer.bias, **chosen)
    assert torch.equal(routing.experts, experts)
    assert not torch.equal(experts, references.route(s, **chosen)[0]), "the bias changes no choice here"
    gates = references.gates(s, experts)
    close(routing.gates, gates, FLOAT32, "gates")
    close(routing.affinities, s, FLOAT32, "affinities")
    expected = moe_by_loops(own["u"], own, experts=experts, gates=gates, dropped=None, expert_dim=3)
    same_values_and_gradients(y, expected, leaves, own, FLOAT32)


def test_without_a_bias_it_is_deepseek_moe() -> None:
    config = LossFree.Config(**SIZES, top_k=2)
    layer, plain = (
        references.randomise(kind.build(5).double(), seed=3) for kind in (config, MoE.Config(**SIZES, top_k=2))
    )
    u = references.random(*SHAPE, seed=4)
    (y, routing), (expected, expected_routing) = layer(u), plain(u)
    assert torch.equal(y, expected)
    assert torch.equal(routing.experts, expected_routing.experts)


def test_a_bias_never_reaches_gates_or_losses() -> None:
    """A bias that is the same for all changes nothing; one that replaces all choices leaves affinities as they are."""
    config = LossFree.Config(**SIZES, top_k=2)
    layer = built(config)
    u = references.random(*SHAPE, seed=5)
    layer.bias.fill_(7.0)
    _, same = layer(u)
    layer.bias.zero_()
    _, none = layer(u)
    assert torch.equal(same.experts, none.experts)
    assert torch.equal(same.gates, none.gates)
    layer.bias.copy_(torch.tensor([9.0, 0.0, 9.0, 0.0]))
    _, forced = layer(u)
    assert set(forced.experts.flatten().tolist()) == {0, 2}
    assert torch.equal(forced.affinities, none.affinities)
    assert torch.equal(forced.gates, none.affinities.gather(-1, forced.experts))
    assert (forced.gates[..., 0] >= forced.gates[..., 1]).all(), "highest affinity first"
    replayed = config.balance_losses(none._replace(experts=forced.experts, gates=forced.gates))
    assert all(torch.equal(a, b) for a, b in zip(config.balance_losses(forced), replayed, strict=True))


def test_an_expert_without_affinity_is_chosen_last() -> None:
    """As analyses mask experts: no bias brings them back."""
    layer = LossFree.Config(num_experts=4, top_k=2, expert_dim=1).build(2)
    layer.bias.copy_(torch.tensor([5.0, 0.0, 0.0, 0.0]))
    affinities = torch.tensor([[[0.0, 0.2, 0.7, 0.1]]])
    assert layer.choose(affinities).tolist() == [[[2, 1]]]
    assert layer.choose(torch.tensor([[[0.0, 0.0, 0.7, 0.0]]]))[0, 0, 0] == 2


# ---- the update ------------------------------------------------------------------------------------------------------


def test_the_bias_moves_by_one_step_towards_even_load() -> None:
    """Loads [4, 0] and [1, 3] of two micro-batches are [5, 3] of the step: one update, [-.001, +.001]."""
    layer = LossFree.Config(num_experts=2, top_k=1, expert_dim=1).build(2)
    layer.update_bias(torch.tensor([4, 0]) + torch.tensor([1, 3]))
    close(layer.bias, torch.tensor([-0.001, 0.001]), EXACT)
    layer.update_bias(torch.tensor([4, 4]))
    close(layer.bias, torch.tensor([-0.001, 0.001]), EXACT)
    layer.update_bias(torch.tensor([0, 1000]))  # as far as for a difference of one
    close(layer.bias, torch.tensor([0.0, 0.0]), EXACT)


@pytest.mark.parametrize("seed", range(5))
def test_updates_are_those_of_the_loop(seed: int) -> None:
    """Experts exactly at the mean stay, also where that is no whole number."""
    generator = torch.Generator().manual_seed(seed)
    layer = LossFree.Config(num_experts=6, top_k=2, expert_dim=1, bias_update_rate=0.25).build(2)
    expected = [0.0] * 6
    for _ in range(8):
        experts = torch.rand(3, 7 - seed, 6, generator=generator).argsort(-1)[..., :2]
        layer.update_bias(torch.bincount(experts.flatten(), minlength=6))
        expected = balancing.moved(expected, experts, 0.25)
        assert layer.bias.tolist() == expected


def test_updates_even_out_a_load() -> None:
    """A router that prefers some experts: after enough steps the busiest has little more than its share."""
    layer = LossFree.Config(num_experts=8, top_k=2, expert_dim=1, bias_update_rate=0.005).build(8)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.router.w.copy_(torch.randn(8, 8, generator=generator) / 4)
    u = torch.randn(4, 64, 8, generator=generator) + 2 * torch.randn(8, generator=generator)
    loads = []
    for _ in range(100):
        experts = layer.route(u).experts
        loads.append(torch.bincount(experts.flatten(), minlength=8))
        layer.update_bias(loads[-1])
    first, last = (float(load.max() / load.double().mean()) for load in (loads[0], loads[-1]))
    assert first > 2
    assert last < 1.25


@pytest.mark.parametrize("training", [True, False])
def test_a_call_leaves_nothing_behind(training: bool) -> None:
    checks.remembers_nothing(LossFree.Config(**SIZES, top_k=2), training)


# ---- the buffer ------------------------------------------------------------------------------------------------------


def test_the_bias_is_stored_but_no_weight() -> None:
    config = LossFree.Config(**SIZES, top_k=2)
    model = checks.small_model(config)
    names = {name for name, _ in model.named_parameters()}
    assert model.state_dict().keys() - names == {"layers.0.ffn.bias", "layers.1.ffn.bias"}
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == model.config.shapes()
    assert dsv2.account(model.config).total_params == sum(weight.numel() for weight in model.parameters())


def test_a_dense_layer_has_no_bias() -> None:
    model = dsv2.load(["model/ffn=loss_free", "model.dim=16", "model.shape.num_experts=8"]).model  # its first is dense
    assert {name for name in model.shapes() if name.endswith("bias")} == {"layers.1.ffn.bias", "layers.2.ffn.bias"}
    assert {name: tuple(tensor.shape) for name, tensor in model.build().state_dict().items()} == model.shapes()


def test_the_compiled_router_has_no_bias_and_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain DeepSeekMoE goes to the op that computes softmax and top-K at once, and this layer does not."""
    called = []

    def noting(logits: Tensor, **limits: int | None) -> tuple[Tensor, Tensor, Tensor]:
        called.append(limits)
        s = logits.softmax(-1)
        experts = s.topk(2).indices
        return s, experts, s.gather(-1, experts)

    monkeypatch.setattr("dsv2.models.moe.layer.route_logits", noting)
    monkeypatch.setattr("dsv2.models.moe.layer.form", lambda op, *_: "cpu" if op == "router" else "torch")
    u = references.random(*SHAPE, seed=6).detach().float()
    with using("torch"):
        MoE.Config(**SIZES, top_k=2).build(5)(u)
        assert len(called) == 1
        LossFree.Config(**SIZES, top_k=2).build(5)(u)
        assert len(called) == 1


@pytest.mark.parametrize("rate", ["0.0", "-0.001", "inf"])
def test_a_step_that_makes_no_sense_is_refused(rate: str) -> None:
    with pytest.raises(ConfigError, match=r"^model\.ffn\.bias_update_rate=.* is not valid: positive and finite"):
        dsv2.load(["model/ffn=loss_free", f"model.ffn.bias_update_rate={rate}"])
