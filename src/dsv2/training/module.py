"""The Lightning module: one model, its losses and its optimiser.

B batch, T tokens.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from dsv2.data.module import Stream
from dsv2.data.source import NOT_SCORED, Batch, Source
from dsv2.distributed.exchange import Meter
from dsv2.distributed.gradients import average, clip
from dsv2.distributed.mesh import Mesh
from dsv2.distributed.parallel import distribute
from dsv2.distributed.shards import Parts
from dsv2.distributed.zero import ZeroAdamW
from dsv2.inference.precision import OPS
from dsv2.models.moe.loss_free import LossFree
from dsv2.models.moe.router import Routing
from dsv2.routing.measures import without_padding
from dsv2.training.losses import Losses, training_loss
from dsv2.training.processes import mean, num_processes, total
from dsv2.training.run import Run


class Diverged(RuntimeError):
    """The loss or the gradient stopped being finite."""


class Step(NamedTuple):
    """What a training step passes to the callbacks, detached."""

    losses: Losses
    routings: tuple[Routing, ...]  # without padding
    tokens: int  # that the model read, of this process
    measures: Mapping[str, Tensor]  # what else is logged, scalars by their names; averaged over the steps that have it


class Module(L.LightningModule):
    """Trains `run.model`; between steps it holds no state beyond the model's and the optimiser's."""

    def __init__(self, run: Run.Config) -> None:
        super().__init__()
        self.config = run
        self.batches = run.trainer.batches()
        self.model = run.model.build(seed=run.seed, ops=OPS[run.trainer.precision])
        self.model.recompute_layers = run.trainer.recompute_layers
        self.moe = run.model.moe
        self.grad_norm = torch.zeros(())  # of the last step, before clipping
        self.routed: tuple[Routing, ...] = ()  # of the last batch
        self.loads: list[Tensor] = []  # of the loss-free layers, over the batches of this step; (E,) int64 each
        self.mesh: Mesh | None = None  # of the processes that train together, if there are several
        self.meter = Meter()  # of what this process sends to experts elsewhere
        self.sent = 0  # bytes in the last step, forward and backward

    def begin(self, source: Source, *, resumed: bool) -> None:
        """Take the opened data, once the model has the weights that it starts with, or will be given a checkpoint's."""

    def join(self, mesh: Mesh) -> None:
        """Become one of several processes: keep the own share of the experts, and send tokens to the others.

        Called after `begin`, with the weights of one process.
        """
        self.mesh = mesh
        self.meter = distribute(self.model, mesh, self.config.mesh.dispatch)

    def stream(self, source: Source) -> L.LightningDataModule:
        """Return what yields the batch of every remaining step."""
        return Stream(source, self.batches)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        self.meter.clear()
        losses, routings = self.objective(batch)
        return self.stepped(losses, without_padding(detached(routings), batch.positions), batch.inputs.numel())

    def stepped(
        self, losses: Losses, routings: tuple[Routing, ...], tokens: int, measures: Mapping[str, Tensor] | None = None
    ) -> dict[str, Any]:
        """Return the result of a training step. Raises Diverged for a loss that is not finite."""
        averaged = Losses(*mean(torch.stack(losses).detach()).unbind())
        if not torch.isfinite(averaged.total):  # the same in all processes, so that none waits for one that stopped
            raise Diverged(f"the loss became {averaged.total.item()} in step {self.global_step + 1}")
        self.routed = routings
        return {"loss": losses.total, "step": Step(averaged, routings, tokens, measures or {})}

    def validated(self) -> dict[str, float] | None:
        """Return what is measured at each validation, `val/loss` included, in place of a language model's losses.

        None, the default, stands for these.
        """
        return None

    def objective(self, batch: Batch) -> tuple[Losses, tuple[Routing, ...]]:
        """Return the losses of a step and the routing of its tokens: the method to override for another objective.

        In data-parallel training `batch` is this process's share of the step, and losses are means over it.
        """
        logits: list[Tensor] | None = [] if self.config.loss.z else None
        x, routings = self.model.hidden(
            batch.inputs,
            positions=batch.positions,
            exempt=self._exempt(len(batch.inputs)),
            seed=self._step_seed,
            router_logits=logits,
        )
        ce = self.model.mean_nats(x, batch.targets)
        if batch.positions is not None and num_processes() > 1:  # shares have different numbers of scored tokens
            scored = (batch.targets != NOT_SCORED).sum()
            ce = ce * (scored / mean(scored))
        return training_loss(ce, routings, self.moe, self.config.loss, logits or (), batch.positions), routings

    @property
    def _step_seed(self) -> int:
        """Seed of this step's random draws: a function of run seed and step, so that a resumed run repeats them."""
        return (self.config.seed * 1_000_003 + self.global_step) % 2**63

    def _exempt(self, batch_size: int) -> Tensor | None:
        """Draw the sequences exempt from token dropping, (B,) bool, from the step's seed."""
        if self.moe is None or self.moe.dropping is None:
            return None
        generator = torch.Generator().manual_seed(self._step_seed)
        shares, own = (1, 0) if self.mesh is None else (self.mesh.num_shares, self.mesh.share)
        drawn = torch.rand(shares * batch_size, generator=generator)[own * batch_size :][:batch_size]
        return (drawn < self.moe.dropping.exempt_ratio).to(self.device)

    def on_after_backward(self) -> None:
        """Average the gradients over processes, and add up the load of the loss-free layers.

        A batch without a gradient, as one that is skipped, has no part in the load.
        """
        if self.mesh is not None:
            average(Parts.of(self.model), self.mesh)
            self.sent = self.meter.total
        if self._loss_free():
            loads = [torch.bincount(r.experts.flatten(), minlength=r.affinities.shape[-1]) for r in self.routed]
            self.loads = [old + new for old, new in zip(self.loads, loads, strict=True)] if self.loads else loads

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and then once move the biases of the loss-free layers by the load of all batches of the step.

        This is before the callbacks, one of which saves the checkpoint.
        """
        super().optimizer_step(*args, **kwargs)
        if self.loads:
            for layer, load in zip(self._loss_free(), self.loads, strict=True):
                layer.update_bias(total(load))
        self.loads = []

    def _loss_free(self) -> list[LossFree]:
        return [layer.ffn for layer in self.model.layers if isinstance(layer.ffn, LossFree)]

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        limit = self.config.optim.clip_norm
        if self.mesh is None:
            self.grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters(), limit)
        else:
            self.grad_norm = clip(Parts.of(self.model), self.mesh, limit)
        if not torch.isfinite(self.grad_norm):
            raise Diverged(f"the gradient norm became {self.grad_norm.item()} in step {self.global_step + 1}")

    def configure_optimizers(self) -> Any:
        optimizer = self.config.optim.build(self)
        if self.mesh is not None:
            optimizer = ZeroAdamW(optimizer, Parts.of(self.model), self.mesh)
        schedule = self.config.optim.schedule
        factor = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.factor(step, self.batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": factor, "interval": "step"}}


def detached(routings: tuple[Routing, ...]) -> tuple[Routing, ...]:
    """Detach the routings from the graph; only affinities and gates are part of one."""
    return tuple(r._replace(affinities=r.affinities.detach(), gates=r.gates.detach()) for r in routings)
