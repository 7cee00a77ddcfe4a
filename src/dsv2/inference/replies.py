"""Replies to prompts, several to each, continued together by the engine."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from dsv2.data.tokenizer import Tokenizer
from dsv2.inference.engine.engine import Engine
from dsv2.inference.engine.request import Finish, Generation, Request
from dsv2.inference.sampling import Sampling
from dsv2.models.transformer import Transformer

ROWS = 64  # replies that are continued at a time


class Reply(NamedTuple):
    """One reply to a prompt."""

    tokens: list[int]  # with the stop id, if one ended it
    log_probabilities: list[float]  # of each token, at the temperature at which it was drawn
    finish: Finish
    text: str  # without the stop id

    @property
    def stopped(self) -> bool:
        """Whether it ended itself, rather than at the most tokens that it might have."""
        return self.finish == "stop"


def reply_to(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    sampling: Sampling,
    max_new_tokens: int,
    stop_ids: Collection[int],
    first: int = 0,
    seen: Callable[[int], Any] = lambda replies: None,
) -> list[list[Reply]]:
    """Return `samples` replies to each prompt, calling `seen` with the number of those that have ended, as they do.

    A reply is a function of model, prompt, sampling and its number, which is `first` plus its place among all replies,
    except for the rounding of products whose shapes depend on the other prompts.
    """
    engine = Engine(
        model,
        num_rows=min(ROWS, len(prompts) * samples),
        max_length=max(map(len, prompts)) + max_new_tokens,
        ids=tokenizer.ids,
    )
    stops = frozenset(stop_ids)
    groups = [
        [
            engine.submit(
                Request(
                    prompt=prompt,
                    max_new_tokens=max_new_tokens,
                    sampling=sampling,
                    sample=first + number * samples + sample,
                    stop_ids=stops,
                    log_probabilities=True,
                )
            )
            for sample in range(samples)
        ]
        for number, prompt in enumerate(prompts)
    ]
    for update in engine.run():
        if update.finish is not None:
            seen(1)
    return [[_reply(generation, tokenizer) for generation in group] for group in groups]


def _reply(generation: Generation, tokenizer: Tokenizer) -> Reply:
    assert generation.finish is not None
    told = generation.tokens[:-1] if generation.finish == "stop" else generation.tokens
    scores = [score.log_probability for score in generation.scores]
    return Reply(generation.tokens, scores, generation.finish, tokenizer.decode(told))
