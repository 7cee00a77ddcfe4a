"""Tokens that travel to experts of other processes: values, gradients and bytes are those of one process.

The processes are real. Faults that this kind of code has had elsewhere are named at the tests that hold them.
"""

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from dsv2.config import ConfigError
from dsv2.distributed.exchange import Exchange
from dsv2.distributed.expert_parallel import (
    DISPATCHERS,
    AllToAll,
    Arriving,
    Choices,
    predicted_bytes,
)
from dsv2.distributed.gradients import average, clip
from dsv2.distributed.mesh import Mesh
from dsv2.distributed.shards import Parts, all_shares, keep_own_experts, whole_state
from dsv2.models.attention.mla import MLA
from dsv2.models.ffn import SwiGLU
from dsv2.models.moe.balance import balance_losses
from dsv2.models.moe.experts import Experts
from dsv2.models.moe.layer import MoE
from dsv2.models.moe.router import Routing
from dsv2.models.ops import PLAIN, Ops
from dsv2.models.transformer import Transformer
from tests.references import ranks
from tests.references.tolerances import close

EXPERTS, TOP_K, DIM, WIDTH = 8, 3, 6, 5
GRADIENT, PARAMETER = 1e-12, 1e-10  # in float64; Adam divides by gradients that may be small


# ---- one layer of experts, with routings made by hand ----------------------------------------------------------------


class Case(NamedTuple):
    """Tokens and routing of every process."""

    x: list[Tensor]  # (1, T, d) each
    routings: list[Routing]


def case(name: str, size: int) -> Case:
    rng = torch.Generator().manual_seed(size)
    lengths = [4] * size if name != "uneven" else [1 + 5 * (rank % 2) + rank for rank in range(size)]
    routings, x = [], []
    for length in lengths:
        x.append(torch.randn(1, length, DIM, generator=rng, dtype=torch.float64))
        affinities = torch.rand(1, length, EXPERTS, generator=rng, dtype=torch.float64)
        if name == "skewed":  # the last processes have nothing to do, and expert 1 of the first is never chosen
            affinities[..., EXPERTS // size :] = 0
            affinities[..., 1] = 0
        top_k = TOP_K if name != "skewed" else 1
        gates, experts = affinities.topk(top_k)
        dropped = torch.rand(experts.shape, generator=rng) < 0.4 if name == "dropped" else None
        if name == "all dropped":
            dropped = torch.ones(experts.shape, dtype=torch.bool)
        routings.append(Routing(affinities, experts, gates, dropped))
    return Case(x, routings)


@cache
def experts() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    gate_up, down = (EXPERTS, DIM, 2 * WIDTH), (EXPERTS, WIDTH, DIM)
    first, second = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in (gate_up, down))
    return first, second


