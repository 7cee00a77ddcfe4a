"""Names and units of all metrics, for tables and figures."""

from typing import NamedTuple


class Quantity(NamedTuple):
    """Display names of a metric; `label` is the name with its unit."""

    short: str  # for column headers
    name: str
    unit: str = ""

    @property
    def label(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name


MODEL_BUDGETS = ("total_params", "active_params", "flops_per_token", "kv_elements_per_token")  # fields of `Account`
BUDGETS = (*MODEL_BUDGETS, "tokens")  # budgets that a comparison may hold equal

METRICS = {
    "val/loss": Quantity("val loss", "validation loss", "nats/token"),
    "val/bpb": Quantity("val bpb", "validation loss", "bits/byte"),
    "val/accuracy": Quantity("val accuracy", "validation accuracy", "share of tokens"),
    "bench/cloze": Quantity("cloze", "cloze questions", "share correct"),
    "bench/cloze_margin": Quantity("cloze margin", "cloze margin, truth - best distractor", "nats/byte"),
    "bench/cloze_context": Quantity("cloze by context", "cloze questions by context", "share correct"),
    "bench/copying": Quantity("copying", "copying, second copy", "share of tokens"),
    "bench/copying_gain": Quantity("copying gain", "copying gain, first - second copy", "nats/token"),
    "bench/arithmetic": Quantity("arithmetic", "arithmetic exercises", "share correct"),
    "val/loss_at_capacity": Quantity("loss, dropping", "validation loss with token dropping", "nats/token"),
    "train/loss": Quantity("train loss", "training loss", "nats/token"),
    "train/ce": Quantity("train ce", "training cross-entropy", "nats/token"),
    "routing/max_violation": Quantity("expert violation", "expert violation", "max/mean - 1"),
    "routing/entropy": Quantity("entropy", "entropy of the load", "over log E"),
    "routing/dead_experts": Quantity("dead experts", "dead experts", "share of experts"),
    "routing/device_max_violation": Quantity("device violation", "device violation", "max/mean - 1"),
    "routing/received_max_violation": Quantity("received violation", "received violation", "max/mean - 1"),
    "routing/overflow": Quantity("overflow", "overflow at capacity 1.0", "share"),
    "routing/drop_rate": Quantity("dropped", "dropped pairs", "share"),
    "routing/devices_per_token": Quantity("devices/token", "devices per token"),
    "recall/accuracy": Quantity("recall", "associative recall", "share correct"),
    "recall/accuracy_in_training": Quantity("recall over training", "recall, mean over training", "share correct"),
    "recall/steps_to_half": Quantity("recall steps", "recall, steps to 50% accuracy"),
    "copying/accuracy": Quantity("copying task", "copying task", "share correct"),
    "copying/accuracy_in_training": Quantity("copying over training", "copying, mean over training", "share correct"),
    "copying/steps_to_half": Quantity("copying steps", "copying, steps to 50% accuracy"),
    "arithmetic/accuracy": Quantity("arithmetic task", "arithmetic task", "share of digits correct"),
    "arithmetic/accuracy_in_training": Quantity(
        "arithmetic over training", "arithmetic, mean over training", "share of digits correct"
    ),
    "arithmetic/steps_to_half": Quantity("arithmetic steps", "arithmetic, steps to 50% accuracy"),
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
    """Return the display names of a logged metric, derived from its key if it is not listed."""
    if metric in METRICS:
        return METRICS[metric]
    whole, _, domain = metric.rpartition("_")
    if whole in ("val/bpb", "bench/cloze"):
        short, name, unit = METRICS[whole]
        return Quantity(f"{short} {domain}", f"{name}, {domain}", unit)
    return Quantity(metric.rpartition("/")[2].replace("_", " "), metric)


def chance(metric: str) -> float | None:
    """Return the score of a model that has learnt only the form of the task; None if there is no such level."""
    of_one_domain = metric.startswith("bench/cloze_") and metric not in METRICS
    return CHANCE.get("bench/cloze" if of_one_domain else metric)
