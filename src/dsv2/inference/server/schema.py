"""What clients of OpenAI's endpoints may send, as requests of the engine."""

import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dsv2.data.chat import ChatTemplate
from dsv2.inference.engine.request import Request
from dsv2.inference.reader import Reader
from dsv2.inference.sampling import Sampling

MOST_CHOICES = 128  # answers to one HTTP request
MOST_ALTERNATIVES = 20

Ids = Annotated[list[int], Field(min_length=1)]
Zero = Literal[0] | None


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class Body(BaseModel):
    """What the bodies of both endpoints have in common.

    A field that is not there, or has another value than what is done, is refused rather than ignored. `top_k`, `min_p`
    and `repetition_penalty` are not OpenAI's; its client sends them as `extra_body`.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
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
    user: str | None = None
    frequency_penalty: Zero = 0
    presence_penalty: Zero = 0
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @property
    def samples(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    def _requests(self, reader: Reader, prompts: Sequence[Sequence[int]], **more: Any) -> list[Request]:
        """Return a request per choice: those of the first prompt, then those of the second. Raises ValueError."""
        samples = self.samples
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
                prompt=prompt,
                sampling=sampling,
                sample=sample,
                stops=tuple(stops),
                stop_ids=frozenset([reader.tokenizer.end_id]),
                **more,
            )
            for prompt in prompts
            for sample in range(samples)
        ]


class Completion(Body):
    """The body of `POST /v1/completions`."""

    prompt: str | Annotated[list[str], Field(min_length=1)] | Ids | Annotated[list[Ids], Field(min_length=1)]
    max_tokens: int | None = Field(16, ge=0)
    logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    echo: bool | None = False
    best_of: int | None = None
    suffix: Literal[""] | None = None

    def requests(self, reader: Reader) -> list[Request]:
        """Return a request per choice. Raises ValueError."""
        if self.best_of not in (None, self.samples):
            raise ValueError(f"best_of={self.best_of}: must be n={self.samples}; choosing among more is not offered")
        prompts = (
            self.prompt if isinstance(self.prompt, list) and not isinstance(self.prompt[0], int) else [self.prompt]
        )
        return self._requests(
            reader,
            [reader.prompt(prompt) if isinstance(prompt, str) else prompt for prompt in prompts],
            max_new_tokens=16 if self.max_tokens is None else self.max_tokens,
            log_probabilities=self.logprobs is not None,
            alternatives=self.logprobs or 0,
            score_prompt=bool(self.echo) and self.logprobs is not None,
        )


class Part(BaseModel):
    """Text, as clients send it that could also send images."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message; an answer that is sent back has more fields, which are empty."""

    model_config = ConfigDict(extra="forbid")
    role: str
    content: str | list[Part]
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None

    def plain(self) -> dict[str, str]:
        """Return what a chat template reads."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text}


class Chat(Body):
    """The body of `POST /v1/chat/completions`."""

    messages: list[ChatMessage]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)

    def requests(self, reader: Reader, chat: ChatTemplate, context: int) -> list[Request]:
        """Return a request per choice, which may by default fill the context. Raises ValueError."""
        if self.top_logprobs and not self.logprobs:
            raise ValueError(f"top_logprobs={self.top_logprobs}: must go with logprobs=true")
        most = [given for given in (self.max_completion_tokens, self.max_tokens) if given is not None]
        return self._requests(
            reader,
            [chat.prompt([message.plain() for message in self.messages])],
            max_new_tokens=min(most, default=context),
            log_probabilities=bool(self.logprobs),
            alternatives=self.top_logprobs or 0,
        )
