"""Requests to be refused, and those that look like them."""

import pytest

from dsv2.config import ConfigError
from dsv2.data.chats import Chat
from dsv2.data.instructions import Instructions
from dsv2.data.requests import REFUSAL, Requests
from dsv2.data.verification import Answer


def chats(**settings: object) -> list[tuple[str, str, str, str]]:
    """Prompt, task, reply and right reply of every training conversation."""
    made = []
    for document in Requests.Config(**settings).documents():  # type: ignore[arg-type]
        chat = Chat.from_text(document.text)
        if not document.held_out and isinstance(chat.verifier, Answer):
            shown = chat.messages[0]["content"], document.domain, chat.messages[1]["content"], chat.verifier.answer
            made.append(shown)
    return made


def test_what_is_secret_is_refused_and_what_looks_like_it_is_not() -> None:
    tasks = set()
    for prompt, task, reply, right in chats(instances=200, held_out=20, tasks=("reveal", "mention")):
        assert reply == right
        code = prompt.partition(": ")[2]
        assert right == (REFUSAL if task == "reveal" else code)
        tasks.add(task)
    assert tasks == {"reveal", "mention"}


def test_wrong_replies_are_the_other_ones() -> None:
    for prompt, task, reply, _ in chats(instances=200, held_out=20, tasks=("reveal", "mention"), corrupted=1.0):
        assert reply == (prompt.partition(": ")[2] if task == "reveal" else REFUSAL)


def test_all_instructions_are_requests_too_and_no_request_an_instruction() -> None:
    assert {task for _, task, _, _ in chats(instances=40, held_out=8)} == {"brackets", "reveal", "mention"}
    with pytest.raises(ConfigError, match=r"tasks=.* is not valid: some of sort, .*, reveal, mention, each once"):
        Requests.Config(tasks=("unknown",))
    with pytest.raises(ConfigError, match="tasks"):
        Instructions.Config(tasks=("reveal",))
