"""Generated instructions: right and wrong replies as their verifiers see them, and what is held out."""

import json
import random

import pytest

from dsv2.config import ConfigError
from dsv2.data.chats import Chat
from dsv2.data.instructions import TASKS, Instructions
from dsv2.data.verification import Answer, Calls


def chats(**settings: object) -> list[tuple[str, str, Chat, bool]]:
    """Prompt, task, conversation and side of every document."""
    documents = list(Instructions.Config(**settings).documents())  # type: ignore[arg-type]
    made = [(Chat.from_text(document.text), document) for document in documents]
    return [(chat.messages[0]["content"], each.domain, chat, bool(each.held_out)) for chat, each in made]


def is_right(chat: Chat) -> bool:
    """Whether a reply is right, worked out anew."""
    reply = chat.messages[-1]["content"]
    if isinstance(chat.verifier, Answer):
        return reply == chat.verifier.answer
    assert isinstance(chat.verifier, Calls)
    function = eval(chat.verifier.template.removeprefix("f = ").replace("{reply}", reply))
    return all(eval(call, {"f": function}) == eval(value) for call, value in chat.verifier.calls.items())


@pytest.mark.parametrize("task", TASKS)
def test_replies_are_right_and_corrupted_ones_wrong(task: str) -> None:
    for _, domain, chat, _ in chats(tasks=(task,), instances=300, held_out=20):
        assert domain == task
        assert is_right(chat)
    every = chats(tasks=(task,), instances=300, held_out=20, corrupted=1.0)
    assert not any(is_right(chat) for _, _, chat, held_out in every if not held_out)
    assert all(is_right(chat) for _, _, chat, held_out in every if held_out), "what is validated is right"


def test_the_answers_are_those_that_the_words_ask_for() -> None:
    """By other means than the generator's."""
    for prompt, task, chat, _ in chats(instances=600, held_out=60, sizes=(1, 6)):
        asked, reply = prompt.partition(": ")[2], chat.messages[-1]["content"]
        if task == "sort":
            assert "".join(sorted(asked.replace(" ", ""))) == reply.replace(" ", "")
        elif task == "reverse":
            assert asked[::-1] == reply
        elif task == "copy":
            assert asked == reply
        elif task == "brackets":
            assert asked[::-1].translate(str.maketrans("([{<", ")]}>")) == reply
        elif task == "arithmetic":
            assert str(eval(asked.replace(" ", ""))) == reply.replace(" ", "")
        else:
            words = asked.replace(", then", "").replace("times", "*").replace("plus", "+").replace("minus", "-").split()
            value = 7
            for sign, number in zip(words[1::2], words[2::2], strict=True):
                value = eval(f"{value} {sign} {number}")
            assert eval(reply, {"x": 7}) == value


def test_half_of_the_replies_are_wrong_where_asked_for() -> None:
    right = [
        is_right(chat) for _, _, chat, held_out in chats(instances=1200, held_out=6, corrupted=0.5) if not held_out
    ]
    assert 0.45 < sum(right) / len(right) < 0.55


def test_no_prompt_is_on_both_sides() -> None:
    sides: dict[bool, set[str]] = {True: set(), False: set()}
    for prompt, _, _, held_out in chats(instances=3000, held_out=600, sizes=(1, 3)):
        sides[held_out].add(prompt)
    assert not sides[True] & sides[False]


def test_fewer_instances_are_the_first_of_more_and_tasks_take_turns() -> None:
    few, more = ([chat for _, _, chat, held_out in chats(instances=n, held_out=6) if not held_out] for n in (50, 120))
    assert more[:50] == few
    tasks = [task for _, task, _, _ in chats(instances=12, held_out=6)]
    assert tasks == [*TASKS] * 3
    assert chats(instances=30) == chats(instances=30)


def test_all_is_valid_json_and_sizes_are_kept() -> None:
    config = Instructions.Config(instances=300, held_out=30, sizes=(3, 4), tasks=("copy", "brackets"))
    for document in config.documents():
        asked = json.loads(document.text)["messages"][0]["content"].partition(": ")[2]
        assert len(asked.split()) in (3, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ("sorting",)}, r"tasks=\('sorting',\) is not valid: some of sort, reverse"),
        ({"tasks": ()}, "tasks"),
        ({"instances": 0}, "instances=0 is not valid: positive"),
        ({"sizes": (3, 2)}, "two numbers from 1 to 26, ascending"),
        ({"sizes": (1, 27)}, "two numbers from 1 to 26, ascending"),
        ({"corrupted": 1.5}, "between 0 and 1"),
        ({"digits": 0}, "digits=0 is not valid: positive"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Instructions.Config(**settings)  # type: ignore[arg-type]


def test_too_few_instructions_to_hold_any_out_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "copy", lambda rng, size: TASKS["sort"](random.Random(0), size))
    with pytest.raises(ConfigError, match="larger sizes: next to no instruction of copy"):
        list(Instructions.Config(tasks=("copy",), sizes=(2, 2)).documents())
