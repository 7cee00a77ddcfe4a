"""Every metric that runs and studies have, and how tables and figures call it."""

from typing import NamedTuple


class Quantity(NamedTuple):
    short: str
    label: str  # with its unit


MODEL_BUDGETS = ("total_params", "active_params", "flops_per_token", "kv_elements_per_token")  # as in an `Account`
BUDGETS = (*MODEL_BUDGETS, "tokens")  # what a comparison may hold equal

METRICS = {
    "val/loss": Quantity("val loss", "validation loss (nats/token)"),
    "val/bpb": Quantity("val bpb", "validation loss (bits/byte)"),
    "val/accuracy": Quantity("val accuracy", "validation tokens predicted (share)"),
    "bench/cloze": Quantity("cloze", "cloze questions answered (share right)"),
    "bench/cloze_margin": Quantity("cloze margin", "truth - best distractor (nats/byte)"),
    "bench/cloze_context": Quantity("cloze by context", "cloze questions answered by context (share right)"),
    "bench/copying": Quantity("copying", "second copy predicted (share of tokens)"),
    "bench/copying_gain": Quantity("copying gain", "saved in a second copy (nats/token)"),
    "bench/arithmetic": Quantity("arithmetic", "exercises answered (share right)"),
    "val/loss_at_capacity": Quantity("loss, dropping", "validation loss where evaluation drops (nats/token)"),
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
    "recall/accuracy_in_training": Quantity("recall over training", "recall, mean over training (share right)"),
    "recall/steps_to_half": Quantity("recall steps", "steps to half of associative recall"),
    "copying/accuracy": Quantity("copying task", "copying, trained for (share right)"),
    "copying/accuracy_in_training": Quantity("copying over training", "copying task, mean over training (right)"),
    "copying/steps_to_half": Quantity("copying steps", "steps to half of copying"),
    "arithmetic/accuracy": Quantity("arithmetic task", "addition, trained for (share of digits right)"),
    "arithmetic/accuracy_in_training": Quantity("arithmetic over training", "addition, mean over training (right)"),
    "arithmetic/steps_to_half": Quantity("arithmetic steps", "steps to half of addition"),
    "perf/tokens_per_s": Quantity("tokens/s", "tokens per second"),
}

CHANCE = {
    "bench/cloze": 1 / 4,
    "bench/cloze_context": 1 / 4,
    "bench/arithmetic": 1 / 4,
    "bench/copying": 1 / 64,
    "bench/copying_gain": 0.0,
    "recall/accuracy": 1 / 31,
    "copying/accuracy": 1 / 63,
    "arithmetic/accuracy": 1 / 10,
}


def quantity(metric: str) -> Quantity:
    """How a logged metric is called in a figure or table; its own name where none is known."""
    if metric in METRICS:
        return METRICS[metric]
    whole, _, domain = metric.rpartition("_")
    if whole in ("val/bpb", "bench/cloze"):
        short, label = METRICS[whole]
        return Quantity(f"{short} {domain}", f"{label}, {domain}")
    return Quantity(metric.rpartition("/")[2].replace("_", " "), metric)


def chance(metric: str) -> float | None:
    """What a model gets that has learnt nothing but the form of the task; None where there is no such level."""
    of_one_domain = metric.startswith("bench/cloze_") and metric not in METRICS
    return CHANCE.get("bench/cloze" if of_one_domain else metric)
