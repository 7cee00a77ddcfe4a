"""Preferences between answers to one prompt, made from their rewards, and how well scores agree with them.

n answers, P prompts with G answers each, N pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv2.config import ConfigBase
from dsv2.evaluation.following import Verified

BINS = 10  # of confidence, for the calibration error


@dataclass(frozen=True, eq=False)
class Preferences:
    """Answers with their prompts, and the pairs of them of which the first is the better one."""

    ids: Tensor  # int64, of prompt and answer, one answer after the other
    lengths: Tensor  # (n,) int64
    pairs: Tensor  # (N, 2) int64, of answers: the better, the worse

    @classmethod
    def of(cls, groups: Sequence[Verified], rewards: Tensor) -> Self:
        """Return all pairs of answers to one prompt with different rewards (P, G); those of NaN are in none.

        Answers that are equal, token by token, are one.
        """
        texts, pairs = list[list[int]](), list[tuple[int, int]]()
        for group, row in zip(groups, rewards.tolist(), strict=True):
            known = {tuple(reply.tokens): reward for reply, reward in zip(group.replies, row, strict=True)}
            first = len(texts)
            texts += [[*group.prompt.ids, *tokens] for tokens in known]
            values = list(known.values())
            pairs += [
                (first + better, first + worse)
                for better in range(len(values))
                for worse in range(len(values))
                if values[better] > values[worse]
            ]
        return cls(
            ids=torch.tensor([token for text in texts for token in text]),
            lengths=torch.tensor([len(text) for text in texts]),
            pairs=torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
        )

    def texts(self, numbers: Tensor) -> list[list[int]]:
        """Return the ids of some of the answers, with their prompts."""
        return [self._every[number].tolist() for number in numbers.tolist()]

    @cached_property
    def _every(self) -> tuple[Tensor, ...]:
        return self.ids.split(self.lengths.tolist())

    def state(self) -> dict[str, Tensor]:
        """Return the tensors by their names."""
        return {"ids": self.ids, "lengths": self.lengths, "pairs": self.pairs}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Return the preferences of `state`, on the CPU."""
        return cls(**{name: tensor.cpu() for name, tensor in state.items()})


class Pairwise:
    """Bradley-Terry: the better answer is preferred with the probability sigmoid(s - s') of their scores."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        def loss(self, better: Tensor, worse: Tensor) -> Tensor:
            """Return the mean loss of pairs, from the scores of both (N,), in nats per pair."""
            return -F.logsigmoid(better - worse).mean()


class Pointwise:
    """Each answer by itself: the better one is right, and the worse one wrong, with the probability sigmoid(s)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        def loss(self, better: Tensor, worse: Tensor) -> Tensor:
            """Return the mean loss of the answers of pairs, from the scores of both (N,), in nats per answer."""
            return -(F.logsigmoid(better) + F.logsigmoid(-worse)).mean() / 2


class Agreement(NamedTuple):
    """How scores agree with preferences."""

    accuracy: float  # share of pairs whose better answer has the higher score; half of each tie
    nats: float  # mean of -log sigmoid(s - s')
    calibration: float  # expected difference between the confidence in the likelier answer and how often it is right


def agreement(better: Tensor, worse: Tensor) -> Agreement:
    """Compare the scores (N,) of both answers of pairs.

    The calibration error is over ten bins of equal width of the confidence, which is from a half to 1, weighted by
    their pairs (Guo et al., arXiv 1706.04599).
    """
    margin = (better - worse).double()
    right = (margin > 0).double() + (margin == 0) / 2
    confidence = torch.sigmoid(margin.abs())
    bins = ((2 * confidence - 1) * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add(0, bins, confidence - right)
    nats = float(-F.logsigmoid(margin).mean())
    return Agreement(float(right.mean()), nats, float(gaps.abs().sum() / len(margin)))
