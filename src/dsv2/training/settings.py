"""How long a run trains, on what batches, and how often it is looked at and saved."""

from dataclasses import dataclass
from typing import Literal

from dsv2.config import ConfigBase, setting
from dsv2.training.schedule import BatchRamp


class Training:
    """The budget and rhythm of a run."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        tokens: int  # budget; filled as far as whole steps go
        sequence_length: int
        batch: BatchRamp.Config
        validation_tokens: int
        validate_every: int  # steps; also at the end
        log_every: int  # steps
        precision: Literal["fp32", "bf16"] = "fp32"
        checkpoint_every: int = setting(50)  # steps, a multiple of log_every; also at the end
        accelerator: Literal["auto", "cpu", "gpu"] = setting("auto")
        progress: bool = setting(True)

        def __post_init__(self) -> None:
            for name in ("sequence_length", "validate_every", "log_every", "checkpoint_every"):
                self.require(getattr(self, name) > 0, name, "positive")
            least = self.sequence_length * (self.batch.start or self.batch.size)
            self.require(self.tokens >= least, "tokens", f"at least one step, {least} tokens")
            enough = self.validation_tokens >= self.sequence_length
            self.require(enough, "validation_tokens", f"at least one sequence, {self.sequence_length}")

        def batches(self) -> BatchRamp:
            return self.batch.build(self.tokens, self.sequence_length)
