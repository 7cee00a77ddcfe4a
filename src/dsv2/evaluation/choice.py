"""Choosing among continuations: what is asked, and how it is scored.

Q questions, C choices.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dsv2.evaluation.scoring import Question, likelihoods
from dsv2.models.transformer import Transformer

CHOICES = 4  # C


class Choice(NamedTuple):
    """A context, its true continuation and distractors."""

    context: Sequence[int]
    continuations: Sequence[Sequence[int]]  # C, the true one first
    domain: int  # index into the corpus' domains


class Answers(NamedTuple):
    """Of each question."""

    correct: np.ndarray  # (Q,) float64: 1 or 0; where n choices are equally likely, 1 / n if the truth is among them
    margin: np.ndarray  # (Q,) float64: nats a byte by which the truth beats the best distractor


def answer(model: Transformer, questions: Sequence[Choice], token_bytes: np.ndarray, *, batch_tokens: int) -> Answers:
    """Let the model choose by mean log-likelihood a byte, so that a short continuation is no likelier for its length.

    `token_bytes` (V,): bytes of text that each token stands for.
    """
    asked = [Question(choice.context, one) for choice in questions for one in choice.continuations]
    found = likelihoods(model, asked, batch_tokens=batch_tokens)
    sizes = np.array([token_bytes[np.asarray(continuation)].sum() for _, continuation in asked])
    scores = (np.array([one.total for one in found]) / sizes).reshape(len(questions), -1)  # (Q, C)
    best = scores == scores.max(axis=1, keepdims=True)
    return Answers(best[:, 0] / best.sum(axis=1), scores[:, 0] - scores[:, 1:].max(axis=1))
