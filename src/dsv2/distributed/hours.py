"""GPU hours of training from a layout: what a published number implies, and what another number of GPUs would take.

Every step is one pipeline schedule per replica, with expert parallelism over D neighbouring replicas, and ends with a
barrier. Routing is even, each token is sent once per device. Reducing gradients, the optimizer and loading data take no
time of their own here: what they took in a published run lowers the efficiency that it implies.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dsv2.accounting.account import account
from dsv2.accounting.traffic import expected_devices
from dsv2.config import ConfigError
from dsv2.distributed.hardware import GPU
from dsv2.distributed.schedules import build_schedule
from dsv2.distributed.simulate import StageTimes, simulate
from dsv2.distributed.stages import stages_of
from dsv2.distributed.traffic import Experts, Placed, layer_costs
from dsv2.models.transformer import Transformer

BYTES = 2  # of an element that is sent
HALVINGS = 30  # of the interval in which the efficiency is sought


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How many GPUs train, and what each of them does. Raises ConfigError where these do not divide."""

    gpus: int
    schedule: str = "zbv"
    ranks: int = 16
    batch: int = 9216  # sequences per step, as in V2 after its first 225B tokens
    sequences: int = 1  # per micro-batch
    context: int = 4096
    recompute_layers: int = 0

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise ConfigError("ranks", self.ranks, "1 or more")
        if self.gpus < 1 or self.gpus % self.ranks:
            raise ConfigError("gpus", self.gpus, f"a multiple of the {self.ranks} ranks")
        per_step = self.replicas * self.sequences
        if self.batch < 1 or self.batch % per_step:
            raise ConfigError("batch", self.batch, f"a multiple of the {per_step} sequences that replicas run at once")

    @property
    def replicas(self) -> int:
        return self.gpus // self.ranks

    @property
    def microbatches(self) -> int:
        return self.batch // (self.replicas * self.sequences)


class HourShares(NamedTuple):
    """GPU hours of training on a number of tokens, and what they go to; the shares add up to 1."""

    gpu_hours: float
    efficiency: float  # of kernels, over the peak
    model_flops: float  # at the peak: this share is the MFU
    recomputation: float  # at the peak
    kernels: float  # below the peak
    all_to_all: float  # that shared experts do not hide
    bubble: float  # of the makespan, and waiting for stages with more layers


class ClusterRun:
    """A model trained in a layout. Raises ConfigError for a layout that the schedule or the model does not fit."""

    def __init__(self, model: Transformer.Config, layout: Layout, gpu: GPU) -> None:
        self.model, self.layout, self.gpu = model, layout, gpu
        self.schedule = build_schedule(layout.schedule, layout.ranks, layout.microbatches)
        self.stages = stages_of(
            model, self.schedule.num_stages, context=layout.context, recompute_layers=layout.recompute_layers
        )
        self.flops = account(model, context=layout.context).flops_per_token
        self.experts = self._even_experts()

    def hours(self, tokens: float, efficiency: float) -> HourShares:
        """Return the GPU hours of training on `tokens` with kernels at a share `efficiency` of the peak."""
        for name, value in (("tokens", tokens), ("efficiency", efficiency)):
            if not 0 < value < math.inf:
                raise ConfigError(name, value, "positive and finite")
        layout, gpu = self.layout, self.gpu
        size = layout.sequences * layout.context  # tokens of a micro-batch
        seconds_per_flop = size / (gpu.peak_flops * efficiency)
        forward, backward = self._exposed(efficiency)
        times, waiting = list[StageTimes](), 0.0
        for stage in self.stages:
            layers = len(set(stage.layers) & set(self.model.moe_layers))
            waiting += layers * (forward + backward)
            times.append(
                StageTimes(
                    stage.forward * seconds_per_flop + layers * forward,
                    stage.backward_input * seconds_per_flop + layers * backward,
                    stage.backward_weight * seconds_per_flop,
                )
            )
        hop = gpu.latency + size * self.model.dim * BYTES / gpu.network
        step = simulate(self.schedule, times, hop=hop).makespan * layout.ranks / layout.microbatches  # of a micro-batch
        model_flops = self.flops * size / gpu.peak_flops
        again = sum(stage.flops for stage in self.stages) * size / gpu.peak_flops - model_flops
        slower = (model_flops + again) * (1 / efficiency - 1)
        return HourShares(
            gpu_hours=step * tokens / size / 3600,
            efficiency=efficiency,
            model_flops=model_flops / step,
            recomputation=again / step,
            kernels=slower / step,
            all_to_all=waiting / step,
            bubble=1 - (model_flops + again + slower + waiting) / step,
        )

    def implied(self, tokens: float, gpu_hours: float) -> HourShares:
        """Return the shares at the efficiency of kernels at which training on `tokens` takes `gpu_hours`.

        Raises ConfigError for fewer hours than with kernels at the peak.
        """
        fastest = self.hours(tokens, 1.0).gpu_hours
        if not fastest <= gpu_hours < math.inf:
            raise ConfigError("hours", gpu_hours, f"at least {fastest:,.0f}, which kernels at the GPU's peak take")
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.hours(tokens, middle).gpu_hours > gpu_hours else (low, middle)
        return self.hours(tokens, high)

    def _exposed(self, efficiency: float) -> tuple[float, float]:
        """Return the seconds of a MoE layer's all-to-all that nothing hides, in forward and in backward."""
        if self.experts is None:
            return 0.0, 0.0
        placed, experts = self.experts
        costs = layer_costs(placed, experts, self.gpu, once_per_device=True, efficiency=efficiency)
        transfers, shared = costs.all_to_all / 2, costs.shared / 3
        return max(0.0, transfers - shared), max(0.0, transfers - 2 * shared)

    def _even_experts(self) -> tuple[Placed, Experts] | None:
        """Return the routing of one micro-batch per device, spread evenly; None if experts share one device."""
        moe, layout = self.model.moe, self.layout
        if moe is None or moe.num_devices == 1:
            return None
        if layout.replicas % moe.num_devices:
            valid = f"a multiple of {layout.ranks} ranks x {moe.num_devices} devices of the experts"
            raise ConfigError("gpus", layout.gpus, valid)
        num_devices, size = moe.num_devices, layout.sequences * layout.context
        reached = expected_devices(moe.num_experts, moe.top_k, num_devices, moe.max_devices)
        shape = (num_devices, num_devices)
        pairs, tokens = (np.full(shape, round(size * sends / num_devices)) for sends in (moe.top_k, reached))
        return Placed(num_devices * size, pairs, tokens, 0), Experts(
            self.model.dim, moe.expert_dim, moe.num_shared, BYTES
        )
