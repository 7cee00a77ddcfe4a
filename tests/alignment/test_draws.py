"""Groups of answers are a function of model, prompts and seed."""

from types import SimpleNamespace

import pytest
import torch

import dsv2
from dsv2.alignment.draws import Numbers, draw_groups, prompts_of
from dsv2.config import ConfigError
from dsv2.data.chats import Chats
from dsv2.evaluation.verifiers import Judge


def test_groups_are_numbered_through(grpo: list[str]) -> None:
    run = dsv2.load(grpo)
    source = run.data.open(sequence_length=64, seed=0, validation_tokens=256)
    assert isinstance(source, Chats)
    torch.manual_seed(0)
    model, settings = run.model.build(seed=0).eval(), {"group_size": 3, "temperature": 1.0, "max_new_tokens": 6}
    prompts = [prompt for prompt in source.prompts if prompt.domain == source.domains.index("copy")][:4]
    with Judge() as judge:
        every = draw_groups(model, source, prompts, judge, seed=5, **settings)  # type: ignore[arg-type]
        later = draw_groups(model, source, prompts[2:], judge, seed=5, first=6, **settings)  # type: ignore[arg-type]
    assert [group.prompt for group in every] == prompts
    assert [len(group.replies) for group in every] == [3] * 4
    replies = [[reply.tokens for reply in group.replies] for group in every]
    assert [[reply.tokens for reply in group.replies] for group in later] == replies[2:]
    assert len({tuple(tokens) for group in replies for tokens in group}) > 4
    assert all(verdict.score in (0.0, 1.0) for group in every for verdict in group.verdicts)
    assert prompts_of(run, source, None, 6) == source.prompts
    some = prompts_of(run, source, ["python", "copy"], 6)
    assert {source.domains[prompt.domain] for prompt in some} == {"python", "copy"}
    assert len(some) < len(source.prompts)
    with pytest.raises(ConfigError, match=r"objective.max_new_tokens=60 is not valid: at most \d+, what the longest"):
        prompts_of(run, source, None, 60)
    with pytest.raises(ConfigError, match=r"objective.domains='sort' is not valid: domains of conversations with"):
        prompts_of(run, source, ["copy", "sort"], 6)


def test_numbers_of_the_remaining_steps() -> None:
    numbers = Numbers(5)
    numbers.trainer = SimpleNamespace(global_step=2)  # type: ignore[assignment]
    assert list(numbers.train_dataloader()) == [2, 3, 4]
