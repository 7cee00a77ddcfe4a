"""Cloze questions cut from held-out text: which of four continuations is the true one?

N tokens of context, M of continuation.
"""

from collections.abc import Sequence

import numpy as np

from dsv2.config import ConfigError
from dsv2.data.store import Split
from dsv2.evaluation.choice import CHOICES, Choice

TRIES = 1000  # windows drawn for one question before the text counts as too short for it


def questions(split: Split, domains: Sequence[str], *, count: int, context: int, continuation: int) -> list[Choice]:
    """`count` questions, as many from each domain as from any other: a pure function of the split and the sizes.

    Distractors are the ends of other windows of the same domain, so that nothing but what they say tells them from the
    truth; they do not overlap the question's own window, and no two choices are the same. Raises ConfigError where the
    held-out text of a domain is too short for that.
    """
    made = []
    for domain, name in enumerate(domains):
        windows = _Windows(split, domain, context + continuation)
        for _ in range(count // len(domains) + (domain < count % len(domains))):
            if (question := _question(split, domain, windows, context, continuation)) is None:
                needed = f"{CHOICES} windows of {context} + {continuation} tokens, apart and different"
                valid = f"smaller: held-out documents of the domain {name!r} have no {needed}"
                raise ConfigError("benchmarks.cloze_context", context, valid)
            made.append(question)
    return made


def _question(split: Split, domain: int, windows: "_Windows", context: int, continuation: int) -> Choice | None:
    """None where the text is too short."""
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
    """Draws windows of `length` tokens that lie inside one document of one domain, each as likely as any other."""

    def __init__(self, split: Split, domain: int, length: int) -> None:
        ends = np.append(split.starts[1:], len(split.tokens)) - 1  # where each document's <|endoftext|> stands
        room = np.where(split.domains == domain, np.maximum(ends - split.starts - length + 1, 0), 0)
        self.starts, self.before, self.total = split.starts, np.cumsum(room) - room, int(room.sum())
        self.generator = np.random.Philox(np.random.SeedSequence([domain, length]))

    def draw(self) -> int:
        """The first token of a window."""
        number = int(self.generator.random_raw()) % self.total
        document = int(np.searchsorted(self.before, number, side="right")) - 1
        return int(self.starts[document]) + number - int(self.before[document])


def _ids(split: Split, first: int, count: int) -> list[int]:
    return split.tokens[first : first + count].tolist()
