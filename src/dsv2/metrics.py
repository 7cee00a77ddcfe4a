"""Every metric that runs and studies have: its name and unit, as tables and figures write them."""

from typing import NamedTuple


class Quantity(NamedTuple):
    """What a metric is called; `label` is its name with its unit."""

    short: str  # the name as the head of a table's column
    name: str
    unit: str = ""

    @property
    def label(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name


MODEL_BUDGETS = ("total_params", "active_params", "flops_per_token", "kv_elements_per_token")  # as in an `Account`
BUDGETS = (*MODEL_BUDGETS, "tokens")  # what a comparison may hold equal

METRICS = {
    "val/loss": Quantity("val loss", "validation loss", "nats/token"),
    "val/bpb": Quantity("val bpb", "validation loss", "bits/byte"),
    "val/accuracy": Quantity("val accuracy", "validation accuracy", "share of tokens"),
    "bench/cloze": Quantity("cloze", "cloze questions", "share right"),
    "bench/cloze_margin": Quantity("cloze margin", "cloze margin, truth - best distractor", "nats/byte"),
    "bench/cloze_context": Quantity("cloze by context", "cloze questions by context", "share right"),
    "bench/copying": Quantity("copying", "copying, second copy", "share of tokens"),
    "bench/copying_gain": Quantity("copying gain", "copying gain, first - second copy", "nats/token"),
    "bench/arithmetic": Quantity("arithmetic", "arithmetic exercises", "share right"),
    "val/loss_at_capacity": Quantity("loss, dropping", "validation loss where evaluation drops", "nats/token"),
    "train/loss": Quantity("train loss", "training loss", "nats/token"),
    "train/ce": Quantity("train ce", "training cross-entropy", "nats/token"),
    "routing/max_violation": Quantity("expert violation", "expert violation", "max/mean - 1"),
    "routing/entropy": Quantity("entropy", "entropy of the load", "over log E"),
    "routing/dead_experts": Quantity("dead experts", "dead experts", "share with no token"),
    "routing/device_max_violation": Quantity("device violation", "device violation", "max/mean - 1"),
    "routing/received_max_violation": Quantity("received violation", "received violation", "max/mean - 1"),
    "routing/overflow": Quantity("overflow", "overflow at capacity 1.0", "share"),
    "routing/drop_rate": Quantity("dropped", "dropped pairs", "share"),
    "routing/devices_per_token": Quantity("devices/token", "devices per token"),
    "recall/accuracy": Quantity("recall", "associative recall", "share right"),
    "recall/accuracy_in_training": Quantity("recall over training", "recall, mean over training", "share right"),
    "recall/steps_to_half": Quantity("recall steps", "recall, steps until half is right"),
    "copying/accuracy": Quantity("copying task", "copying task", "share right"),
    "copying/accuracy_in_training": Quantity("copying over training", "copying, mean over training", "share right"),
    "copying/steps_to_half": Quantity("copying steps", "copying, steps until half is right"),
    "arithmetic/accuracy": Quantity("arithmetic task", "arithmetic task", "share of digits right"),
    "arithmetic/accuracy_in_training": Quantity(
        "arithmetic over training", "arithmetic, mean over training", "share of digits right"
    ),
    "arithmetic/steps_to_half": Quantity("arithmetic steps", "arithmetic, steps until half is right"),
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
    """Return name and unit of a logged metric; its own name where none is known."""
    if metric in METRICS:
        return METRICS[metric]
    whole, _, domain = metric.rpartition("_")
    if whole in ("val/bpb", "bench/cloze"):
        short, name, unit = METRICS[whole]
        return Quantity(f"{short} {domain}", f"{name}, {domain}", unit)
    return Quantity(metric.rpartition("/")[2].replace("_", " "), metric)


def chance(metric: str) -> float | None:
    """Return what a model gets that has learnt only the form of the task; None where there is no such level."""
    of_one_domain = metric.startswith("bench/cloze_") and metric not in METRICS
    return CHANCE.get("bench/cloze" if of_one_domain else metric)
