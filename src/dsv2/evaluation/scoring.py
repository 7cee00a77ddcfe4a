"""How likely a model finds continuations of contexts, in batches of similar length.

B sequences, T tokens of the longest, V vocabulary, n scored tokens.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dsv2.kernels.cross_entropy import token_nats
from dsv2.models.transformer import Transformer, evaluating


class Question(NamedTuple):
    """Tokens to read, and tokens to be scored after them."""

    context: Sequence[int]  # at least 1
    continuation: Sequence[int]  # at least 1


class Likelihood(NamedTuple):
    """Of one continuation."""

    nats: list[float]  # log-probability of each of its tokens, 0 or less
    hits: list[bool]  # whether argmax predicts each of them

    @property
    def total(self) -> float:
        return sum(self.nats)


@torch.no_grad()
def likelihoods(model: Transformer, questions: Sequence[Question], *, batch_tokens: int) -> list[Likelihood]:
    """One result per question, in their order; at most `batch_tokens` tokens per pass, or one sequence.

    Sequences are padded on the right, where causal attention never looks. In evaluation mode; the model is left in the
    mode it was in. Raises ValueError for an empty context or continuation.
    """
    for number, (context, continuation) in enumerate(questions):
        if not len(context) or not len(continuation):
            raise ValueError(f"question {number}: context and continuation need at least one token each")
    results: dict[int, Likelihood] = {}
    with evaluating(model):
        for batch in _batches(questions, batch_tokens):
            results |= zip(batch, _score(model, [questions[number] for number in batch]), strict=True)
    return [results[number] for number in range(len(questions))]


def _read(question: Question) -> int:
    """Tokens that the model reads: all but the last."""
    return len(question.context) + len(question.continuation) - 1


def _batches(questions: Sequence[Question], batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of questions, the longest first."""
    batch: list[int] = []
    for number in sorted(range(len(questions)), key=lambda number: -_read(questions[number])):
        if batch and (len(batch) + 1) * _read(questions[batch[0]]) > batch_tokens:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _score(model: Transformer, questions: list[Question]) -> Iterator[Likelihood]:
    device = model.embedding.device
    rows = [torch.tensor([*context, *continuation]) for context, continuation in questions]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)  # (B, T + 1)
    logits = model(tokens[:, :-1]).logits  # (B, T, V)
    place = torch.arange(logits.shape[1], device=device)
    first = torch.tensor([len(context) - 1 for context, _ in questions], device=device)[:, None]
    last = torch.tensor([_read(question) for question in questions], device=device)[:, None]
    scored = (place >= first) & (place < last)  # (B, T)
    nats, hits = token_scores(logits[scored], tokens[:, 1:][scored])
    sizes = [len(continuation) for _, continuation in questions]
    for some, right in zip(nats.split(sizes), hits.split(sizes), strict=True):
        yield Likelihood(some.tolist(), right.tolist())


def token_scores(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities, float64 of a float32 softmax, and whether argmax is right: (n,) each, from logits (n, V)."""
    logits = logits.float()
    return -token_nats(logits, targets).double(), logits.argmax(-1) == targets
