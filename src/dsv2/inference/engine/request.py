"""Requests of the engine, what they have produced so far, and how they end."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dsv2.config import ConfigBase
from dsv2.inference.engine.text import TextStream
from dsv2.inference.sampling import Sampling

# A stop id or stop string; max_new_tokens; the end of the row's room; `Engine.cancel`.
Finish = Literal["stop", "length", "capacity", "cancelled"]


class QueueFull(Exception):
    """The engine's queue has no place for a request; later it may."""


@dataclass(frozen=True, kw_only=True)
class Request(ConfigBase):
    """A prompt and how it is to be continued."""

    prompt: Sequence[int]  # token ids, at least one
    max_new_tokens: int  # 0 scores the prompt, or does nothing
    sampling: Sampling = field(default_factory=Sampling)
    sample: int = 0  # which of several answers to the same prompt; they differ in their draws
    stop_ids: frozenset[int] = frozenset()  # each ends the answer and is its last token
    stops: tuple[str, ...] = ()  # each ends the answer's text, before itself
    log_probabilities: bool = False  # of the answer's tokens
    alternatives: int = 0  # the most likely tokens at each place, with their log-probabilities
    score_prompt: bool = False  # also the log-probabilities of the prompt's tokens, which are all computed again

    def __post_init__(self) -> None:
        self.require(len(self.prompt) > 0, "prompt", "at least one token")
        self.require(self.max_new_tokens >= 0, "max_new_tokens", "0 or more")
        self.require(all(self.stops), "stops", "strings of at least one character")
        self.require(self.alternatives >= 0, "alternatives", "0 or more")

    @property
    def scored(self) -> bool:
        """Whether log-probabilities are wanted at all."""
        return self.log_probabilities or self.alternatives > 0 or self.score_prompt


class Scored(NamedTuple):
    """A token's log-probability, at the temperature of its request, and the most likely tokens with theirs."""

    log_probability: float
    alternatives: tuple[tuple[int, float], ...] = ()


class Generation:
    """One request in the engine: its answer so far, and whether and how it has ended."""

    def __init__(self, request: Request, text: TextStream | None, seen: Tensor | None) -> None:
        self.request = request
        self.tokens: list[int] = []  # the answer, with the stop id that ended it
        self.scores: list[Scored] = []  # of each of `tokens`, if wanted
        self.prompt_scores: list[Scored] = []  # of each token of the prompt but the first, if wanted
        self.finish: Finish | None = None
        self.stream = text
        self.seen = seen  # (V,) bool, tokens of prompt and answer, if there is a penalty for them
        self.row: int | None = None  # of the cache, while it runs
        self.prefilled = 0  # tokens of the prompt that are in the cache
        self.stream_id = request.sampling.stream(request.sample)

    @property
    def text(self) -> str:
        """The answer's text so far, up to a stop string or id."""
        assert self.stream is not None, "the engine has no tokenizer"
        return self.stream.text

    def take(self, token: int, room: int) -> "Update":
        """Add a token to the answer, in a row with room for `room` tokens in total; return what is new."""
        self.tokens.append(token)
        if self.seen is not None:
            self.seen[token] = True
        stopped = token in self.request.stop_ids
        text = "" if self.stream is None or stopped else self.stream.add(token)
        if stopped or (self.stream is not None and self.stream.stopped):
            self.finish = "stop"
        elif len(self.tokens) == self.request.max_new_tokens:
            self.finish = "length"
        elif len(self.request.prompt) + len(self.tokens) == room:
            self.finish = "capacity"
        if self.finish is not None and self.stream is not None:
            text += self.stream.end()
        return Update(self, text, self.finish, self.scores[-1] if self.scores else None)


class Update(NamedTuple):
    """What a step of the engine added to a generation; complete in itself, for readers in other threads."""

    generation: Generation
    text: str  # what is certain by now, which may be none
    finish: Finish | None  # if it has ended with this
    score: Scored | None  # of the token, if wanted


def seen_tokens(request: Request, vocab_size: int, device: torch.device) -> Tensor | None:
    """Return (V,) bool, the tokens of the prompt, or None if its sampling has no penalty for them."""
    if request.sampling.repetition_penalty == 1:
        return None
    seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
    seen[torch.tensor(list(request.prompt), device=device)] = True
    return seen
