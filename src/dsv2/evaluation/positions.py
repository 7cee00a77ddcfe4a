"""Loss by position, up to several times the length that a model was trained on.

Every scored token is read at every position: windows start one bin of positions after another, so that all bins hold
the same tokens, each with the text before it. Differences between bins are then of the position alone.

B spans, T tokens of the longest window, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from dsv2.config import ConfigBase, ConfigError
from dsv2.data.packing import PackedText
from dsv2.evaluation.benchmarks import Measured
from dsv2.kernels.cross_entropy import token_nats
from dsv2.models.transformer import Transformer, evaluating
from dsv2.printing import described

BINS = 2  # per trained length
MULTIPLES = (1, 2, 4, 8)  # of the trained length at which the loss is stated


class LossByPosition:
    """The loss of held-out text in bins of positions, a pure function of corpus, tokenizer and sizes."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        trained_length: int = 128  # tokens: sequence length before any extension
        spans: int = 4  # places of the held-out text, evenly spaced
        bins: int = 16  # of text scored in each span, half the trained length each

        def __post_init__(self) -> None:
            whole = self.trained_length > 0 and self.trained_length % BINS == 0
            self.require(whole, "trained_length", f"a positive multiple of {BINS}")
            for name in ("spans", "bins"):
                self.require(getattr(self, name) > 0, name, "positive")

        @property
        def longest(self) -> int:
            """Tokens of the longest window."""
            return MULTIPLES[-1] * self.trained_length

        def build(self, source: PackedText) -> "LossByPosition":
            """Choose the text. Raises ConfigError if the corpus has too little held-out text."""
            return LossByPosition(self, source)

    def __init__(self, config: Config, source: PackedText) -> None:
        self.width, self.num_bins = config.trained_length // BINS, BINS * MULTIPLES[-1]
        self.trained_length, self.scored = config.trained_length, config.bins
        before, held_out = self.num_bins - 1, source.store.val.tokens
        length = (before + config.bins) * self.width + 1
        room = (len(held_out) - length) // config.spans
        if room < length:
            needed = (config.spans + 1) * length
            valid = f"fewer, for {needed:,} held-out tokens; this corpus has {len(held_out):,}"
            raise ConfigError("benchmarks.spans", config.spans, valid)
        starts = np.arange(config.spans) * room
        texts = held_out[starts[:, None] + np.arange(length)].astype(np.int64)
        self.texts = torch.from_numpy(texts)  # (B, length); the text that is scored follows that of `before` bins

    def run(self, model: Transformer, *, batch_tokens: int) -> Measured:
        """Return `bench/loss_at_<n>`, of the bin that ends at position n, and `bench/loss_<k>x`.

        The latter is the mean from half of k times the trained length up to it. What failed is named with the reason.
        """
        try:
            losses = self.losses(model, batch_tokens=batch_tokens)
        except Exception as error:  # the training does not depend on it
            return Measured({}, {"positions": described(error)})
        ends = self.width * (np.arange(self.num_bins) + 1)
        scores = {f"bench/loss_at_{end}": loss for end, loss in zip(ends.tolist(), losses.tolist(), strict=True)}
        for multiple in MULTIPLES:
            upper = multiple * self.trained_length
            within = (ends > upper // 2) & (ends <= upper)
            scores[f"bench/loss_{multiple}x"] = float(losses[within].mean())
        return Measured(scores, {})

    @torch.no_grad()
    def losses(self, model: Transformer, *, batch_tokens: int) -> np.ndarray:
        """Return the mean nats per token in each bin of positions, (bins,) float64."""
        nats = np.zeros(self.num_bins)
        with evaluating(model):
            for start, length in self._windows():
                window = self.texts[:, start * self.width : (start + length) * self.width + 1]
                rows = max(batch_tokens // (length * self.width), 1)
                for part in window.to(model.embedding.device).split(rows):
                    losses = token_nats(model(part[:, :-1]).logits, part[:, 1:])  # (rows, T)
                    by_bin = losses.double().unflatten(1, (length, -1)).sum((0, 2)).cpu().numpy()
                    first = max(self.num_bins - 1 - start, 0)  # bin of the window in which the scored text begins
                    nats[first:length] += by_bin[first:]
        return nats / (len(self.texts) * self.scored * self.width)

    def _windows(self) -> Iterator[tuple[int, int]]:
        """Yield start and length of each window in bins, counted from the beginning of the texts."""
        end = self.num_bins - 1 + self.scored
        for start in range(end):
            yield start, min(self.num_bins, end - start)
