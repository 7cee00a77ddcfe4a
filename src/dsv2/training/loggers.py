"""Where metrics go: `metrics.jsonl`, which is the truth, and Weights & Biases, offline unless told otherwise."""

from dataclasses import dataclass, field
from typing import Literal

from dsv2.config import ConfigBase, setting


class Wandb:
    """Weights & Biases; without a key nothing ever waits for the network."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        mode: Literal["offline", "online", "disabled"] = setting("offline")
        project: str = setting("dsv2")


class Logging:
    """Which loggers a run has besides `metrics.jsonl`; `dsv2.training.sinks` makes them."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        wandb: Wandb.Config = field(default_factory=Wandb.Config, metadata={"fingerprint": False})
