"""Cloze questions cut from held-out text: which of four continuations is the true one?

N tokens of context, M of continuation.
"""

from collections.abc import Sequence

import numpy as np

from dsv2.config import ConfigError
from dsv2.data.store import Split
from dsv2.evaluation.choice import CHOICES, Choice

TRIES = 1000  # windows drawn for one question before giving up


def questions(split: Split, domains: Sequence[str], *, count: int, context: int, continuation: int) -> list[Choice]:
    """Cut `count` questions, evenly from all domains: a pure function of the split and the sizes.

    Distractors are the ends of other windows of the same domain, so that they differ from the truth only in content;
    they do not overlap the question's window, and all choices are different. Raises ConfigError if the held-out text
    of a domain is too short.
    """
    made = []
    for domain, name in enumerate(domains):
        windows = _Windows(split, domain, context + continuation)
        for _ in range(count // len(domains) + (domain < count % len(domains))):
            if (question := _question(split, domain, windows, context, continuation)) is None:
                needed = f"{CHOICES} disjoint, different windows of {context} + {continuation} tokens"
                valid = f"smaller: held-out documents of the domain {name!r} have no {needed}"
                raise ConfigError("benchmarks.cloze_context", context, valid)
            made.append(question)
    return made


def _question(split: Split, domain: int, windows: "_Windows", context: int, continuation: int) -> Choice | None:
    """Draw one question; None if the text is too short."""
    if windows.total < CHOICES:
        return None
    length = context + continuation
    start = windows.draw()
    choices = [_ids(split, start + context, continuation)]
    for _ in range(TRIES):
        other = windows.draw()
        apart = other + length <= start or other + context >= start + length
        if apart and (distractor := _ids(split, other + context, continuation)) not in choices:
            choices.append(distractor)
        if len(choices) == CHOICES:
            return Choice(_ids(split, start, context), choices, domain)
    return None


class _Windows:
    """Draws windows of `length` tokens within single documents of one domain, uniformly."""

    def __init__(self, split: Split, domain: int, length: int) -> None:
        ends = np.append(split.starts[1:], len(split.tokens)) - 1  # index of each document's <|endoftext|>
        room = np.where(split.domains == domain, np.maximum(ends - split.starts - length + 1, 0), 0)
        self.starts, self.before, self.total = split.starts, np.cumsum(room) - room, int(room.sum())
        self.generator = np.random.Philox(np.random.SeedSequence([domain, length]))

    def draw(self) -> int:
        """Return the index of a window's first token."""
        window = int(self.generator.random_raw()) % self.total
        document = int(np.searchsorted(self.before, window, side="right")) - 1
        return int(self.starts[document]) + window - int(self.before[document])


def _ids(split: Split, first: int, count: int) -> list[int]:
    return split.tokens[first : first + count].tolist()
