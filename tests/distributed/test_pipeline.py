"""Layers on two processes under every schedule: gradients, losses and routing of one process, in double precision."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from dsv2.config import ConfigError
from dsv2.distributed.deferred import Queue
from dsv2.distributed.expert_parallel import AllToAll
from dsv2.distributed.mesh import ScheduleName
from dsv2.distributed.pipeline import KINDS, Pipeline, plan
from dsv2.distributed.shards import all_shares, expert_names, keep_own_experts
from dsv2.distributed.slices import Slices
from dsv2.models.attention.mla import MLA
from dsv2.models.ffn import SwiGLU
from dsv2.models.moe.layer import MoE
from dsv2.models.moe.router import Routing
from dsv2.models.ops import PLAIN
from dsv2.models.transformer import Block, Transformer
from tests.references import ranks
from tests.references.tolerances import close

BATCH, MICROBATCHES, LAYERS, GRADIENT = 8, 4, 5, 1e-12
ALPHAS = torch.tensor([0.03, 0.05, 0.02], dtype=torch.float64)


def config() -> Transformer.Config:
    return Transformer.Config(
        vocab_size=11,
        dim=8,
        num_layers=LAYERS,
        num_dense_layers=1,
        dense=SwiGLU.Config(width=12),
        attention=MLA.Config(num_heads=2, head_dim=4, rope_dim=2, v_dim=4, kv_latent_dim=4),
        ffn=MoE.Config(num_experts=4, top_k=2, expert_dim=8, num_shared=1, num_devices=2),
        init_std=0.3,
    )


def batch() -> tuple[Tensor, Tensor]:
    """Tokens and targets, of which micro-batches score different numbers, and one none."""
    tokens = torch.randint(11, (BATCH, 7), generator=torch.Generator().manual_seed(1))
    targets = tokens[:, 1:].clone()
    targets[0:2, 3:] = -100
    targets[4:6] = -100
    return tokens[:, :-1], targets


def side_losses(routing: Routing, _: Tensor | None) -> Tensor:
    losses = config().ffn.balance_losses(routing)  # type: ignore[union-attr]
    return torch.stack(losses, dim=-1) * ALPHAS


def final(x: Tensor, side: Tensor, targets: Tensor, head: Tensor, scored: int) -> Tensor:
    nats = F.cross_entropy((x @ head.t()).flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
    return nats / scored + side.sum() / BATCH


@cache
def alone() -> dict[str, Any]:
    with ranks.in_double():
        model, (tokens, targets) = config().build(seed=3).double(), batch()
        x, routings = model.hidden(tokens)
        side = sum(side_losses(routing, None) for routing in routings)
        assert isinstance(side, Tensor)
        loss = final(x, side, targets, model.head_weight, int((targets >= 0).sum()))
        loss.backward()
        gradients = {name: weight.grad for name, weight in model.named_parameters()}
        return {"loss": loss.detach(), "gradients": gradients, "routings": [r.experts for r in routings]}


def piped(schedule: ScheduleName, *, recompute: bool = False, ep: int = 1) -> dict[str, Any]:
    """One step twice, so that nothing is left of the first: own gradients, and how often a block ran."""
    size, rank = dist.get_world_size() // ep, dist.get_rank()
    groups = [dist.new_group([ep * stage + share for stage in range(size)]) for share in range(ep)]
    group = groups[rank % ep]
    model, queue = config().build(seed=3).double(), Queue()
    splits = KINDS[schedule].splits
    ops = queue.ops(PLAIN) if splits else PLAIN
    experts = None
    if ep > 1:
        pairs = [dist.new_group([ep * stage + share for share in range(ep)]) for stage in range(size)]
        experts = pairs[rank // ep]
        ops = AllToAll(experts, 4).ops(ops)
    model = config().build(seed=3, ops=ops).double()
    if experts is not None:
        keep_own_experts(model, experts)
    model.recompute_layers = LAYERS if recompute else 0
    stages = plan(model.config, schedule, size, MICROBATCHES)
    Slices(model, stages, group)
    tokens, targets = (part.chunk(ep)[rank % ep] for part in batch())
    scored = int((batch()[1] >= 0).sum())
    pipeline = Pipeline(
        model,
        stages,
        group,
        schedule=schedule,
        num_microbatches=MICROBATCHES,
        side_losses=side_losses,
        num_losses=3,
        final=lambda x, side, targets: final(x, side, targets, model.head_weight, scored),
        queue=queue if splits else None,
    )
    runs = []
    for block in model.layers:
        if isinstance(block, Block):
            block.register_forward_pre_hook(lambda *_: runs.append(1))
    for _ in range(2):
        model.zero_grad()
        runs.clear()
        losses, routings = pipeline.step(tokens, targets)
    assert not queue.tasks
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    if experts is not None:
        for name in gradients:
            if name in expert_names(model):
                gradients[name] = all_shares(gradients[name], experts)
            else:
                dist.all_reduce(gradients[name], group=experts)
    blocks = sum(isinstance(block, Block) for block in model.layers)
    chosen = {index: routing.experts for index, routing in routings.items()}
    return {"losses": losses, "gradients": gradients, "routings": chosen, "runs": len(runs) / (blocks * MICROBATCHES)}


def assert_same(results: list[dict[str, Any]], *, recompute: bool, ep: int = 1) -> None:
    expected = alone()
    names: list[str] = []
    for result in results:
        for name, gradient in result["gradients"].items():
            names.append(name)
            close(gradient, expected["gradients"][name], GRADIENT, f"gradient of {name}")
        for index, experts in result["routings"].items():
            share = expected["routings"][index - 1]
            assert experts.shape[0] == BATCH // ep
            assert ep > 1 or torch.equal(experts, share)
        assert result["runs"] == (2 if recompute else 1)
    assert sorted(names) == sorted(list(expected["gradients"]) * ep)
    losses = [loss for result in results for loss in result["losses"]]
    assert len(losses) == MICROBATCHES * ep
    close(torch.stack(losses).sum(), expected["loss"], GRADIENT, "loss")


def every_schedule() -> dict[Any, Any]:
    return {(name, recompute): piped(name, recompute=recompute) for name in KINDS for recompute in (False, True)}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    return ranks.run(every_schedule, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_every_schedule_differentiates_as_one_process(two: list[dict[Any, Any]], name: str, recompute: bool) -> None:
    """Sums of micro-batches with other numbers of scored tokens, and none; recomputed blocks run twice, not more."""
    assert_same([process[name, recompute] for process in two], recompute=recompute)


def with_experts() -> dict[Any, Any]:
    return {(name, recompute): piped(name, recompute=recompute, ep=2) for name, recompute in SHARED}


SHARED: list[tuple[ScheduleName, bool]] = [("1f1b", False), ("zb_h1", True), ("zbv", False), ("dualpipev", True)]


@pytest.mark.slow
def test_experts_are_shared_within_a_stage(tmp_path: Path) -> None:
    processes = ranks.run(with_experts, 4, tmp_path)
    for case in SHARED:
        assert_same([process[case] for process in processes], recompute=case[1], ep=2)


@pytest.mark.parametrize(
    ("schedule", "size", "microbatches", "message"),
    [
        ("1f1b", 6, 4, "mesh.pp=6 is not valid: at most 5: 1f1b has 1 stages per process, and the model 5 layers"),
        ("zbv", 3, 4, "mesh.pp=3 is not valid: at most 2"),
        ("dualpipev", 2, 3, "mesh.microbatches=3 is not valid: at least the number of stages"),
        ("interleaved_zb", 2, 5, "mesh.microbatches=5 is not valid: a multiple of its rounds"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(schedule: Any, size: int, microbatches: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(config(), schedule, size, microbatches)


def test_stages_are_all_layers_in_order() -> None:
    for schedule, kind in KINDS.items():
        stages = plan(config(), schedule, 2, MICROBATCHES)
        assert [index for stage in stages for index in stage.layers] == list(range(LAYERS))
        assert len(stages) == 2 * kind.per_rank
        v_shaped = [0, 1, 1, 0]
        assert [stage.rank for stage in stages] == (v_shaped if kind.v_shaped else [0, 1] * kind.per_rank)
