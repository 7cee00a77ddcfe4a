"""A prepared corpus as sequences, in an order that is a pure function of the seed.

B sequences, T tokens per sequence, W windows in the training split, N tokens of a split.
"""

import bisect
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from dsv2.config import ConfigError
from dsv2.data.source import Batch, Source, validation_sequences
from dsv2.data.store import Split, Store


class StoredText(Source):
    """What the sources that read a `Store` have in common."""

    def __init__(self, store: Store, *, sequence_length: int, seed: int, identity: dict[str, Any]) -> None:
        """Open a store; the tokenizer's hash is added to the corpus's `identity`."""
        self.store, self.seed, self.sequence_length = store, seed, sequence_length
        self.tokenizer, self.domains = store.tokenizer, store.domains
        self.vocab_size, self.token_bytes = store.tokenizer.vocab_size, store.tokenizer.token_bytes
        self.identity = identity | {"trained_tokenizer": store.manifest["tokenizer"]}

    def record(self) -> dict[str, Any]:
        """Return the identity of corpus, tokenizer and held-out documents, and the folder of the prepared corpus."""
        held_out = {**self.store.manifest["splits"]["val"], "sha256": self.store.manifest["files"]["val.bin"]}
        return super().record() | {"validation": held_out, "prepared": str(self.store.folder.resolve())}


class PackedText(StoredText):
    """Windows of T + 1 tokens, one every T tokens, so that each token is a target once per epoch.

    Training sequence n is window `order(n // W)[n % W]`: any batch can be reproduced from its first sequence number
    and its size, so a resumed run needs no other state.
    """

    def __init__(
        self, store: Store, *, sequence_length: int, seed: int, validation_tokens: int, identity: dict[str, Any]
    ) -> None:
        """Open a store. Raises `ConfigError` if a split is shorter than one window."""
        super().__init__(store, sequence_length=sequence_length, seed=seed, identity=identity)
        self.train_tokens = len(store.train.tokens)
        wanted = validation_sequences(sequence_length, validation_tokens)
        self.num_windows = self._windows_of("training", store.train)  # W
        in_val = self._windows_of("validation", store.val)
        self._num_validation = min(wanted, in_val)
        self._validation_windows = np.arange(self._num_validation) * in_val // self._num_validation  # evenly spaced

    def _windows_of(self, name: str, split: Split) -> int:
        most = len(split.tokens) - 1
        if most < self.sequence_length:
            valid = f"at most {most}, one less than the tokens of this corpus's {name} split"
            raise ConfigError("trainer.sequence_length", self.sequence_length, valid)
        return most // self.sequence_length

    def windows(self, first: int, count: int) -> np.ndarray:
        """Return the windows of training sequences `first` to `first + count - 1`, (count,) int64."""
        return in_epochs(self.seed, self.num_windows, first, count)

    def train(self, first: int, count: int) -> Batch:
        return self._batch(self.store.train, self.windows(first, count))

    def validation(self) -> Batch:
        return self._batch(self.store.val, self._validation_windows)

    def _batch(self, split: Split, windows: np.ndarray) -> Batch:
        positions = windows[:, None] * self.sequence_length + np.arange(self.sequence_length + 1)  # (B, T + 1)
        tokens = torch.from_numpy(split.tokens[positions].astype(np.int64))
        documents = np.searchsorted(split.starts, positions[:, :-1], side="right") - 1
        return Batch(tokens[:, :-1], tokens[:, 1:], torch.from_numpy(split.domains[documents]))


def in_epochs(seed: int, num_items: int, first: int, count: int) -> np.ndarray:
    """Return places `first` to `first + count - 1` of an endless order of items, each once per epoch, (count,) int64.

    Every epoch has an order of its own, a pure function of seed and epoch.
    """
    numbers = np.arange(first, first + count)
    epochs, indices = np.divmod(numbers, num_items)
    chosen = np.empty_like(numbers)
    for epoch in np.unique(epochs):
        mask = epochs == epoch
        chosen[mask] = order(seed, int(epoch), num_items)[indices[mask]]
    return chosen


def fit_in(lengths: np.ndarray, room: int) -> list[list[int]]:
    """Distribute items of these lengths (n,), each at most `room`, over rows of that length; return the rows' items.

    Best fit: longest first, each into the row that it leaves least of. The same lengths give the same rows.
    """
    assert len(lengths) == 0 or (lengths.min() > 0 and lengths.max() <= room)
    rows = list[list[int]]()
    by_room: dict[int, list[int]] = {room: []}  # rows by the room that is left in them
    rooms = [room]  # the keys, ascending
    for item in np.argsort(-lengths, kind="stable").tolist():
        left = rooms[bisect.bisect_left(rooms, int(lengths[item]))]
        if left == room:
            rows.append([])
            by_room[room].append(len(rows) - 1)
        row = by_room[left].pop()
        rows[row].append(item)
        if left < room and not by_room[left]:
            rooms.remove(left)
            del by_room[left]
        remaining = left - int(lengths[item])
        if remaining not in by_room:
            bisect.insort(rooms, remaining)
            by_room[remaining] = []
        by_room[remaining].append(row)
    return rows


@lru_cache(maxsize=4)  # of the current epoch, and the next if a batch spans two
def order(seed: int, epoch: int, num_windows: int) -> np.ndarray:
    """Return a permutation of the windows, (W,) int64.

    It is built from the bit generator, whose stream numpy keeps stable across versions, unlike `Generator.permutation`.
    """
    drawn = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(num_windows)
    return np.argsort(drawn, kind="stable")