def through(ops: Ops, x: Tensor, routing: Routing, weights: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """The output of the experts and its gradients."""
    layer = Experts(len(weights[0]), DIM, WIDTH, ops)
    layer.w_gate_up, layer.w_down = map(nn.Parameter, weights)
    x, gates = x.clone().requires_grad_(), routing.gates.clone().requires_grad_()
    rows, counts, ticket = ops.dispatcher.dispatch(x, routing._replace(gates=gates))
    y = ops.dispatcher.combine(layer(rows, counts), ticket)
    (y * torch.arange(1.0, 1 + y.numel(), dtype=torch.float64).view_as(y)).sum().backward()
    names = ("x", "gates", "w_gate_up", "w_down")
    return {"y": y.detach()} | dict(
        zip(names, (x.grad, gates.grad, layer.w_gate_up.grad, layer.w_down.grad), strict=True)
    )


CASES = ("even", "uneven", "skewed", "dropped", "all dropped")


def travel() -> dict[str, Any]:
    """Every case through every dispatcher, twice each, in this process of several."""
    size, rank = dist.get_world_size(), dist.get_rank()
    whole, results = dist.new_group(), {}
    for kind, dispatcher in DISPATCHERS.items():
        for name in CASES:
            given = case(name, size)
            own = tuple(weight.chunk(size)[rank] for weight in experts())
            for turn in range(2):
                sender = dispatcher(whole, EXPERTS)
                result = through(sender.ops(PLAIN), given.x[rank], given.routings[rank], own)
                results[kind, name, turn] = result | {"meter": sender.meter}
    return results


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", DISPATCHERS)
def test_experts_elsewhere_compute_what_local_ones_do(two: list[dict[str, Any]], kind: str, name: str) -> None:
    """Rows nobody wrote would be NaN; an expert without tokens has a gradient of 0, a missing one would be None."""
    given, size = case(name, len(two)), len(two)
    with ranks.in_double():
        alone = [through(PLAIN, *pair, experts()) for pair in zip(given.x, given.routings, strict=True)]
    for turn in range(2):
        for rank, result in enumerate(process["travelled"][kind, name, turn] for process in two):
            for part in ("y", "x", "gates"):
                close(result[part], alone[rank][part], GRADIENT, f"{part} of process {rank}")
            for part in ("w_gate_up", "w_down"):
                summed = sum(one[part] for one in alone).chunk(size)[rank]
                close(result[part], summed, GRADIENT, f"gradient of {part} in process {rank}")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", DISPATCHERS)
def test_bytes_counted_are_bytes_predicted(two: list[dict[str, Any]], kind: str, name: str) -> None:
    once = kind == "once_per_device"
    routings = case(name, len(two)).routings
    predicted = predicted_bytes(routings, dim=DIM, element_bytes=8, once_per_device=once)
    assert [process["travelled"][kind, name, 0]["meter"] for process in two] == predicted


def test_a_token_of_three_experts_is_sent_three_times_or_once() -> None:
    """By hand: two processes of four experts; a token of process 0 chose 1, 5, 6, one of process 1 chose 0, 2, 7."""
    experts = (torch.tensor([[[1, 5, 6]]]), torch.tensor([[[0, 2, 7]]]))
    routings = [Routing(torch.zeros(1, 1, 8), chosen, torch.zeros(1, 1, 3)) for chosen in experts]
    by_pair = predicted_bytes(routings, dim=10, element_bytes=2, once_per_device=False)
    assert [meter.rows for meter in by_pair] == [2 * 20 * (2 + 2)] * 2  # sent and answered, forward and backward
    assert [meter.extra for meter in by_pair] == [4 * 8] * 2  # counts of the other's experts
    once = predicted_bytes(routings, dim=10, element_bytes=2, once_per_device=True)
    assert [meter.rows for meter in once] == [2 * 20 * (1 + 1)] * 2
    assert [meter.extra for meter in once] == [5 * 8 + 2 * (4 + 4) + 2 * 4] * 2
    forward = predicted_bytes(routings, dim=10, element_bytes=2, once_per_device=True, backward=False)
    assert [meter.total for meter in forward] == [20 * 2 + 5 * 8 + 2 * (4 + 4)] * 2


# ---- a whole model ---------------------------------------------------------------------------------------------------


def config(**changes: Any) -> Transformer.Config:
    moe = MoE.Config(num_experts=EXPERTS, top_k=2, expert_dim=8, num_shared=1, num_devices=4, max_devices=2)
    return Transformer.Config(
        vocab_size=11,
        dim=8,
        num_layers=3,
        num_dense_layers=1,
        dense=SwiGLU.Config(width=12),
        attention=MLA.Config(num_heads=2, head_dim=4, rope_dim=2, v_dim=4, kv_latent_dim=4),
        ffn=moe,
        init_std=0.3,
        **changes,
    )


BATCH, STEPS, CLIP = 4, 3, 0.5


def batch(step: int) -> Tensor:
    return torch.randint(11, (BATCH, 6), generator=torch.Generator().manual_seed(step))


def loss_of(model: Transformer, tokens: Tensor) -> Tensor:
    out = model(tokens[:, :-1])
    ce = F.cross_entropy(out.logits.flatten(0, 1), tokens[:, 1:].flatten())
    for routing in out.routings:
        losses = balance_losses(routing, num_devices=4, max_devices=2)
        ce = ce + 0.03 * losses.expert + 0.05 * losses.device + 0.02 * losses.communication
    return ce


def trained(layout: Mesh.Config | None, *, recompute: bool = False) -> dict[str, Any]:
    """Gradients and norm of the first step, and the weights after three of AdamW, as in one process."""
    mesh = None if layout is None else layout.build()
    model = config().build(seed=3).double()
    if mesh is not None and layout is not None:
        dispatcher = DISPATCHERS[layout.dispatch](mesh.experts, EXPERTS)
        model = with_ops(model, dispatcher.ops(PLAIN))
        keep_own_experts(model, mesh.experts)
    model.recompute_layers = 3 if recompute else 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.95), eps=1e-8, fused=True)
    gradients: dict[str, Tensor] = {}
    norms = []
    for step in range(STEPS):
        tokens = batch(step)
        if mesh is not None:
            tokens = tokens.chunk(mesh.num_shares)[mesh.share]
        loss_of(model, tokens).backward()
        parts = Parts.of(model)
        if mesh is not None:
            average(parts, mesh)
        if step == 0:
            gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
        norms.append(
            clip(parts, mesh, CLIP) if mesh is not None else nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        )
        optimizer.step()
        optimizer.zero_grad()
    if mesh is not None:
        gradients = {
            name: all_shares(gradient, mesh.experts) if name in parts.experts else gradient
            for name, gradient in gradients.items()
        }
        return {"gradients": gradients, "norms": norms, "weights": whole_state(model, mesh.experts)}
    return {"gradients": gradients, "norms": norms, "weights": model.state_dict()}


def with_ops(model: Transformer, ops: Ops) -> Transformer:
    other = model.config.build(ops=ops).double()
    other.load_state_dict(model.state_dict())
    return other


def train_all(layouts: list[tuple[Mesh.Config, bool]]) -> list[dict[str, Any]]:
    return [trained(layout, recompute=recompute) for layout, recompute in layouts]


@cache
def alone() -> dict[str, Any]:
    with ranks.in_double():
        return trained(None)


