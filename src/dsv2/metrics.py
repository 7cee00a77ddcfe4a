"""Every metric that runs and studies have: its name and unit, as tables and figures write them."""

from typing import NamedTuple


class Quantity(NamedTuple):
    """What a metric is called; `label` is its name with its unit."""

    name: str
    unit: str = ""

    @property
    def label(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name


BUDGETS = {  # what a comparison may hold equal
    "total_params": Quantity("parameters"),
    "active_params": Quantity("active parameters"),
    "flops_per_token": Quantity("FLOPs per token"),
    "kv_elements_per_token": Quantity("KV cache per token", "elements"),
    "tokens": Quantity("training tokens"),
}
MODEL_BUDGETS = tuple(budget for budget in BUDGETS if budget != "tokens")  # fields of an `Account`

METRICS = {
    "val/loss": Quantity("validation loss", "nats/token"),
    "val/bpb": Quantity("validation bits per byte"),
    "val/accuracy": Quantity("validation accuracy", "share of tokens"),
    "bench/cloze": Quantity("cloze", "share right"),
    "bench/cloze_margin": Quantity("cloze margin", "nats/byte"),
    "bench/cloze_context": Quantity("cloze by context", "share right"),
    "bench/copying": Quantity("copying", "share of tokens"),
    "bench/copying_gain": Quantity("copying gain", "nats/token"),
    "bench/arithmetic": Quantity("arithmetic", "share right"),
    "val/loss_at_capacity": Quantity("validation loss with dropping", "nats/token"),
    "train/loss": Quantity("training loss", "nats/token"),
    "train/ce": Quantity("training cross-entropy", "nats/token"),
    "routing/max_violation": Quantity("expert violation", "max/mean - 1"),
    "routing/entropy": Quantity("load entropy", "share of log E"),
    "routing/dead_experts": Quantity("dead experts", "share with no token"),
    "routing/device_max_violation": Quantity("device violation", "max/mean - 1"),
    "routing/received_max_violation": Quantity("received violation", "max/mean - 1"),
    "routing/overflow": Quantity("overflow at capacity 1.0", "share"),
    "routing/drop_rate": Quantity("dropped pairs", "share"),
    "routing/devices_per_token": Quantity("devices per token"),
    "recall/accuracy": Quantity("recall", "share right"),
    "recall/accuracy_in_training": Quantity("recall over training", "share right"),
    "recall/steps_to_half": Quantity("steps until half of recall is right"),
    "copying/accuracy": Quantity("copying task", "share right"),
    "copying/accuracy_in_training": Quantity("copying over training", "share right"),
    "copying/steps_to_half": Quantity("steps until half of copying is right"),
    "arithmetic/accuracy": Quantity("arithmetic task", "share of digits right"),
    "arithmetic/accuracy_in_training": Quantity("arithmetic over training", "share of digits right"),
    "arithmetic/steps_to_half": Quantity("steps until half of arithmetic is right"),
    "perf/tokens_per_s": Quantity("tokens per second"),
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
    known = METRICS | BUDGETS
    if metric in known:
        return known[metric]
    for whole in ("val/bpb", "bench/cloze"):
        if metric.startswith(f"{whole}_"):
            name, unit = METRICS[whole]
            return Quantity(f"{name}, {metric.removeprefix(f'{whole}_')}", unit)
    return Quantity(metric)


def chance(metric: str) -> float | None:
    """Return what a model gets that has learnt only the form of the task; None where there is no such level."""
    of_one_domain = metric.startswith("bench/cloze_") and metric not in METRICS
    return CHANCE.get("bench/cloze" if of_one_domain else metric)
