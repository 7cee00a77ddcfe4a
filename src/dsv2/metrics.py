"""Every metric that runs and studies have, and how tables and figures call it."""

from typing import NamedTuple


class Quantity(NamedTuple):
    short: str
    label: str  # with its unit


METRICS = {
    "val/loss": Quantity("val loss", "validation loss (nats/token)"),
    "val/bpb": Quantity("val bpb", "validation loss (bits/byte)"),
    "val/accuracy": Quantity("val accuracy", "validation tokens predicted (share)"),
    "train/loss": Quantity("train loss", "training loss (nats/token)"),
    "train/ce": Quantity("train ce", "training cross-entropy (nats/token)"),
    "routing/max_violation": Quantity("expert violation", "busiest expert / mean - 1"),
    "routing/entropy": Quantity("entropy", "entropy of load / log E"),
    "routing/dead_experts": Quantity("dead experts", "experts without a token (share)"),
    "routing/device_max_violation": Quantity("device violation", "busiest device / mean - 1"),
    "routing/received_max_violation": Quantity("received violation", "most received / mean - 1"),
    "routing/overflow": Quantity("overflow", "pairs over capacity 1.0 (share)"),
    "routing/drop_rate": Quantity("dropped", "pairs dropped (share)"),
    "routing/devices_per_token": Quantity("devices/token", "devices per token"),
    "recall/accuracy": Quantity("recall", "associative recall (share right)"),
    "recall/steps_to_half": Quantity("recall steps", "steps to half of associative recall"),
    "copying/accuracy": Quantity("copying task", "copying, trained for (share right)"),
    "copying/steps_to_half": Quantity("copying steps", "steps to half of copying"),
    "arithmetic/accuracy": Quantity("arithmetic task", "addition, trained for (share of digits right)"),
    "arithmetic/steps_to_half": Quantity("arithmetic steps", "steps to half of addition"),
    "perf/tokens_per_s": Quantity("tokens/s", "tokens per second"),
}


def quantity(metric: str) -> Quantity:
    """How a logged metric is called in a figure or table; its own name where none is known."""
    return METRICS.get(metric, Quantity(metric.rpartition("/")[2].replace("_", " "), metric))