def assert_trained_alike(results: list[dict[str, Any]]) -> None:
    for result in results:
        for name, gradient in alone()["gradients"].items():
            close(result["gradients"][name], gradient, GRADIENT, f"gradient of {name}")
        for norm, expected in zip(result["norms"], alone()["norms"], strict=True):
            close(norm, expected, GRADIENT, "norm")
        for name, weight in alone()["weights"].items():
            close(result["weights"][name], weight, PARAMETER, name)
    for name, weight in results[0]["weights"].items():
        assert all(torch.equal(weight, result["weights"][name]) for result in results), f"{name} differs by process"


PAIR = [(Mesh.Config(ep=2, dispatch=kind), recompute) for kind in DISPATCHERS for recompute in (False, True)]
PAIR.append((Mesh.Config(dp=2), False))


def test_two_processes_train_what_one_does(two: list[dict[str, Any]]) -> None:
    """Expert gradients too large by the degree of parallelism, a router with a part of its gradient, a local norm."""
    assert min(alone()["norms"]) > CLIP  # so that a wrong norm is seen
    for results in zip(*(process["trained"] for process in two), strict=True):
        assert_trained_alike(list(results))


@pytest.mark.slow
def test_four_processes_train_what_one_does(tmp_path: Path) -> None:
    layouts = [(Mesh.Config(ep=ep, dp=4 // ep, dispatch=kind), False) for kind in DISPATCHERS for ep in (2, 4)]
    for results in zip(*ranks.run(train_all, 4, tmp_path, layouts), strict=True):
        assert_trained_alike(list(results))


# ---- parts -----------------------------------------------------------------------------------------------------------


def overlap() -> dict[str, Any]:
    """What is under way while shared experts run: after `dispatch`, and in backward before they are differentiated."""
    order: list[str] = []
    start, finish = Exchange.start, Exchange.finish

    def noting_start(self: Exchange, rows: Tensor, *, back: bool) -> None:
        if self.kind == "rows":
            order.append("start")
        start(self, rows, back=back)

    def noting_finish(self: Exchange) -> Tensor:
        if self.kind == "rows":
            order.append("finish")
        return finish(self)

    layer = config().ffn.build(8, AllToAll(dist.new_group(), EXPERTS).ops(PLAIN)).double()
    for weight in layer.parameters():
        nn.init.normal_(weight)
    keep_own_experts(layer, dist.new_group())
    assert isinstance(layer, MoE)
    assert layer.shared is not None
    layer.shared.register_forward_pre_hook(lambda *_: order.append("shared"))
    layer.shared.register_full_backward_pre_hook(lambda *_: order.append("shared"))
    with mock.patch.object(Exchange, "start", noting_start), mock.patch.object(Exchange, "finish", noting_finish):
        y, _ = layer(torch.randn(1, 4, 8, dtype=torch.float64, requires_grad=True))
        forward = list(order)
        order.clear()
        y.sum().backward()
    return {"forward": forward, "backward": order}


def refusal() -> str:
    with pytest.raises(ConfigError) as refused:
        AllToAll(dist.new_group(), 7)
    return str(refused.value)


def everything() -> dict[str, Any]:
    return {"travelled": travel(), "trained": train_all(PAIR), "overlap": overlap(), "refusal": refusal()}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes computed."""
    return ranks.run(everything, 2, tmp_path_factory.mktemp("ranks"))


def test_shared_experts_run_while_rows_travel(two: list[dict[str, Any]]) -> None:
    for process in two:
        assert process["overlap"]["forward"] == ["start", "shared", "finish", "start", "finish"]
        assert process["overlap"]["backward"] == ["start", "finish", "start", "shared", "finish"]


def test_experts_that_cannot_be_shared_are_refused(two: list[dict[str, Any]]) -> None:
    for process in two:
        assert process["refusal"] == "mesh.ep=2 is not valid: a divisor of the number of routed experts, 7"


def test_rows_that_have_not_arrived_cannot_be_read() -> None:
    rows = Arriving.of(3, torch.zeros(2, 4), lambda: torch.ones(3, 4))
    assert rows.shape == (3, 4)
    with pytest.raises(RuntimeError, match="meta"):
        rows.sum().item()
    assert torch.equal(rows.arrive(), torch.ones(3, 4))


def test_choices_that_do_not_count_are_left_out() -> None:
    chosen, left_out = torch.tensor([[2, 0], [0, 1]]), torch.tensor([[False, True], [False, False]])
    choices = Choices.of(chosen, 3, left_out)
    assert choices.num == 3
    assert choices.counts.tolist() == [1, 1, 1]
    x = torch.tensor([[1.0], [10.0]])
    assert choices.gather(x).flatten().tolist() == [10, 10, 1]  # by what was chosen: 0 and 1 by the second token, 2
    weights = torch.tensor([[0.5, 7.0], [1.0, 2.0]])
    assert choices.sum(torch.tensor([[3.0], [5.0], [8.0]]), weights).flatten().tolist() == [4, 3 + 10]
