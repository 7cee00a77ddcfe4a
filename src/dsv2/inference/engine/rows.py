"""Which request has which row of the cache, and which tokens free rows still hold for requests that begin with them."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from dsv2.inference.cache import ModelCache
from dsv2.inference.engine.request import Generation

LEAST = 16  # tokens that a shared beginning must have: fewer are computed as fast as they are copied


@dataclass(eq=False)
class Contents:
    """What a row holds: all that is known of a row lies here, and moves with its tokens."""

    tokens: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))  # the prompt until it is released
    weights: int = 0  # number of the weights that its entries were computed with
    used: int = -1  # when a request last had it or began with it, counted in admissions


class Shared(NamedTuple):
    """The longest beginning of a prompt that some row holds, without the prompt's last token."""

    row: int | None
    length: int  # tokens that can be copied now; 0 without a row
    coming: bool  # whether a row that is being filled will hold more


class Rows:
    """Rows of a cache in this order: decoding, prefilling, free; so that each group is a view of the cache.

    A free row keeps its tokens until it is needed. A request that begins like them, or like those of a row in use, gets
    a copy. Beginnings are compared token by token, so that nothing is mistaken for them, and only with those that were
    computed with the same weights.
    """

    def __init__(self, cache: ModelCache) -> None:
        """Take a cache that is empty."""
        self.cache = cache
        self.contents = [Contents() for _ in cache.lengths]
        self.holders: list[Generation] = []  # of rows 0, 1, ...
        self.decoding = 0  # how many of them decode
        self.admitted = 0  # requests so far
        self.changes = 0  # of who decodes in which row
        self.weights, self.identity = 0, object()  # number and identity of the model's weights

    @property
    def free(self) -> int:
        """How many rows no request has."""
        return len(self.contents) - len(self.holders)

    def use_weights(self, identity: object) -> None:
        """Compute with these weights from now on; what was computed with others is not shared any more."""
        if identity != self.identity:
            self.weights, self.identity = self.weights + 1, identity

    def shared(self, prompt: np.ndarray) -> Shared:
        """Find the row that holds most of the beginning of a prompt."""
        best, coming = Shared(None, 0, False), 0
        for row, contents in enumerate(self.contents):
            if contents.weights != self.weights or len(contents.tokens) < LEAST:
                continue
            common = _common(contents.tokens, prompt[:-1])
            held = min(common, int(self.cache.lengths[row]))
            if common >= LEAST and held > best.length:
                best = Shared(row, held, False)
            if self.decoding <= row < len(self.holders):
                coming = max(coming, common)
        return best._replace(coming=coming > best.length)

    def admit(self, generation: Generation, prompt: np.ndarray, shared: Shared) -> None:
        """Give a request the first free row, and the tokens that it shares with another."""
        row, source, length = len(self.holders), *shared[:2]
        self.admitted += 1
        if source != row:
            # What the row still holds may be worth more than what the free row used longest ago does.
            oldest = min(set(range(row, len(self.contents))) - {source}, key=lambda free: self.contents[free].used)
            if oldest != row:
                self.cache.copy(row, oldest, int(self.cache.lengths[row]))
                self.contents[oldest] = self.contents[row]
        if source is None:
            self.cache.truncate(row)
        else:
            self.contents[source].used = self.admitted
            self.cache.copy(source, row, length)
        self.contents[row] = Contents(prompt, self.weights, self.admitted)
        self.holders.append(generation)
        generation.row, generation.prefilled = row, length

    def promote(self, generation: Generation) -> None:
        """Count a row whose prompt is in the cache among those that decode."""
        assert generation.row is not None
        self._swap(generation.row, self.decoding)
        self.decoding += 1
        self.changes += 1

    def release(self, generation: Generation) -> None:
        """Free the row of a request, which keeps its tokens."""
        row = generation.row
        assert row is not None
        held = np.array([*generation.request.prompt, *generation.tokens], dtype=np.int64)
        self.contents[row].tokens = held[: self.cache.lengths[row]]
        if row < self.decoding:
            self.decoding -= 1
            self.changes += 1
            self._swap(row, self.decoding)
            row = self.decoding
        self._swap(row, len(self.holders) - 1)
        self.holders.pop().row = None

    def _swap(self, row: int, other: int) -> None:
        """Exchange two rows that requests have, with all that belongs to them."""
        if row == other:
            return
        self.cache.swap(row, other)
        _exchange(self.contents, row, other)
        _exchange(self.holders, row, other)
        for place in (row, other):
            self.holders[place].row = place


def _exchange(entries: list[Any], place: int, other: int) -> None:
    entries[place], entries[other] = entries[other], entries[place]


def _common(tokens: np.ndarray, others: np.ndarray) -> int:
    """Return how many tokens two sequences begin with in common."""
    if not np.array_equal(tokens[:LEAST], others[:LEAST]):
        return 0  # mostly; then nothing has to be compared as a whole. Fewer than LEAST count as none
    shortest = min(len(tokens), len(others))
    differs = tokens[:shortest] != others[:shortest]
    return int(differs.argmax()) if differs.any() else shortest
