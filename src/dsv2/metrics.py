"""Names and units of all metrics, for tables and figures."""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple


class Quantity(NamedTuple):
    """Display name of a metric; `label` is the name with its unit."""

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
    "bench/cloze": Quantity("cloze", "share correct"),
    "bench/cloze_margin": Quantity("cloze margin", "nats/byte"),
    "bench/cloze_context": Quantity("cloze by context", "share correct"),
    "bench/copying": Quantity("copying", "share of tokens"),
    "bench/copying_gain": Quantity("copying gain", "nats/token"),
    "bench/arithmetic": Quantity("arithmetic", "share correct"),
    "bench/needle": Quantity("needle", "share found"),
    "bench/needle_nats": Quantity("needle log-probability", "nats/answer"),
    "bench/following": Quantity("instructions followed", "share right, greedy"),
    "bench/pass_at_1": Quantity("pass@1", "share right, drawn"),
    "bench/pass_at_8": Quantity("pass@8", "share of prompts"),
    "bench/stopped": Quantity("replies that end themselves", "share"),
    "bench/refused": Quantity("refused as it should be", "share"),
    "bench/over_refused": Quantity("over-refusal", "share of harmless"),
    "bench/unjudged": Quantity("replies without a verdict", "share"),
    "grpo/reward": Quantity("reward"),
    "grpo/reward_correct": Quantity("answers right in training", "share"),
    "grpo/reward_stopped": Quantity("answers that end themselves in training", "share"),
    "grpo/reward_safe": Quantity("safe answers in training", "share"),
    "grpo/reward_rule": Quantity("answers by the rule in training", "share"),
    "grpo/reward_reasoning": Quantity("learned reward, reasoning", "sd"),
    "grpo/reward_helpful": Quantity("learned reward, helpfulness", "sd"),
    "grpo/reward_safety": Quantity("learned reward, safety", "sd"),
    "rm/accuracy": Quantity("pairs ranked right", "share"),
    "rm/accuracy_in_training": Quantity("pairs ranked right in training", "share"),
    "rm/calibration": Quantity("calibration error", "share"),
    "grpo/pass_at_8": Quantity("pass@8 in training", "share of prompts"),
    "grpo/zero_variance": Quantity("groups without variance", "share"),
    "grpo/length": Quantity("length of answers", "tokens"),
    "grpo/capped": Quantity("answers cut off", "share"),
    "grpo/unjudged": Quantity("answers without a verdict", "share"),
    "grpo/loss": Quantity("loss of GRPO"),
    "grpo/kl": Quantity("divergence from the reference", "nats/token"),
    "grpo/clipped": Quantity("clipped tokens", "share"),
    "grpo/shift": Quantity("log-ratio to the policy that drew", "nats/token"),
    "grpo/staleness": Quantity("staleness of answers", "steps"),
    "deployed/agreement": Quantity("sampled alike", "share of tokens"),
    "deployed/kv_bytes_per_token": Quantity("cache held", "bytes/token"),
    "deployed/kv_bits": Quantity("cache held per element", "bits"),
    "bench/loss_1x": Quantity("loss up to the trained length", "nats/token"),
    "bench/loss_2x": Quantity("loss up to 2x the trained length", "nats/token"),
    "bench/loss_4x": Quantity("loss up to 4x the trained length", "nats/token"),
    "bench/loss_8x": Quantity("loss up to 8x the trained length", "nats/token"),
    "val/loss_at_capacity": Quantity("validation loss with dropping", "nats/token"),
    "train/loss": Quantity("training loss", "nats/token"),
    "train/ce": Quantity("training cross-entropy", "nats/token"),
    "routing/max_violation": Quantity("expert violation", "max/mean - 1"),
    "routing/entropy": Quantity("load entropy", "share of log E"),
    "routing/dead_experts": Quantity("dead experts", "share of experts"),
    "routing/device_max_violation": Quantity("device violation", "max/mean - 1"),
    "routing/received_max_violation": Quantity("received violation", "max/mean - 1"),
    "routing/overflow": Quantity("overflow at capacity 1.0", "share"),
    "routing/drop_rate": Quantity("dropped pairs", "share"),
    "routing/devices_per_token": Quantity("devices per token"),
    "recall/accuracy": Quantity("recall", "share correct"),
    "recall/accuracy_in_training": Quantity("recall over training", "share correct"),
    "recall/steps_to_half": Quantity("recall steps to 50% accuracy"),
    "copying/accuracy": Quantity("copying task", "share correct"),
    "copying/accuracy_in_training": Quantity("copying over training", "share correct"),
    "copying/steps_to_half": Quantity("copying steps to 50% accuracy"),
    "arithmetic/accuracy": Quantity("arithmetic task", "share of digits correct"),
    "arithmetic/accuracy_in_training": Quantity("arithmetic over training", "share of digits correct"),
    "arithmetic/steps_to_half": Quantity("arithmetic steps to 50% accuracy"),
    "needle/accuracy": Quantity("needle task", "share found"),
    "needle/accuracy_in_training": Quantity("needle task over training", "share found"),
    "needle/steps_to_half": Quantity("needle task steps to 50% accuracy"),
    "perf/tokens_per_s": Quantity("tokens per second"),
}
PARTS = (
    "val/bpb",
    "bench/cloze",
    "bench/needle",
    "bench/following",
    "bench/pass_at_1",
)  # also logged for parts of the data, as in val/bpb_code

CHANCE = {
    "bench/cloze": 1 / 4,
    "bench/cloze_context": 1 / 4,
    "bench/arithmetic": 1 / 4,
    "bench/copying": 1 / 64,
    "bench/copying_gain": 0.0,
    "bench/needle": 1 / 64,
    "bench/needle_nats": -math.log(64),
    "recall/accuracy": 1 / 31,
    "copying/accuracy": 1 / 63,
    "arithmetic/accuracy": 1 / 10,
    "needle/accuracy": 1 / 64,
}


def losses_at(metrics: Iterable[str]) -> dict[str, int]:
    """Map the metrics that are losses at a position to that position in tokens, in ascending order."""
    ends = {metric: int(found[1]) for metric in metrics if (found := _LOSS_AT.fullmatch(metric))}
    return dict(sorted(ends.items(), key=lambda item: item[1]))


_LOSS_AT = re.compile(r"bench/loss_at_(\d+)")


def quantity(metric: str) -> Quantity:
    """Return the name and unit of a logged metric or budget; its key as the name if it is not listed."""
    if metric in (known := METRICS | BUDGETS):
        return known[metric]
    if (whole := whole_of(metric)) is None:
        return Quantity(metric)
    name, unit = METRICS[whole]
    return Quantity(f"{name}, {metric.removeprefix(f'{whole}_')}", unit)


def whole_of(metric: str) -> str | None:
    """Return the metric of which this one is the value for a part of the data, such as a domain; None if for none."""
    wholes = (whole for whole in PARTS if metric not in METRICS and metric.startswith(f"{whole}_"))
    return next(wholes, None)


def chance(metric: str) -> float | None:
    """Return the score of a model that has learnt only the form of the task; None if there is no such level."""
    return CHANCE.get(whole_of(metric) or metric)
