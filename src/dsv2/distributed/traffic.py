"""Expert parallelism from actual routings: bytes between devices, the slowest device, and what hides or drops it.

n tokens of a micro-batch, an equal and consecutive share of which starts on each of D devices; E experts in D equal
groups, K per token. A token travels to its experts and its result back, once per token-expert pair or once per device
(as in `accounting.traffic`, which has the closed form for a random router), and both again in backward.

A layer ends when its slowest device does. Shared experts need no token of another device, so they run during the
all-to-all and hide as much of it as they take. Backward takes twice the FLOPs and the same bytes.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsv2.config import ConfigError
from dsv2.distributed.hardware import GPU
from dsv2.models.moe.dropping import drop
from dsv2.models.moe.router import Routing, check_routing, route

MOST = 2**27  # affinities of a micro-batch, n x E
Counts = NDArray[np.int64]


class Choices(NamedTuple):
    """The routing of one micro-batch by one layer."""

    experts: Tensor  # (n, K) int64
    scores: Tensor  # (n, K) float32; the lowest are dropped first


class Placed(NamedTuple):
    """A micro-batch on devices: row i leaves device i, column j arrives at device j, the diagonal stays at home."""

    num_tokens: int  # n
    pairs: Counts  # (D, D) token-expert pairs that are computed
    tokens: Counts  # (D, D) tokens with at least one of these
    dropped: int  # pairs that are not

    @property
    def devices_per_token(self) -> float:
        return float(self.tokens.sum() / self.num_tokens)

    @property
    def kept(self) -> float:
        """Share of the pairs that are computed."""
        return float(self.pairs.sum() / (self.pairs.sum() + self.dropped))


class Experts(NamedTuple):
    """The size of a MoE layer."""

    dim: int  # d
    expert_dim: int
    num_shared: int
    element_bytes: int = 2  # of what is sent

    @property
    def flops(self) -> int:
        """FLOPs of one expert's forward for one token."""
        return 6 * self.dim * self.expert_dim


class LayerCosts(NamedTuple):
    """One MoE layer's forward and backward of one micro-batch, in seconds unless stated otherwise."""

    bytes_per_token: float  # sent to other devices, four transfers
    all_to_all: float  # four, each as long as its slowest device
    shared: float
    hidden: float  # of the all-to-all behind the shared experts
    experts: float  # routed, the mean over devices
    straggler: float  # what the slowest device adds
    kept: float  # share of the pairs that are computed

    @property
    def exposed(self) -> float:
        return self.all_to_all - self.hidden

    @property
    def total(self) -> float:
        return self.shared + self.exposed + self.experts + self.straggler


def random_choices(
    num_tokens: int,
    num_experts: int,
    top_k: int,
    *,
    num_devices: int = 1,
    max_devices: int | None = None,
    skew: float = 0.0,
    seed: int = 0,
) -> Choices:
    """Return the choices of a random router on at most M devices per token.

    An expert's log-popularity is normal with a standard deviation of `skew`; at 0 all choices are equally likely.
    """
    if not 0 <= skew <= 20:
        raise ConfigError("skew", skew, "0 to 20")
    check_routing(num_experts, top_k, num_devices, max_devices)
    if num_tokens * num_experts > MOST:
        valid = f"fewer: {num_tokens:,} tokens x {num_experts} experts are more than {MOST:,} affinities"
        raise ConfigError("tokens", num_tokens, valid)
    rng = torch.Generator().manual_seed(seed)
    popularity = skew * torch.randn(num_experts, generator=rng)
    noise = -torch.rand(num_tokens, num_experts, generator=rng).clamp(min=1e-9).log().neg().log()  # Gumbel
    affinities = (popularity + noise).softmax(-1)
    return Choices(*route(affinities, top_k=top_k, num_devices=num_devices, max_devices=max_devices))


