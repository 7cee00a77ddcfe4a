"""The training step of a run whose layers lie on several processes: forward and backward by a pipeline schedule.

B sequences of this process's share of a step, T tokens.
"""

import torch
from torch import Tensor

from dsv2.data.source import NOT_SCORED, Batch
from dsv2.distributed.deferred import Queue
from dsv2.distributed.mesh import Mesh
from dsv2.distributed.parallel import distribute
from dsv2.distributed.pipeline import KINDS, Pipeline, plan
from dsv2.distributed.slices import Slices
from dsv2.models.moe.router import Routing
from dsv2.models.transformer import Transformer
from dsv2.training.losses import Losses
from dsv2.training.processes import mean
from dsv2.training.run import Run

NUM_SIDE_LOSSES = 4  # expert, device, communication and z


class PipedStep:
    """Lets go of the layers of other processes, and then runs steps as `Module.objective` and its backward do."""

    def __init__(self, model: Transformer, mesh: Mesh, run: Run.Config) -> None:
        settings = run.mesh
        self.model, self.moe, self.alphas, self.num_stages = model, run.model.moe, run.loss, mesh.num_stages
        queue = Queue() if KINDS[settings.schedule].splits else None
        self.meter = distribute(model, mesh, settings.dispatch, queue)
        stages = plan(run.model, settings.schedule, settings.pp, settings.num_microbatches)
        self.slices = Slices(model, stages, mesh.stages)
        self.pipeline = Pipeline(
            model,
            stages,
            mesh.stages,
            schedule=settings.schedule,
            num_microbatches=settings.num_microbatches,
            side_losses=self._side_losses,
            num_losses=NUM_SIDE_LOSSES,
            final=self._final,
            z=run.loss.z > 0,
            queue=queue,
        )
        self.scored = torch.zeros(())  # targets of this step that count, the mean over shares
        self.rows = 0  # B
        self.parts: list[Tensor] = []  # cross-entropy and the side losses of each micro-batch of this step

    def __call__(self, batch: Batch) -> tuple[Losses, tuple[Routing, ...]]:
        """Add the gradients of the batch to none; return its losses and the routing of the own layers, detached.

        The losses are 0 in all processes but that of the last stage, and scaled so that their mean over the processes
        is that of the shares.
        """
        for weight in self.model.parameters():
            weight.grad = None
        self.scored, self.rows, self.parts = mean((batch.targets != NOT_SCORED).sum().float()), len(batch.inputs), []
        _, routings = self.pipeline.step(batch.inputs, batch.targets)
        nothing = torch.zeros(1 + NUM_SIDE_LOSSES, device=batch.inputs.device)
        ce, *side = (torch.stack(self.parts).sum(0).float() * self.num_stages if self.parts else nothing).unbind()
        return Losses(ce + torch.stack(side).sum(), ce, *side), tuple(routings.values())

    def _side_losses(self, routing: Routing, logits: Tensor | None) -> Tensor:
        """Return the weighted losses of a layer, (b, 4), per sequence."""
        assert self.moe is not None
        losses = self.moe.balance_losses(routing)
        zero = torch.zeros_like(losses.expert)
        z = zero if logits is None else self.alphas.z * logits.float().logsumexp(-1).square().mean(-1)
        weights = (self.alphas.expert, self.alphas.device, self.alphas.communication)
        return torch.stack([*(weight * loss for weight, loss in zip(weights, losses, strict=True)), z], dim=-1)

    def _final(self, x: Tensor, side: Tensor, targets: Tensor) -> Tensor:
        """Return the part of a micro-batch (b, T) in the loss of the share."""
        count = (targets != NOT_SCORED).sum()
        # of no scored target, the mean is not a number
        nats = self.model.mean_nats(x, targets) * count if count else x.sum() * 0.0
        parts = torch.cat([(nats / self.scored)[None], side.sum(0) / self.rows])
        self.parts.append(parts.detach())
        return parts.sum()
