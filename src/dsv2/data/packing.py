"""A prepared corpus as windows of consecutive tokens, in an order that is a pure function of seed and number.

B sequences, T tokens per sequence, W windows in the training split, N tokens of a split.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from dsv2.config import ConfigError
from dsv2.data.source import Batch, Source, validation_sequences
from dsv2.data.store import Split, Store


class PackedText(Source):
    """Windows of T + 1 tokens, one every T tokens, so that each token is a target once an epoch.

    Training sequence n is window `order(n // W)[n % W]`: any batch of any size can be made again from its first number
    alone, and a resumed run needs no other state.
    """

    def __init__(
        self, store: Store, *, sequence_length: int, seed: int, validation_tokens: int, identity: dict[str, Any]
    ) -> None:
        """Raises `ConfigError` where a split has no whole window. `identity` is the corpus', to which the tokenizer's
        hash is added."""
        self.store, self.seed, self.sequence_length = store, seed, sequence_length
        self.tokenizer, self.domains = store.tokenizer, store.domains
        self.vocab_size, self.token_bytes = store.tokenizer.vocab_size, store.tokenizer.token_bytes
        self.train_tokens = len(store.train.tokens)
        self.identity = identity | {"trained_tokenizer": store.manifest["tokenizer"]}
        wanted = validation_sequences(sequence_length, validation_tokens)
        self.num_windows = self._windows_of("training", store.train)  # W
        in_val = self._windows_of("validation", store.val)
        self._num_validation = min(wanted, in_val)
        self._validation_windows = np.arange(self._num_validation) * in_val // self._num_validation  # evenly spread

    def _windows_of(self, name: str, split: Split) -> int:
        most = len(split.tokens) - 1
        if most < self.sequence_length:
            valid = f"at most {most}, the tokens of this corpus' {name} split less one"
            raise ConfigError("trainer.sequence_length", self.sequence_length, valid)
        return most // self.sequence_length

    def windows(self, first: int, count: int) -> np.ndarray:
        """Which windows training sequences `first` to `first + count - 1` are: (count,) int64."""
        numbers = np.arange(first, first + count)
        epochs, places = np.divmod(numbers, self.num_windows)
        chosen = np.empty_like(numbers)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            chosen[here] = order(self.seed, int(epoch), self.num_windows)[places[here]]
        return chosen

    def record(self) -> dict[str, Any]:
        """The identity of corpus, tokenizer and held-out documents, and where the prepared corpus lies."""
        held_out = {**self.store.manifest["splits"]["val"], "sha256": self.store.manifest["files"]["val.bin"]}
        return super().record() | {"validation": held_out, "prepared": str(self.store.folder.resolve())}

    def train(self, first: int, count: int) -> Batch:
        return self._batch(self.store.train, self.windows(first, count))

    def validation(self) -> Batch:
        return self._batch(self.store.val, self._validation_windows)

    def _batch(self, split: Split, windows: np.ndarray) -> Batch:
        positions = windows[:, None] * self.sequence_length + np.arange(self.sequence_length + 1)  # (B, T + 1)
        tokens = torch.from_numpy(split.tokens[positions].astype(np.int64))
        documents = np.searchsorted(split.starts, positions[:, :-1], side="right") - 1
        return Batch(tokens[:, :-1], tokens[:, 1:], torch.from_numpy(split.domains[documents]))


@lru_cache(maxsize=4)  # the current epoch's, and the next's where a batch spans two
def order(seed: int, epoch: int, num_windows: int) -> np.ndarray:
    """A permutation of the windows, (W,) int64.

    Made from the bit generator itself: numpy promises that its stream stays the same, but not `Generator.permutation`.
    """
    drawn = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(num_windows)
    return np.argsort(drawn, kind="stable")
