"""The floor of imbalance: the routing metrics of a router with random affinities."""

import math

import numpy as np
from scipy import special


def random_floor(
    num_experts: int,
    top_k: int,
    num_devices: int,
    num_tokens: int,
    seed: int = 0,
    max_devices: int | None = None,
    batch_tokens: int | None = None,
) -> dict[str, float]:
    """Return the routing metrics of a router with random affinities, whose load is not perfectly even by chance.

    `num_tokens` is the number of tokens per measurement; small measurements are averaged over up to 20 draws. Overflow
    is counted per batch of `batch_tokens` (default: one batch). With `max_devices`, each token is limited to the
    devices whose best expert scores highest, as in the device-limited router.
    """
    if num_devices < 1 or num_experts % num_devices:
        raise ValueError(f"num_devices={num_devices}: must be a divisor of num_experts={num_experts}")
    most = num_devices if max_devices is None else max_devices
    if not 1 <= top_k <= most * (num_experts // num_devices):
        raise ValueError(f"top_k={top_k}: must be between 1 and the number of experts on {most} devices")
    rng = np.random.default_rng(seed)
    batch = min(batch_tokens or num_tokens, num_tokens)
    draws = [
        _random_routing(rng, num_experts, top_k, num_devices, num_tokens, most, batch)
        for _ in range(min(max(2**18 // num_tokens, 1), 20))
    ]
    return {name: float(np.mean([draw[name] for draw in draws])) for name in draws[0]}


def _random_routing(
    rng: np.random.Generator, num_experts: int, top_k: int, num_devices: int, num_tokens: int, most: int, batch: int
) -> dict[str, float]:
    load = np.zeros(num_experts)
    received = np.zeros(num_devices)
    overflow = 0.0
    for start in range(0, num_tokens, batch):
        affinities = rng.random((min(batch, num_tokens - start), num_experts), dtype=np.float32)
        if most < num_devices:
            groups = affinities.reshape(len(affinities), num_devices, -1)
            far = np.argsort(groups.max(-1), axis=-1)[:, : num_devices - most]
            np.put_along_axis(groups, far[:, :, None], -1.0, axis=1)
        chosen = np.argpartition(affinities, num_experts - top_k, axis=-1)[:, num_experts - top_k :]
        counts = np.bincount(chosen.ravel(), minlength=num_experts)
        load += counts
        overflow += np.maximum(counts.reshape(num_devices, -1).sum(-1) - chosen.size // num_devices, 0).sum()
        sent = np.zeros((len(affinities), num_devices), dtype=bool)
        np.put_along_axis(sent, chosen // (num_experts // num_devices), True, axis=1)
        received += sent.sum(0)
    share, on_device = load / load.sum(), load.reshape(num_devices, -1).sum(-1)
    return {
        "routing/max_violation": load.max() / load.mean() - 1,
        "routing/entropy": float(special.entr(share).sum() / math.log(num_experts)) if num_experts > 1 else 1.0,
        "routing/dead_experts": float((load == 0).mean()),
        "routing/device_max_violation": on_device.max() / on_device.mean() - 1,
        "routing/received_max_violation": received.max() / received.mean() - 1,
        "routing/overflow": overflow / load.sum(),
        "routing/devices_per_token": received.sum() / num_tokens,
    }
