"""The choice of the next tokens from their logits.

B rows of a batch, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dsv2.config import ConfigBase

Ids = Sequence[int] | np.ndarray


@dataclass(frozen=True, kw_only=True)
class Sampling(ConfigBase):
    """How the tokens of one request are chosen.

    In this order: the penalty changes the logits, the temperature divides them, and of their softmax the most likely
    tokens remain that `top_k`, `top_p` and `min_p` all allow; one is drawn in proportion. Of equally likely tokens all
    remain or none.
    """

    temperature: float = 0.0  # 0 is greedy: the most likely token, the first of equals
    top_k: int | None = None  # this many tokens remain; None: all
    top_p: float = 1.0  # as many remain as make up this probability, of what top_k leaves
    min_p: float = 0.0  # tokens remain that are at least this times as likely as the most likely
    repetition_penalty: float = 1.0  # positive logits of tokens in the prompt or answer are divided by it, others times
    seed: int = 0  # determines the draws, together with the number of the sample

    def __post_init__(self) -> None:
        self.require(0 <= self.temperature < math.inf, "temperature", "0 (greedy) or more, and finite")
        self.require(self.top_k is None or self.top_k >= 1, "top_k", "1 or more, or none for all")
        self.require(0 < self.top_p <= 1, "top_p", "more than 0, and at most 1")
        self.require(0 <= self.min_p <= 1, "min_p", "between 0 and 1")
        self.require(0 < self.repetition_penalty < math.inf, "repetition_penalty", "positive and finite")
        self.require(0 <= self.seed < 2**64, "seed", "0 or more and less than 2**64")

    def stream(self, sample: int) -> int:
        """Return the number that identifies the random draws of a sample, of which a request may have several."""
        first = _mixed(np.array([self.seed], dtype=np.uint64))
        return int(_mixed(first + np.uint64(sample))[0])


class Chooser:
    """Chooses the next tokens of B rows, each with its own sampling; made anew whenever the rows change."""

    def __init__(self, samplings: Sequence[Sampling], streams: Sequence[int], device: torch.device) -> None:
        """Take the sampling of each row and its stream of random draws."""

        def column(name: str, none: float = math.nan) -> Tensor:
            values = [getattr(sampling, name) for sampling in samplings]
            filled = [none if value is None else value for value in values]
            return torch.tensor(filled, dtype=torch.float64, device=device)[:, None]

        self.device, self.streams = device, np.array(streams, dtype=np.uint64)
        self.temperatures, self.penalties = column("temperature"), column("repetition_penalty")
        self.top_k, self.top_p, self.min_p = column("top_k", math.inf), column("top_p"), column("min_p")
        self.greedy = all(sampling.temperature == 0 for sampling in samplings)
        self.penalised = any(sampling.repetition_penalty != 1 for sampling in samplings)
        self.limited = any(sampling.top_k is not None or sampling.top_p < 1 for sampling in samplings)
        self.floored = self.limited or any(sampling.min_p > 0 for sampling in samplings)

    def choose(self, logits: Tensor, counts: np.ndarray, seen: Tensor | None = None) -> Tensor:
        """Return a token per row, (B,) int64, from logits (B, V).

        Args:
            counts: (B,) int64, how many tokens each row has drawn, which selects the draw of its stream.
            seen: (B, V) bool, tokens that the penalty applies to; needed if `penalised`.

        Raises ValueError for logits that are not numbers, of which the largest is one.
        """
        if self.penalised:
            assert seen is not None
            penalised = logits.where(logits < 0, logits / self.penalties).where(logits >= 0, logits * self.penalties)
            logits = penalised.where(seen, logits)
        highest, likeliest = logits.max(-1)
        if highest.isnan().any():
            raise ValueError("the model's logits are not numbers: its weights have diverged")
        if self.greedy:
            return likeliest
        weights = self._scaled(logits).exp()  # (B, V), 1 for the most likely
        if self.floored:
            weights = weights.where(weights >= self._floor(weights), 0)
        sums = weights.cumsum(-1)
        draws = torch.from_numpy(uniforms(self.streams, counts)).to(self.device)[:, None]
        drawn = torch.searchsorted(sums, draws * sums[:, -1:], right=True)[:, 0]  # the first sum beyond the draw
        return drawn.where(self.temperatures[:, 0] > 0, likeliest)

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Return the log-probabilities (B, V) float64 at the row's temperature, 1 if greedy, before anything else."""
        return self._scaled(logits).log_softmax(-1)

    def _scaled(self, logits: Tensor) -> Tensor:
        """Return the logits less the highest, divided by the temperature: at most 0, so that nothing overflows."""
        temperatures = self.temperatures.masked_fill(self.temperatures == 0, 1)
        return (logits - logits.amax(-1, keepdim=True)).double() / temperatures

    def _floor(self, weights: Tensor) -> Tensor:
        """Return the least weight that remains, (B, 1), from weights (B, V)."""
        floor = self.min_p
        if self.limited:
            ordered = weights.sort(-1, descending=True).values
            places = torch.arange(ordered.shape[1], device=self.device)
            ordered = ordered.where(places < self.top_k, 0)
            sums = ordered.cumsum(-1)
            remain = (sums - ordered < self.top_p * sums[:, -1:]) & (places < self.top_k)
            floor = torch.maximum(floor, ordered.gather(-1, remain.sum(-1, keepdim=True) - 1))
        return floor


def uniforms(streams: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return draw number `counts` (B,) of each of the streams (B,), float64 from 0 to less than 1.

    A pure function, the numbers of splitmix64, so that no row's draws depend on what is drawn beside it.
    """
    steps = (counts.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return (_mixed(streams + steps) >> np.uint64(12)) * 2.0**-52


def _mixed(x: np.ndarray) -> np.ndarray:
    """Return the output function of splitmix64 for each of x, uint64; arithmetic wraps."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def allowed(ids: Ids | None, vocab_size: int, device: torch.device) -> Tensor | None:
    """Return (V,) bool, True for `ids` as far as they are in the vocabulary; None if all are or none are given."""
    if ids is None:
        return None
    given = torch.as_tensor(np.asarray(ids), device=device)
    mask = torch.zeros(vocab_size, dtype=torch.bool, device=device)
    mask[given[given < vocab_size]] = True
    return None if bool(mask.all()) else mask


def restricted(logits: Tensor, ids: Ids | None) -> Tensor:
    """Return logits (..., V) with -inf for all but `ids`, as for ids that have no token; None allows all."""
    mask = allowed(ids, logits.shape[-1], logits.device)
    return logits if mask is None else logits.masked_fill(~mask, float("-inf"))
