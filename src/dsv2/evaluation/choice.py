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
    margin: np.ndarray  # (Q,) float64: nats per byte by which the truth beats the best distractor


def answer(model: Transformer, questions: Sequence[Choice], token_bytes: np.ndarray, *, batch_tokens: int) -> Answers:
    """Let the model choose by mean log-likelihood a byte, so that short continuations have no advantage."""
    return judge(scores(model, questions, token_bytes, batch_tokens=batch_tokens))


def answer_both_ways(
    model: Transformer, questions: Sequence[Choice], token_bytes: np.ndarray, *, start: int, batch_tokens: int
) -> tuple[Answers, Answers]:
    """As `answer`, and by the nats per byte that the context saves, against `start` alone as the context.

    Whether a text is a common one, which decides most choices of a small model, does not count in the second.
    """
    alone = [choice._replace(context=[start]) for choice in questions]
    within, without = (scores(model, some, token_bytes, batch_tokens=batch_tokens) for some in (questions, alone))
    return judge(within), judge(within - without)


def scores(
    model: Transformer, questions: Sequence[Choice], token_bytes: np.ndarray, *, batch_tokens: int
) -> np.ndarray:
    """Mean log-likelihood a byte of each choice, (Q, C) float64. `token_bytes` (V,): bytes of text of each token."""
    asked = [Question(choice.context, one) for choice in questions for one in choice.continuations]
    results = likelihoods(model, asked, batch_tokens=batch_tokens)
    sizes = np.array([token_bytes[np.asarray(continuation)].sum() for _, continuation in asked])
    return (np.array([one.total for one in results]) / sizes).reshape(len(questions), -1)


def judge(scored: np.ndarray) -> Answers:
    """What a model that takes the highest of its scores (Q, C) gets, the true choice first."""
    best = scored == scored.max(axis=1, keepdims=True)
    return Answers(best[:, 0] / best.sum(axis=1), scored[:, 0] - scored[:, 1:].max(axis=1))
