"""Learning rate and batch size over training, as pure functions of the step."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dsv2.config import ConfigBase


class BatchRamp:
    """Sequences per step: constant, or growing linearly with the tokens seen up to `ramp_tokens` (section 3.1.2)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        size: int  # sequences per step, after the ramp
        start: int | None = None  # sequences per step at the beginning; None: no ramp
        ramp_tokens: int = 0

        def __post_init__(self) -> None:
            self.require(self.size > 0, "size", "positive")
            grows = self.start is None or 0 < self.start <= self.size
            self.require(grows, "start", f"between 1 and size={self.size}, or null for no ramp")
            given = (self.start is None) == (self.ramp_tokens == 0) and self.ramp_tokens >= 0
            self.require(given, "ramp_tokens", "positive together with start, 0 without it")

        def build(self, tokens: int, sequence_length: int) -> "BatchRamp":
            return BatchRamp(self, tokens, sequence_length)

    def __init__(self, config: Config, tokens: int, sequence_length: int) -> None:
        """Plan the steps of a budget of `tokens`, rounded down to whole steps."""
        self.config, self.sequence_length = config, sequence_length
        self.sequences = tokens // sequence_length  # within the budget

    @cached_property
    def _ramp_ends(self) -> np.ndarray:
        """Sequences seen after each step of the ramp."""
        if self.config.start is None:
            return np.zeros(0, dtype=np.int64)
        ramp, first, last = self.config.ramp_tokens / self.sequence_length, self.config.start, self.config.size
        ends, seen = [], 0
        while seen < ramp:
            seen += int(first + (last - first) * seen / ramp)
            ends.append(seen)
        return np.asarray(ends, dtype=np.int64)

    def first_sequence(self, step: int) -> int:
        """Index of the first sequence of this step: the number of sequences seen before it."""
        ends = self._ramp_ends
        if step == 0:
            return 0
        if step <= len(ends):
            return int(ends[step - 1])
        return (int(ends[-1]) if len(ends) else 0) + (step - len(ends)) * self.config.size

    def batch_size(self, step: int) -> int:
        """Return the number of sequences in this step."""
        return self.first_sequence(step + 1) - self.first_sequence(step)

    @property
    def sizes(self) -> list[int]:
        """All batch sizes that occur, in sequences, ascending."""
        ramp = np.diff(self._ramp_ends, prepend=0).tolist()
        return sorted({*ramp, self.config.size})

    @cached_property
    def num_steps(self) -> int:
        """Number of whole steps within the budget."""
        ends = self._ramp_ends
        if len(ends) and self.sequences < ends[-1]:
            return int(np.searchsorted(ends, self.sequences, side="right"))
        return len(ends) + (self.sequences - (int(ends[-1]) if len(ends) else 0)) // self.config.size

    def tokens_before(self, step: int) -> int:
        return self.first_sequence(step) * self.sequence_length

    @property
    def total_tokens(self) -> int:
        """Tokens trained on: the budget without its incomplete last step."""
        return self.tokens_before(self.num_steps)


class StepDecay:
    """Linear warm-up, then constant, multiplied by `decay` at each share in `decay_at` of the tokens."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        warmup_steps: int = 2000
        decay_at: tuple[float, ...] = (0.6, 0.9)
        decay: float = 0.316

        def __post_init__(self) -> None:
            self.require(self.warmup_steps >= 0, "warmup_steps", "0 or more")
            inside = all(0 < share < 1 for share in self.decay_at) and list(self.decay_at) == sorted(self.decay_at)
            self.require(inside, "decay_at", "ascending shares of the tokens, between 0 and 1")
            self.require(0 < self.decay <= 1, "decay", "above 0 and at most 1")

        def factor(self, step: int, batches: BatchRamp) -> float:
            """Return the factor on the peak learning rate at this step, counted from 0."""
            warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
            seen = batches.tokens_before(step) / max(batches.total_tokens, 1)
            return warm * self.decay ** sum(seen >= share for share in self.decay_at)
