"""Reward models: the scalar head, and a trained one that is read to reward answers.

B answers, T tokens of prompt and answer, d width of the model.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dsv2.config import ConfigError
from dsv2.data.tokenizer import Tokenizer
from dsv2.models.moe.router import Routing
from dsv2.models.transformer import Transformer
from dsv2.training.origin import Origin
from dsv2.training.saved import open_run

STATE = ("score_head", "score_mean", "score_std")  # what a reward model has besides its transformer
READ = 64  # answers at a time


class Rows(NamedTuple):
    """Whole answers with their prompts, one per row."""

    tokens: Tensor  # (B, T) int64
    positions: Tensor  # (B, T) int64, -1 for padding

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]], *, pad_id: int) -> "Rows":
        """Return texts as rows, padded on the right."""
        longest = max(map(len, texts))
        tokens = torch.tensor([[*text, *[pad_id] * (longest - len(text))] for text in texts])
        places = torch.arange(longest).expand(len(texts), -1)
        lengths = torch.tensor([len(text) for text in texts])
        return cls(tokens, torch.where(places < lengths[:, None], places, -1))


def last_places(positions: Tensor) -> Tensor:
    """Return the place of the last token in each row of positions (B, T), -1 for padding: (B,) int64.

    It is known from where padding is and not from ids, since the token that ends an answer may pad as well.
    """
    places = torch.arange(positions.shape[1], device=positions.device)
    return torch.where(positions >= 0, places, -1).amax(1)


def scores(model: Transformer, head: Tensor, rows: Rows, **settings: Any) -> tuple[Tensor, tuple[Routing, ...]]:
    """Return the score of each row, (B,) float32, and the routings.

    It is the product of the head (d,) with the state of the row's last token. `settings` are those of
    `Transformer.hidden`.
    """
    device = model.embedding.device
    states, routings = model.hidden(rows.tokens.to(device), positions=rows.positions, **settings)
    last = last_places(rows.positions).to(device)
    return states[torch.arange(len(last), device=device), last].float() @ head.float(), routings


def scores_of(model: Transformer, head: Tensor, texts: Sequence[Sequence[int]], *, pad_id: int) -> Tensor:
    """Return the score of each text, (B,) float32, `READ` of them at a time."""
    parts = [
        scores(model, head, Rows.of(texts[first : first + READ], pad_id=pad_id))[0]
        for first in range(0, len(texts), READ)
    ]
    return torch.cat(parts)


class RewardModel:
    """A trained reward model, which is only read."""

    def __init__(self, model: Transformer, head: Tensor, mean: Tensor, std: Tensor) -> None:
        self.model, self.head, self.mean, self.std = model, head, mean, std

    @classmethod
    def open(cls, key: str, run: Origin.Config, tokenizer: Tokenizer) -> "RewardModel":
        """Read the run of a reward model. Raises ConfigError at `key` if it is none, or reads other tokens."""
        origin = run.open(key)
        if set(origin.others) != set(STATE):
            raise ConfigError(key, run.run, "a run with objective=reward, which has a reward model")
        if origin.tokenizer is None or origin.tokenizer.hash != tokenizer.hash:
            raise ConfigError(key, run.run, "a run with the same tokenizer, so that it reads the answers' own tokens")
        model = open_run(origin.folder, step=origin.step).model
        return cls(model, *(origin.others[name] for name in STATE))

    def to(self, device: torch.device) -> "RewardModel":
        """Move it to a device, and return it."""
        self.model.to(device)
        self.head, self.mean, self.std = (each.to(device) for each in (self.head, self.mean, self.std))
        return self

    @torch.no_grad()
    def rewards(self, texts: Sequence[Sequence[int]], *, pad_id: int) -> Tensor:
        """Return the rewards of answers with their prompts, (B,) float32 on the CPU.

        They have mean 0 and standard deviation 1 over the held-out answers on which the reward model was validated, so
        that those of several models can be added.
        """
        return ((scores_of(self.model, self.head, texts, pad_id=pad_id) - self.mean) / self.std).cpu()
