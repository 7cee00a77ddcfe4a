"""What clients of OpenAI's completions may send, as requests of the engine, and the parts of what they get."""

import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dsv2.data.tokenizer import Tokenizer
from dsv2.inference.engine.request import Finish, Generation, Request, Scored
from dsv2.inference.reader import Reader
from dsv2.inference.sampling import Sampling

MOST_CHOICES = 128  # answers to one HTTP request
MOST_ALTERNATIVES = 20
LEAST = -9999.0  # stands for minus infinity, which JSON lacks, as with OpenAI
NAMES: dict[Finish, str] = {"stop": "stop", "length": "length", "capacity": "length", "cancelled": "length"}

Ids = Annotated[list[int], Field(min_length=1)]
Zero = Literal[0] | None


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class Completion(BaseModel):
    """The body of `POST /v1/completions`.

    A field that is not here, or has another value than what is done, is refused rather than ignored. `top_k`, `min_p`
    and `repetition_penalty` are not OpenAI's; its client sends them as `extra_body`.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    prompt: str | Annotated[list[str], Field(min_length=1)] | Ids | Annotated[list[Ids], Field(min_length=1)]
    max_tokens: int | None = Field(16, ge=0)
    n: int | None = Field(1, ge=1, le=MOST_CHOICES)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    seed: int | None = Field(None, ge=0, lt=2**64)
    temperature: float | None = 1.0
    top_p: float | None = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    echo: bool | None = False
    user: str | None = None
    best_of: int | None = None
    frequency_penalty: Zero = 0
    presence_penalty: Zero = 0
    suffix: Literal[""] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    def requests(self, reader: Reader) -> list[Request]:
        """Return a request per choice: those of the first prompt, then those of the second. Raises ValueError."""
        samples = self.n or 1
        if self.best_of not in (None, samples):
            raise ValueError(f"best_of={self.best_of}: must be n={samples}; choosing among more is not offered")
        prompts = (
            self.prompt if isinstance(self.prompt, list) and not isinstance(self.prompt[0], int) else [self.prompt]
        )
        if len(prompts) * samples > MOST_CHOICES:
            raise ValueError(
                f"n={samples}: {len(prompts)} prompts with as many answers each are more than {MOST_CHOICES}"
            )
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        sampling = Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=secrets.randbits(64) if self.seed is None else self.seed,
        )
        return [
            Request(
                prompt=reader.prompt(prompt) if isinstance(prompt, str) else prompt,
                max_new_tokens=16 if self.max_tokens is None else self.max_tokens,
                sampling=sampling,
                sample=sample,
                stops=tuple(stops),
                stop_ids=frozenset([reader.tokenizer.end_id]),
                log_probabilities=self.logprobs is not None,
                alternatives=self.logprobs or 0,
                score_prompt=bool(self.echo) and self.logprobs is not None,
            )
            for prompt in prompts
            for sample in range(samples)
        ]


def choice(index: int, text: str, finish: Finish | None, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    """Return one entry of `choices`."""
    return {
        "index": index,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": None if finish is None else NAMES[finish],
    }


def logprobs(
    tokenizer: Tokenizer, tokens: Sequence[int], scores: Sequence[Scored | None], start: int
) -> dict[str, Any]:
    """Return the log-probabilities of tokens, whose text begins at character `start`; None for a token without."""
    texts = [_text(tokenizer, token) for token in tokens]
    return {
        "tokens": texts,
        "token_logprobs": [None if score is None else max(score.log_probability, LEAST) for score in scores],
        "top_logprobs": [None if score is None else _top(tokenizer, score) for score in scores],
        "text_offset": [start + sum(map(len, texts[:place])) for place in range(len(texts))],
    }


def _top(tokenizer: Tokenizer, score: Scored) -> dict[str, float]:
    """Return the texts of the most likely tokens, of equal ones the likeliest, with their log-probabilities."""
    top = dict[str, float]()
    for token, log in score.alternatives:
        top.setdefault(_text(tokenizer, token), max(log, LEAST))
    return top


def whole(tokenizer: Tokenizer, index: int, generation: Generation, body: Completion) -> dict[str, Any]:
    """Return the entry of `choices` of an answer that has ended."""
    request = generation.request
    before = tokenizer.decode(request.prompt) if body.echo else ""
    tokens, scores = list(generation.tokens), list[Scored | None](generation.scores)
    if body.echo:
        tokens, scores = [*request.prompt, *tokens], [None, *generation.prompt_scores, *scores]
    logs = None if body.logprobs is None else logprobs(tokenizer, tokens, scores, 0)
    return choice(index, before + generation.text, generation.finish, logs)


def usage(generations: Sequence[Generation], samples: int) -> dict[str, int]:
    """Return how many tokens were read and made; a prompt counts once however many answers it has."""
    read = sum(len(generation.request.prompt) for generation in generations[::samples])
    made = sum(len(generation.tokens) for generation in generations)
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}


def _text(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.bytes_of(token).decode(errors="replace")
