"""Names and units of all metrics, for tables and figures."""

import math
import re
from collections.abc import Iterable
from typing import Literal, NamedTuple


class Quantity(NamedTuple):
    """What a metric is called, its unit, and which direction is better; `label` is the name with its unit."""

    name: str
    unit: str = ""
    better: Literal["lower", "higher", ""] = ""  # "": neither by itself
    short: str = ""  # for the heads of narrow columns; "": the name is short enough

    @property
    def label(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def brief(self) -> str:
        return self.short or self.name


BUDGETS = {  # what a comparison may hold equal
    "total_params": Quantity("parameters"),
    "active_params": Quantity("active parameters"),
    "flops_per_token": Quantity("FLOPs per token"),
    "kv_elements_per_token": Quantity("KV cache per token", "elements"),
    "tokens": Quantity("training tokens"),
}
MODEL_BUDGETS = tuple(budget for budget in BUDGETS if budget != "tokens")  # fields of an `Account`

METRICS = {
    "val/loss": Quantity("validation loss", "nats/token", "lower"),
    "val/bpb": Quantity("validation bits per byte", "", "lower", "bits per byte"),
    "val/accuracy": Quantity("validation accuracy", "share of tokens", "higher"),
    "bench/cloze": Quantity("cloze", "share correct", "higher"),
    "bench/cloze_margin": Quantity("cloze margin", "nats/byte", "higher"),
    "bench/cloze_context": Quantity("cloze by context", "share correct", "higher"),
    "bench/copying": Quantity("copying", "share of tokens", "higher"),
    "bench/copying_gain": Quantity("copying gain", "nats/token", "higher"),
    "bench/arithmetic": Quantity("arithmetic", "share correct", "higher"),
    "bench/needle": Quantity("needle", "share found", "higher"),
    "bench/needle_nats": Quantity("needle log-probability", "nats/answer", "higher", "needle nats"),
    "bench/following": Quantity("instructions followed", "share right, greedy", "higher", "followed"),
    "bench/pass_at_1": Quantity("pass@1", "share right, drawn", "higher"),
    "bench/pass_at_8": Quantity("pass@8", "share of prompts", "higher"),
    "bench/mmlu": Quantity("MMLU", "share correct", "higher"),
    "bench/bbh": Quantity("BBH", "exact match", "higher"),
    "bench/math": Quantity("MATH", "exact match", "higher"),
    "bench/ceval": Quantity("C-Eval", "share correct", "higher"),
    "bench/cmmlu": Quantity("CMMLU", "share correct", "higher"),
    "bench/cmrc": Quantity("CMRC", "exact match", "higher"),
    "bench/stopped": Quantity("replies that end themselves", "share", "higher", "ended"),
    "bench/refused": Quantity("refused as it should be", "share", "higher", "refused"),
    "bench/over_refused": Quantity("over-refusal", "share of harmless", "lower"),
    "bench/humaneval": Quantity("HumanEval", "share solved", "higher"),
    "bench/unjudged": Quantity("replies without a verdict", "share", "lower", "unjudged"),
    "grpo/reward": Quantity("reward", "", "higher"),
    "grpo/reward_correct": Quantity("answers right in training", "share", "higher"),
    "grpo/reward_stopped": Quantity("answers that end themselves in training", "share", "higher"),
    "grpo/reward_safe": Quantity("safe answers in training", "share", "higher"),
    "grpo/reward_rule": Quantity("answers by the rule in training", "share", "higher"),
    "grpo/reward_reasoning": Quantity("learned reward, reasoning", "sd", "higher"),
    "grpo/reward_helpful": Quantity("learned reward, helpfulness", "sd", "higher"),
    "grpo/reward_safety": Quantity("learned reward, safety", "sd", "higher"),
    "rm/accuracy": Quantity("pairs ranked right", "share", "higher"),
    "rm/accuracy_in_training": Quantity("pairs ranked right in training", "share", "higher"),
    "rm/calibration": Quantity("calibration error", "share", "lower"),
    "grpo/pass_at_8": Quantity("pass@8 in training", "share of prompts", "higher"),
    "grpo/zero_variance": Quantity("groups without variance", "share"),
    "grpo/length": Quantity("length of answers", "tokens"),
    "grpo/capped": Quantity("answers cut off", "share", "lower"),
    "grpo/unjudged": Quantity("answers without a verdict", "share", "lower"),
    "grpo/loss": Quantity("loss of GRPO"),
    "grpo/kl": Quantity("divergence from the reference", "nats/token"),
    "grpo/clipped": Quantity("clipped tokens", "share"),
    "grpo/shift": Quantity("log-ratio to the policy that drew", "nats/token"),
    "grpo/staleness": Quantity("staleness of answers", "steps"),
    "deployed/agreement": Quantity("sampled alike", "share of tokens", "higher"),
    "deployed/kv_bytes_per_token": Quantity("cache held", "bytes/token", "lower", "cache held"),
    "deployed/kv_bits": Quantity("cache held per element", "bits", "lower"),
    "bench/loss_1x": Quantity("loss up to the trained length", "nats/token", "lower", "loss, 1x"),
    "bench/loss_2x": Quantity("loss up to 2x the trained length", "nats/token", "lower", "loss, 2x"),
    "bench/loss_4x": Quantity("loss up to 4x the trained length", "nats/token", "lower", "loss, 4x"),
    "bench/loss_8x": Quantity("loss up to 8x the trained length", "nats/token", "lower", "loss, 8x"),
    "val/loss_at_capacity": Quantity("validation loss with dropping", "nats/token", "lower", "loss with dropping"),
    "train/loss": Quantity("training loss", "nats/token", "lower"),
    "train/ce": Quantity("training cross-entropy", "nats/token", "lower"),
    "routing/max_violation": Quantity("expert violation", "max/mean - 1", "lower"),
    "routing/entropy": Quantity("load entropy", "share of log E", "higher"),
    "routing/dead_experts": Quantity("dead experts", "share of experts", "lower"),
    "routing/device_max_violation": Quantity("device violation", "max/mean - 1", "lower"),
    "routing/received_max_violation": Quantity("received violation", "max/mean - 1", "lower"),
    "routing/overflow": Quantity("overflow at capacity 1.0", "share", "lower", "overflow"),
    "routing/drop_rate": Quantity("dropped pairs", "share", "lower"),
    "routing/devices_per_token": Quantity("devices per token"),
    "recall/accuracy": Quantity("recall", "share correct", "higher"),
    "recall/accuracy_in_training": Quantity("recall over training", "share correct", "higher", "recall in training"),
    "recall/steps_to_half": Quantity("recall steps to 50% accuracy", "", "lower", "recall steps"),
    "copying/accuracy": Quantity("copying task", "share correct", "higher"),
    "copying/accuracy_in_training": Quantity("copying over training", "share correct", "higher", "copying in training"),
    "copying/steps_to_half": Quantity("copying steps to 50% accuracy", "", "lower", "copying steps"),
    "arithmetic/accuracy": Quantity("arithmetic task", "share of digits correct", "higher"),
    "arithmetic/accuracy_in_training": Quantity(
        "arithmetic over training", "share of digits correct", "higher", "arithmetic in training"
    ),
    "arithmetic/steps_to_half": Quantity("arithmetic steps to 50% accuracy", "", "lower", "arithmetic steps"),
    "needle/accuracy": Quantity("needle task", "share found", "higher"),
    "needle/accuracy_in_training": Quantity("needle task over training", "share found", "higher", "needle in training"),
    "needle/steps_to_half": Quantity("needle task steps to 50% accuracy", "", "lower", "needle steps"),
    "perf/tokens_per_s": Quantity("tokens per second", "", "higher"),
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
    "bench/mmlu": 1 / 4,
    "bench/bbh": 0.257,  # Suzgun et al. 2022, Table 2
    "bench/math": 0.0,
    "bench/ceval": 1 / 4,
    "bench/cmmlu": 1 / 4,
    "bench/cmrc": 0.0,
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
    of, part = METRICS[whole], metric.removeprefix(f"{whole}_")
    return of._replace(name=f"{of.name}, {part}", short=f"{of.brief}, {part}")


def whole_of(metric: str) -> str | None:
    """Return the metric of which this one is the value for a part of the data, such as a domain; None if for none."""
    wholes = (whole for whole in PARTS if metric not in METRICS and metric.startswith(f"{whole}_"))
    return next(wholes, None)


def chance(metric: str) -> float | None:
    """Return the score of a model that has learnt only the form of the task; None if there is no such level."""
    return CHANCE.get(whole_of(metric) or metric)
