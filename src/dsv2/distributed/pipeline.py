"""Pipeline parallelism: a model's layers on several processes, and the schedules of torch.distributed.pipelining.

The losses of the routers are summed up on the way: a stage returns the hidden states and, per sequence, what has been
added so far. Every schedule then differentiates them like the states.

B sequences of a micro-batch, T tokens, d model width, L kinds of losses, p processes, m micro-batches.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, schedules

from dsv2.config import ConfigError
from dsv2.distributed.deferred import Queue
from dsv2.distributed.mesh import ScheduleName
from dsv2.distributed.schedules import SCHEDULES
from dsv2.distributed.slices import Stage, stage_ranks
from dsv2.distributed.stages import stages_of
from dsv2.models.moe.hints import Hints
from dsv2.models.moe.router import Routing
from dsv2.models.transformer import Transformer


class Kind(NamedTuple):
    """What torch calls a schedule, and how its stages lie on the processes."""

    schedule: Any
    per_rank: int  # stages of a process
    v_shaped: bool = False
    splits: bool = True  # weight gradients are deferred


KINDS: dict[ScheduleName, Kind] = {
    "1f1b": Kind(schedules.Schedule1F1B, 1, splits=False),
    "interleaved_1f1b": Kind(schedules.ScheduleInterleaved1F1B, 2, splits=False),
    "zb_h1": Kind(schedules.ScheduleInterleavedZeroBubble, 1),
    "interleaved_zb": Kind(schedules.ScheduleInterleavedZeroBubble, 2),
    "zbv": Kind(schedules.ScheduleZBVZeroBubble, 2, v_shaped=True),
    "dualpipev": Kind(schedules.ScheduleDualPipeV, 2, v_shaped=True),
}


def plan(model: Transformer.Config, schedule: ScheduleName, num_ranks: int, num_microbatches: int) -> list[Stage]:
    """Cut a model into the stages of a schedule. Raises ConfigError if the schedule is not defined for the sizes."""
    kind = KINDS[schedule]
    num_stages = num_ranks * kind.per_rank
    if num_stages > model.num_layers:
        valid = f"at most {model.num_layers // kind.per_rank}: {schedule} has {kind.per_rank} stages per process"
        raise ConfigError("mesh.pp", num_ranks, f"{valid}, and the model {model.num_layers} layers")
    name = "interleaved_zb" if schedule == "zb_h1" else schedule
    if problem := SCHEDULES[name].requires(num_ranks, num_microbatches):
        raise ConfigError("mesh.microbatches", num_microbatches, f"{problem} for {schedule}".replace(", ", " "))
    layers = [stage.layers for stage in stages_of(model, num_stages)]
    ranks = stage_ranks(num_stages, num_ranks, v_shaped=kind.v_shaped)
    return [Stage(number, *pair) for number, pair in enumerate(zip(layers, ranks, strict=True))]


SideLosses = Callable[[Routing, Tensor | None], Tensor]  # a routing, and the router's logits if asked for -> (B, L)


class Slice(nn.Module):
    """The layers of one stage, without tensors of its own: they are the model's."""

    def __init__(self, model: Transformer, stage: Stage, side_losses: SideLosses, num_losses: int, *, z: bool) -> None:
        super().__init__()
        self._model, self.stage, self.side_losses = (model,), stage, side_losses
        self.num_losses, self.z = num_losses, z
        self.routings: dict[int, list[Routing]] = {}  # of this step, by layer, in the order of micro-batches

    def forward(self, x: Tensor, side: Tensor | None = None, *, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return states (B, T, d), normalised after the last layer, and losses (B, L); x are tokens in stage 0."""
        model = self._model[0]
        first, last = self.stage.layers.start == 0, self.stage.layers.stop == len(model.layers)
        if first:
            x = F.embedding(x, model.embedding)
            side = x.new_zeros(len(x), self.num_losses, requires_grad=torch.is_grad_enabled())
        assert side is not None
        where = torch.arange(x.shape[1], device=x.device)
        rotations = model.rope.rotations(where, model.config.attention.rotary_dim)
        delta = None
        for index in self.stage.layers:
            x, delta, routing, logits = model.run_layer(index, x, delta, rotations, Hints(tokens, logits=self.z))
            if routing is not None:
                side = side + self.side_losses(routing, logits).to(side.dtype)
                self.routings.setdefault(index, []).append(routing.map(Tensor.detach))
        if last:
            return model.norm.after(x, delta)[1], side
        return x if delta is None else x + delta, side


class Pipeline:
    """The stages of this process, and one step of the schedule over them."""

    def __init__(
        self,
        model: Transformer,
        stages: Sequence[Stage],
        group: dist.ProcessGroup,
        *,
        schedule: ScheduleName,
        num_microbatches: int,
        side_losses: SideLosses,
        num_losses: int,
        final: Callable[[Tensor, Tensor, Tensor], Tensor],
        z: bool = False,
        queue: Queue | None = None,
    ) -> None:
        """`final` maps the last stage's outputs and the targets of a micro-batch to its part of the loss."""
        self.model, self.stages, self.group, self.schedule = model, stages, group, schedule
        self.num_microbatches, self.num_losses, self.final, self.queue = num_microbatches, num_losses, final, queue
        rank = dist.get_rank(group)
        self.slices = [Slice(model, stage, side_losses, num_losses, z=z) for stage in stages if stage.rank == rank]
        self.built: dict[torch.Size, Any] = {}  # schedules, by the shape of a micro-batch

    @property
    def first(self) -> bool:
        return any(part.stage.number == 0 for part in self.slices)

    @property
    def last(self) -> bool:
        return any(part.stage.number == len(self.stages) - 1 for part in self.slices)

    def step(self, tokens: Tensor, targets: Tensor) -> tuple[list[Tensor], dict[int, Routing]]:
        """Run forward and backward of this share's tokens and targets (m B, T), adding to the gradients.

        Returns the loss of each micro-batch, in the process of the last stage alone, and the routing of the own MoE
        layers, by layer. All processes of the pipeline call this with the same batch.
        """
        for part in self.slices:
            part.routings.clear()
        losses: list[Tensor] = []
        arguments = (tokens,) if self.first else ()
        self._schedule(tokens).step(
            *arguments,
            target=targets if self.last else None,
            losses=losses if self.last else None,
            tokens=tokens,
            return_outputs=False,
        )
        routings = {index: joined(parts) for part in self.slices for index, parts in part.routings.items()}
        return [loss.detach() for loss in losses], dict(sorted(routings.items()))

    def _schedule(self, tokens: Tensor) -> Any:
        """Return torch's schedule for micro-batches of this batch, with shapes given, so that none is run to see."""
        rows, length = len(tokens) // self.num_microbatches, tokens.shape[1]
        shape = torch.Size((rows, length))
        if shape not in self.built:
            weight = next(self.model.parameters())
            hidden = torch.empty(rows, length, self.model.config.dim, dtype=weight.dtype, device=weight.device)
            side = torch.empty(rows, self.num_losses, dtype=weight.dtype, device=weight.device)
            carried = (hidden.requires_grad_(), side.requires_grad_())
            kind = KINDS[self.schedule]
            stages = [
                PipelineStage(
                    part,
                    part.stage.number,
                    len(self.stages),
                    weight.device,
                    input_args=(tokens[:rows],) if part.stage.number == 0 else carried,
                    output_args=carried,
                    group=self.group,
                    dw_builder=None if self.queue is None else self.queue.take,
                )
                for part in self.slices
            ]
            single = issubclass(kind.schedule, schedules.PipelineScheduleSingle)
            self.built[shape] = kind.schedule(
                stages[0] if single else stages,
                self.num_microbatches,
                loss_fn=self._loss,
                scale_grads=False,
            )
        return self.built[shape]

    def _loss(self, outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        x, side = outputs
        return self.final(x, side, targets)


def joined(parts: Sequence[Routing]) -> Routing:
    """Join the routings of micro-batches to that of their batch."""
    dropped = [part.dropped for part in parts if part.dropped is not None]
    affinities, experts, gates = (torch.cat(tensors) for tensors in list(zip(*parts, strict=True))[:3])
    return Routing(affinities, experts, gates, torch.cat(dropped) if dropped else None)
