"""Quiet training."""

import pytest

from dsv2.data.chats import Chats
from dsv2.training import machine


@pytest.fixture(autouse=True)
def quietly() -> None:
    """Train as the commands do, so that what is said is the project's own."""
    machine.prepare()


@pytest.fixture
def chatty(quick: list[str]) -> list[str]:
    """Overrides of a run of 12 steps with 8 answers each, in groups of 4, to 200 instructions."""
    kept = [
        word
        for word in quick
        if not word.startswith(("data", "trainer.sequence_length", "trainer.batch", "trainer.tokens"))
    ]
    data = ["data=instructions", "data.vocab_size=300", "data.instances=200", "data.held_out=40"]
    data += ["data.tasks=[copy,reverse,python]", "data.sizes=[2,3]", "trainer.sequence_length=64"]
    sizes = ["trainer.batch.size=8", f"trainer.tokens={12 * 8 * 64}", "trainer.validation_tokens=256"]
    return [*kept, *data, *sizes]


@pytest.fixture
def grpo(chatty: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The same with GRPO, from random weights that say something different each time.

    Eleven ids end an answer, so that every fifth or so ends itself within its six tokens.
    """
    monkeypatch.setattr(Chats, "stop_ids", frozenset(range(0, 300, 30)) | {7})
    settings = [
        "objective=grpo",
        "objective.group_size=4",
        "objective.max_new_tokens=6",
        "objective.rewards.stopped=0.5",
    ]
    return [*chatty, *settings, "model.init_std=0.15", "optim.lr=1e-3", "optim.schedule.warmup_steps=2"]
