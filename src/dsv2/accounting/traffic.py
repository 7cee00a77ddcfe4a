"""Communication of expert parallelism: bytes of the all-to-all of one MoE layer, for a random router.

E experts in D equal groups, one per device; K experts per token, at most M devices per token.

A token is sent to its experts and its result back, and both gradients in the opposite direction: four transfers of
`dim` elements. Tokens are spread evenly over the same D devices, so 1 / D of the sends are local and free. A token is
sent once per pair, to every chosen expert, or once per device, which is what the device limit and the communication
loss (section 2.2.3) count; in the latter case the results of a device's experts are summed before they are returned.
A random router chooses each set of K of the E experts equally often. With a limit, a token reaches the smaller of M and
the number of devices without the limit, since the M devices of its best experts come first in the order of affinities.
"""

from math import comb
from typing import NamedTuple

from dsv2.config import ConfigError
from dsv2.models.ffn import SwiGLU
from dsv2.models.moe.router import check_routing
from dsv2.models.transformer import Transformer

CROSSINGS = 4  # to the expert and back, in forward and backward


class Traffic(NamedTuple):
    """Traffic of one MoE layer per token, averaged over tokens."""

    num_devices: int  # D
    max_devices: int | None  # M
    top_k: int  # pairs per token
    devices: float  # mean number of devices that a token reaches without a limit
    devices_limited: float  # the same with the limit M
    most_devices: int  # maximum that a token can reach: min(K, D, M)
    bytes_by_pair: float
    bytes_by_device: float  # each token once per device, without a limit
    bytes_by_device_limited: float


def all_to_all(model: Transformer.Config, *, element_bytes: float = 2) -> Traffic | None:
    """Return the traffic with the D and M of the model's MoE layers; None for a dense model."""
    if element_bytes <= 0:
        raise ConfigError("element_bytes", element_bytes, "positive")
    ffn = model.ffn
    if isinstance(ffn, SwiGLU.Config):
        return None
    most = min(ffn.top_k, ffn.num_devices if ffn.max_devices is None else ffn.max_devices)
    free = expected_devices(ffn.num_experts, ffn.top_k, ffn.num_devices)
    limited = expected_devices(ffn.num_experts, ffn.top_k, ffn.num_devices, ffn.max_devices)
    size = bytes_per_send(model.dim, ffn.num_devices, element_bytes=element_bytes)
    return Traffic(
        num_devices=ffn.num_devices,
        max_devices=ffn.max_devices,
        top_k=ffn.top_k,
        devices=free,
        devices_limited=limited,
        most_devices=most,
        bytes_by_pair=ffn.top_k * size,
        bytes_by_device=free * size,
        bytes_by_device_limited=limited * size,
    )


def bytes_per_send(dim: int, num_devices: int, *, element_bytes: float = 2) -> float:
    """Return the mean bytes, in all crossings, of sending a token to an expert or device, which may be its own."""
    return CROSSINGS * dim * element_bytes * (1 - 1 / num_devices)


def expected_devices(num_experts: int, top_k: int, num_devices: int, max_devices: int | None = None) -> float:
    """Return the mean number of distinct devices that a random router sends a token to."""
    check_routing(num_experts, top_k, num_devices, max_devices)
    most = num_devices if max_devices is None else max_devices
    group, ways = num_experts // num_devices, comb(num_experts, top_k)
    mean = 0
    for reached in range(1, num_devices + 1):
        # choices of K experts that use exactly `reached` given devices, by inclusion-exclusion
        exact = sum((-1) ** (reached - n) * comb(reached, n) * comb(n * group, top_k) for n in range(reached + 1))
        mean += min(reached, most) * comb(num_devices, reached) * exact
    return mean / ways
