"""Answers to the prompts of a source, drawn in groups and verified, for objectives that train on them."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import lightning as L
from tqdm import tqdm

from dsv2.config import ConfigError
from dsv2.data.chats import Chats, Prompt
from dsv2.evaluation.following import Verified, verified
from dsv2.evaluation.verifiers import Judge
from dsv2.inference.replies import reply_to
from dsv2.inference.sampling import Sampling
from dsv2.models.transformer import Transformer
from dsv2.training.objective import Objective
from dsv2.training.run import Run


class Draws:
    """Base of objectives that train on answers which are drawn in groups."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Objective.Config):
        group_size: int = 8  # answers per prompt
        domains: tuple[str, ...] | None = None  # of the prompts that are answered; None: all
        temperature: float = 1.0  # at which answers are drawn
        max_new_tokens: int = 32  # of an answer

        def __post_init__(self) -> None:
            self.require(self.group_size >= 2, "group_size", "at least 2, which are compared with one another")
            self.require(0 < self.temperature < float("inf"), "temperature", "positive and finite")
            self.require(self.max_new_tokens > 0, "max_new_tokens", "positive")
            self.require(self.domains != (), "domains", "at least one, or null for all")

        def require_fits(self, run: Run.Config) -> None:
            if not isinstance(run.data, Chats.Config):
                raise ConfigError("data", run.data.label, "conversations with prompts, such as data=instructions")
            if self.max_new_tokens >= run.trainer.sequence_length:
                valid = f"less than trainer.sequence_length={run.trainer.sequence_length}, of prompt and answer"
                raise ConfigError("objective.max_new_tokens", self.max_new_tokens, valid)


def prompts_of(run: Run.Config, source: Chats, domains: Sequence[str] | None, max_new_tokens: int) -> list[Prompt]:
    """Return the training prompts that can be verified, of these domains or of all.

    Raises ConfigError unless there are some of each, all with room for an answer.
    """
    for domain in domains or ():
        if not any(prompt.domain == place for place in _places(source, [domain]) for prompt in source.prompts):
            valid = f"domains of conversations with a verifier, of {', '.join(source.domains)}"
            raise ConfigError("objective.domains", domain, valid)
    if not source.prompts:
        raise ConfigError("data", run.data.label, "conversations with a verifier, which none of them has")
    prompts = within(source, source.prompts, domains)
    room = run.trainer.sequence_length - max(len(prompt.ids) for prompt in prompts)
    if max_new_tokens > room:
        valid = f"at most {room}, what the longest prompt leaves of trainer.sequence_length"
        raise ConfigError("objective.max_new_tokens", max_new_tokens, valid)
    return prompts


def within(source: Chats, prompts: Sequence[Prompt], domains: Sequence[str] | None) -> list[Prompt]:
    """Return the prompts of some domains, or of all."""
    if domains is None:
        return list(prompts)
    places = _places(source, domains)
    return [prompt for prompt in prompts if prompt.domain in places]


def _places(source: Chats, domains: Sequence[str]) -> set[int]:
    return {source.domains.index(domain) for domain in domains if domain in source.domains}


def draw_groups(
    model: Transformer,
    source: Chats,
    prompts: Sequence[Prompt],
    judge: Judge,
    *,
    group_size: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    first: int = 0,
    progress: bool = False,
) -> list[Verified]:
    """Draw `group_size` answers to each prompt and have them verified.

    `first` is the number of the first answer among all that are drawn with this seed. `progress` shows a bar.
    """
    count = len(prompts) * group_size
    with tqdm(total=count, desc="answers", leave=False, disable=not progress, file=sys.stderr) as bar:
        replies = reply_to(
            model,
            source.store.tokenizer,
            [prompt.ids for prompt in prompts],
            samples=group_size,
            sampling=Sampling(temperature=temperature, seed=seed),
            max_new_tokens=max_new_tokens,
            stop_ids=source.stop_ids,
            first=first,
            seen=bar.update,
        )
    return verified(judge, prompts, replies)


class Numbers(L.LightningDataModule):
    """The numbers of the remaining steps, whose answers do not exist before the step before is done."""

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.num_steps = num_steps

    def train_dataloader(self) -> "Numbers":
        return self

    def __iter__(self) -> Iterator[int]:
        assert self.trainer is not None
        yield from range(self.trainer.global_step, self.num_steps)
