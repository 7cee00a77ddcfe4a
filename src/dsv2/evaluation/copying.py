"""In-context copying: a string of random tokens is shown twice; is the second copy predicted from the first?

S strings, L tokens per string.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dsv2.config import ConfigError
from dsv2.data.tokenizer import END_ID
from dsv2.evaluation.scoring import Question, likelihoods
from dsv2.inference.sampling import Ids
from dsv2.models.transformer import Transformer

SYMBOLS = 64  # the most frequent tokens; guessing among them is correct 1 time in 64


class Copied(NamedTuple):
    accuracy: float  # of argmax over the whole vocabulary, on the second copy
    gain: float  # loss on the first copy minus that on the second, in nats per token


def strings(tokens: np.ndarray, *, count: int, length: int, end_id: int = END_ID, ids: Ids | None = None) -> np.ndarray:
    """Draw strings (S, L) int64, each of distinct tokens among the SYMBOLS most frequent in `tokens`.

    Only `ids` are drawn (default: all), and never `end_id`. A pure function of the arguments. Raises ConfigError for
    strings longer than SYMBOLS.
    """
    if length > SYMBOLS:
        raise ConfigError("benchmarks.copying_length", length, f"at most {SYMBOLS}, the number of symbols")
    largest = max(SYMBOLS, end_id, -1 if ids is None else int(max(ids)))
    counts = np.bincount(tokens, minlength=largest + 1)
    usable = np.setdiff1d(np.arange(len(counts)) if ids is None else ids, [end_id])
    frequent = usable[np.argsort(-counts[usable], kind="stable")[:SYMBOLS]]
    drawn = np.random.Philox(np.random.SeedSequence([count, length])).random_raw(count * SYMBOLS)
    return frequent[np.argsort(drawn.reshape(count, SYMBOLS), axis=1, kind="stable")[:, :length]]


def copy(model: Transformer, shown: np.ndarray, *, batch_tokens: int, ids: Ids | None = None) -> Copied:
    """Score the second copy of each string (S, L) against its first.

    The first token of each copy is not scored, since nothing announces where a copy begins. Only `ids` have a
    probability (default: all).
    """
    questions: Sequence[Question] = [Question(row[:1], [*row[1:], *row]) for row in shown.tolist()]
    results = likelihoods(model, questions, batch_tokens=batch_tokens, ids=ids)
    length = shown.shape[1]
    # (S, 2 L - 1): L - 1 tokens of the first copy, L of the second
    nats = np.array([result.nats for result in results])
    hits = np.array([result.hits for result in results])
    return Copied(float(hits[:, length:].mean()), float(nats[:, length:].mean() - nats[:, : length - 1].mean()))
