"""Multiple choice among continuations, scored by likelihood.

Q questions, C choices.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dsv2.evaluation.scoring import Question, likelihoods
from dsv2.inference.sampling import Ids
from dsv2.models.transformer import Transformer

CHOICES = 4  # C


class Choice(NamedTuple):
    """A context, its true continuation and distractors."""

    context: Sequence[int]
    continuations: Sequence[Sequence[int]]  # C, the true one first
    domain: int  # index into the corpus's domains


class Answers(NamedTuple):
    """Scores per question."""

    correct: np.ndarray  # (Q,) float64: 1 or 0; if n choices tie for the best, 1 / n if the truth is among them
    margin: np.ndarray  # (Q,) float64: truth minus best distractor, in nats per byte


def answer(
    model: Transformer,
    questions: Sequence[Choice],
    token_bytes: np.ndarray,
    *,
    batch_tokens: int,
    ids: Ids | None = None,
) -> Answers:
    """Let the model choose by mean log-likelihood per byte, which does not favour short continuations."""
    return judge(scores(model, questions, token_bytes, batch_tokens=batch_tokens, ids=ids))


def answer_both_ways(
    model: Transformer,
    questions: Sequence[Choice],
    token_bytes: np.ndarray,
    *,
    start: int,
    batch_tokens: int,
    ids: Ids | None = None,
) -> tuple[Answers, Answers]:
    """Answer as `answer` does, and also by the gain in nats per byte over `start` alone as the context.

    The second discounts how common a continuation is by itself, which dominates the choices of a small model.
    """
    no_context = [choice._replace(context=[start]) for choice in questions]
    within, without = (
        scores(model, asked, token_bytes, batch_tokens=batch_tokens, ids=ids) for asked in (questions, no_context)
    )
    return judge(within), judge(within - without)


def scores(
    model: Transformer,
    questions: Sequence[Choice],
    token_bytes: np.ndarray,
    *,
    batch_tokens: int,
    ids: Ids | None = None,
) -> np.ndarray:
    """Return the mean log-likelihood per byte of each choice, (Q, C) float64.

    `token_bytes` (V,) is the number of bytes of each token; only `ids` have a probability (default: all).
    """
    flat = [Question(choice.context, continuation) for choice in questions for continuation in choice.continuations]
    results = likelihoods(model, flat, batch_tokens=batch_tokens, ids=ids)
    sizes = np.array([token_bytes[np.asarray(continuation)].sum() for _, continuation in flat])
    return (np.array([result.total for result in results]) / sizes).reshape(len(questions), -1)


def judge(scored: np.ndarray) -> Answers:
    """Grade choosing the highest score of each row of (Q, C), in which the true choice is first."""
    best = scored == scored.max(axis=1, keepdims=True)
    return Answers(best[:, 0] / best.sum(axis=1), scored[:, 0] - scored[:, 1:].max(axis=1))
