"""Log-likelihoods of continuations given their contexts, in batches of similar length.

B sequences, T tokens of the longest one, V vocabulary, n scored tokens.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dsv2.inference.sampling import Ids, restricted
from dsv2.kernels.cross_entropy import token_nats
from dsv2.models.transformer import Transformer, evaluating


class Question(NamedTuple):
    """A context, and the continuation to score."""

    context: Sequence[int]  # at least 1
    continuation: Sequence[int]  # at least 1


class Likelihood(NamedTuple):
    """Scores of one continuation."""

    nats: list[float]  # log-probability of each token, at most 0
    hits: list[bool]  # whether argmax predicts each token

    @property
    def total(self) -> float:
        return sum(self.nats)


@torch.no_grad()
def likelihoods(
    model: Transformer, questions: Sequence[Question], *, batch_tokens: int, ids: Ids | None = None
) -> list[Likelihood]:
    """Return one result per question, in order, with at most `batch_tokens` tokens (or one sequence) per pass.

    Only `ids` have a probability, such as those that have a token (default: all). Sequences are padded on the right,
    which causal attention ignores. Runs in evaluation mode and restores the model's mode. Raises ValueError for an
    empty context or continuation.
    """
    for number, (context, continuation) in enumerate(questions):
        if not len(context) or not len(continuation):
            raise ValueError(f"question {number}: context and continuation need at least one token each")
    results: dict[int, Likelihood] = {}
    with evaluating(model):
        for batch in _batches(questions, batch_tokens):
            results |= zip(batch, _score(model, [questions[number] for number in batch], ids), strict=True)
    return [results[number] for number in range(len(questions))]


def _read(question: Question) -> int:
    """Return the number of input tokens: all but the last."""
    return len(question.context) + len(question.continuation) - 1


def _batches(questions: Sequence[Question], batch_tokens: int) -> Iterator[list[int]]:
    """Yield batches of question indices, the longest first."""
    batch: list[int] = []
    for number in sorted(range(len(questions)), key=lambda number: -_read(questions[number])):
        if batch and (len(batch) + 1) * _read(questions[batch[0]]) > batch_tokens:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _score(model: Transformer, questions: list[Question], ids: Ids | None) -> Iterator[Likelihood]:
    device = model.embedding.device
    rows = [torch.tensor([*context, *continuation]) for context, continuation in questions]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)  # (B, T + 1)
    logits = model(tokens[:, :-1]).logits  # (B, T, V)
    index = torch.arange(logits.shape[1], device=device)
    first = torch.tensor([len(context) - 1 for context, _ in questions], device=device)[:, None]
    last = torch.tensor([_read(question) for question in questions], device=device)[:, None]
    scored = (index >= first) & (index < last)  # (B, T)
    nats, hits = token_scores(restricted(logits[scored], ids), tokens[:, 1:][scored])
    sizes = [len(continuation) for _, continuation in questions]
    for row_nats, row_hits in zip(nats.split(sizes), hits.split(sizes), strict=True):
        yield Likelihood(row_nats.tolist(), row_hits.tolist())


def token_scores(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities (float64, from a float32 softmax) and whether argmax is correct, (n,) each."""
    logits = logits.float()
    return -token_nats(logits, targets).double(), logits.argmax(-1) == targets