def place(choices: Choices, num_experts: int, num_devices: int, *, capacity_factor: float | None = None) -> Placed:
    """Count what travels between devices, after dropping to a capacity factor (section 2.2.4), if one is given.

    The number of tokens is a multiple of D. No sequence is exempt from dropping.
    """
    num_tokens, top_k = choices.experts.shape
    check_routing(num_experts, top_k, num_devices, None)
    assert num_tokens % num_devices == 0
    kept = torch.ones(num_tokens, top_k, dtype=torch.bool)
    if capacity_factor is not None:
        affinities = torch.zeros(1, num_tokens, num_experts).scatter_(-1, choices.experts[None], choices.scores[None])
        routing = Routing(affinities, choices.experts[None], choices.scores[None])
        kept = ~drop(routing, num_devices=num_devices, capacity_factor=capacity_factor)[0]
    pairs = pairs_per_device(choices.experts, kept, num_experts, num_devices)
    by_source = pairs.view(num_devices, -1, num_devices)
    return Placed(num_tokens, by_source.sum(1).numpy(), (by_source > 0).sum(1).numpy(), int((~kept).sum()))


def pairs_per_device(experts: Tensor, kept: Tensor, num_experts: int, num_devices: int) -> Tensor:
    """Count the pairs (n, D) of each token on each device, of experts (n, K) those that are `kept` (n, K) bool."""
    devices = experts // (num_experts // num_devices)
    pairs = torch.zeros(len(experts), num_devices, dtype=torch.int64, device=experts.device)
    return pairs.scatter_add_(-1, devices, kept.long())


def layer_costs(
    placed: Placed, experts: Experts, gpu: GPU, *, once_per_device: bool, efficiency: float = 0.5
) -> LayerCosts:
    """Return what a micro-batch costs on the given GPUs, whose kernels run at a share `efficiency` of their peak."""
    sends = placed.tokens if once_per_device else placed.pairs
    sent = sends * experts.dim * experts.element_bytes
    num_devices = len(sent)
    transfers = all_to_all_seconds(sent, gpu) + all_to_all_seconds(sent.T, gpu)  # of forward, and as many of backward
    rate = gpu.peak_flops * efficiency
    shared = placed.num_tokens / num_devices * experts.num_shared * experts.flops / rate
    load = placed.pairs.sum(0) * experts.flops / rate
    away = sent.sum() - np.trace(sent)
    return LayerCosts(
        bytes_per_token=float(4 * away / placed.num_tokens),
        all_to_all=2 * transfers,
        shared=3 * shared,
        hidden=min(transfers, shared) + min(transfers, 2 * shared),
        experts=float(3 * load.mean()),
        straggler=float(3 * (load.max() - load.mean())),
        kept=placed.kept,
    )


def all_to_all_seconds(sent: NDArray[np.integer], gpu: GPU) -> float:
    """Return the time of one all-to-all of sent[i, j] bytes from device i to j: that of the slowest link.

    Consecutive devices share a node. NVLink and the network carry their parts at the same time, and each link both
    directions at once.
    """
    node = np.arange(len(sent)) // gpu.gpus_per_node
    within = (node[:, None] == node) & ~np.eye(len(sent), dtype=bool)
    beyond = node[:, None] != node
    busiest = [
        max((sent * part).sum(0).max(), (sent * part).sum(1).max()) / rate
        for part, rate in ((within, gpu.nvlink), (beyond, gpu.network))
    ]
    return float(max(busiest)) + (gpu.latency if max(busiest) else 0.0)


def useful_throughput(costs: LayerCosts, balanced: LayerCosts) -> float:
    """Return the pairs computed per second over those of `balanced` costs, in which no pair is dropped."""
    return costs.kept * balanced.total / costs.total


def balanced(placed: Placed) -> Placed:
    """Spread the pairs and the tokens sent of a micro-batch evenly over all devices, with nothing dropped.

    Counts are rounded up to whole ones.
    """
    cells = placed.pairs.size
    pairs = -(-(int(placed.pairs.sum()) + placed.dropped) // cells)
    tokens = -(-int(placed.tokens.sum()) // cells)
    return Placed(placed.num_tokens, np.full_like(placed.pairs, pairs), np.full_like(placed.tokens, tokens), 0)
