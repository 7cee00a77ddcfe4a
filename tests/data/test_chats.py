"""Conversations in sequences: what is learned of them, what sees what, and what is refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv2.config import ConfigError
from dsv2.data.chat import ChatTemplate, Conversation
from dsv2.data.chats import ChatFiles, Chats, packed
from dsv2.data.source import NOT_SCORED, Batch
from dsv2.printing import warned

SIZES: dict[str, Any] = {"sequence_length": 64, "seed": 0, "validation_tokens": 640}


def chat(asked: str, *replies: str, **more: Any) -> dict[str, Any]:
    """A conversation in which every reply but the last is followed by the same question."""
    messages = []
    for reply in replies:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
    return {"messages": messages} | more


def written(folder: Path, chats: Sequence[Any]) -> ChatFiles.Config:
    """The config of a corpus of these lines."""
    lines = [line if isinstance(line, str) else json.dumps(line) for line in chats]
    (folder / "chats.jsonl").write_text("\n".join(lines) + "\n")
    return ChatFiles.Config(path=str(folder / "*.jsonl"), vocab_size=300, val_ratio=0.2)


def some(count: int = 60) -> list[dict[str, Any]]:
    """Conversations of several lengths, in two domains, some of them verified."""
    return [
        chat(
            f"say {number}",
            *(["well " * (number % 5) + str(number)] * (1 + number % 2)),
            domain=("odd" if number % 2 else "even"),
            verifier={"answer": str(number)} if number % 3 == 0 else None,
        )
        for number in range(count)
    ]


@pytest.fixture
def source(tmp_path: Path) -> Chats:
    return written(tmp_path, some()).open(**SIZES)


def documents(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Ids and targets of each conversation of a batch, found by the positions."""
    assert batch.positions is not None
    found: list[tuple[list[int], list[int]]] = []
    for ids, targets, positions in zip(batch.inputs, batch.targets, batch.positions, strict=True):
        for token, target, position in zip(ids.tolist(), targets.tolist(), positions.tolist(), strict=True):
            if position == 0:
                found.append(([], []))
            if position >= 0:
                found[-1][0].append(token)
                found[-1][1].append(target)
    return found


# ---- pitfall 1: masks come from places -------------------------------------------------------------------------------


def test_the_stop_token_is_learned_where_padding_has_the_same_id() -> None:
    """By hand: prompt 5 6, reply 7 2, then padding with id 2."""
    batch = packed([[Conversation([5, 6, 7, 2], [False, False, True, True])]], length=6, pad_id=2)
    assert batch.positions is not None
    assert batch.inputs.tolist() == [[5, 6, 7, 2, 2, 2]]
    assert batch.targets.tolist() == [[NOT_SCORED, 7, 2, NOT_SCORED, NOT_SCORED, NOT_SCORED]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, -1, -1]]


def test_an_earlier_turn_may_contain_the_id_of_padding() -> None:
    ids = [2, 5, 7, 2, 5, 8, 2]
    mask = [False, False, True, True, False, True, True]
    batch = packed([[Conversation(ids, mask)]], length=8, pad_id=2)
    none = NOT_SCORED
    assert batch.targets.tolist() == [[none, 7, 2, none, 8, 2, none, none]]


# ---- pitfall 3: neighbours -------------------------------------------------------------------------------------------


def test_positions_begin_anew_and_no_label_crosses_over() -> None:
    first, second = Conversation([5, 6, 7], [False, True, True]), Conversation([8, 9], [True, True])
    batch = packed([[first, second]], length=5, pad_id=0)
    assert batch.positions is not None
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.targets.tolist() == [[6, 7, NOT_SCORED, 9, NOT_SCORED]]


# ---- pitfall 2: whole conversations ----------------------------------------------------------------------------------


def test_every_conversation_is_whole_and_seen_once_per_epoch(source: Chats) -> None:
    batch = source.train(0, source.num_windows)
    split, template = source.store.train, ChatTemplate(source.store.tokenizer)
    ends = [*split.starts[1:].tolist(), len(split.tokens)]
    stored = [split.tokens[first:end].tolist() for first, end in zip(split.starts, ends, strict=True)]
    assert sorted(ids for ids, _ in documents(batch)) == sorted(stored)
    assert sum(map(len, stored)) == len(split.tokens) == int((batch.positions >= 0).sum())
    again = source.train(source.num_windows, source.num_windows)
    assert sorted(documents(again)) == sorted(documents(batch))
    assert not torch.equal(again.inputs, batch.inputs), "in another order"
    in_file = [template.conversation(each["messages"]) for each in some()]
    by_ids = {tuple(ids): mask for ids, mask in in_file}
    for ids, targets in documents(batch):
        mask = by_ids[tuple(ids)]
        expected = [token if learned else NOT_SCORED for token, learned in zip(ids[1:], mask[1:], strict=True)]
        assert targets == [*expected, NOT_SCORED]


def test_a_conversation_beyond_the_limit_is_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = chat("say it", "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 2)
    config = written(tmp_path, [chat(f"say {number}", str(number)) for number in range(30)] + [long])
    lengths = [len(ids) for ids, _ in documents(config.open(**SIZES | {"sequence_length": 300}).train(0, 100))]
    most = sorted(set(lengths))[-2]  # of all but the long one
    warned.clear()
    source = config.open(**SIZES | {"sequence_length": most, "validation_tokens": most})
    batch = source.train(0, source.num_windows)
    total, seen = len(source.store.train.tokens), sum(len(ids) for ids, _ in documents(batch))
    said = capsys.readouterr().err
    assert (
        f"1 of {len(source.store.train.starts)} conversations for training are longer than a sequence of {most}" in said
    )
    assert f"{total - seen} of {total:,} tokens" in said
    assert total - seen == max(lengths)
    assert all(ids[0] == 0 for ids, _ in documents(batch)), "every segment starts where a conversation does"


def test_a_prompt_longer_than_a_sequence_is_refused_with_its_line(tmp_path: Path) -> None:
    config = written(tmp_path, [*some(20), chat("please " * 80, "no"), *some(5)])
    with pytest.raises(
        ConfigError, match=rf"more than \d+, the tokens of the prompt in {tmp_path}/chats.jsonl, line 21"
    ):
        config.open(**SIZES)
    with pytest.raises(ConfigError, match=r"trainer.sequence_length=8 is not valid: "):
        written(tmp_path, some()).open(**SIZES | {"sequence_length": 8, "validation_tokens": 8})


# ---- pitfall 11: the same ids everywhere -----------------------------------------------------------------------------


def test_training_and_prompts_agree_token_by_token_with_one_bos(source: Chats) -> None:
    template = ChatTemplate(source.store.tokenizer)
    trained = [ids for ids, _ in documents(source.train(0, source.num_windows))]
    split = source.store.train
    assert split.numbers is not None
    chats = some()
    verified = [number for number in split.numbers.tolist() if chats[number]["verifier"] is not None]
    assert len(source.prompts) == len(verified) > 0
    for number, prompt in zip(verified, source.prompts, strict=True):
        messages = chats[number]["messages"]
        assert prompt.ids == template.prompt(messages[:-1])
        assert prompt.verifier == (str(number),)
        assert prompt.ids.index(0) == 0
        (whole,) = [ids for ids in trained if ids == template.conversation(messages).ids]
        assert whole[: len(prompt.ids)] == prompt.ids
        assert prompt.ids.count(0) == len(messages) // 2, "one BOS, and what ends each earlier reply"


def test_what_ends_a_reply_ends_an_answer(source: Chats) -> None:
    assert source.stop_ids == {source.store.tokenizer.end_id}


def test_domains_are_those_of_each_conversation(source: Chats) -> None:
    batch = source.train(0, source.num_windows)
    assert source.domains == ("even", "odd")
    for ids, domains, positions in zip(batch.inputs, batch.domains, batch.positions, strict=True):
        text = source.tokenizer.decode(ids[positions >= 0].tolist())
        for begin in (positions == 0).nonzero()[:, 0].tolist():
            asked = int(source.tokenizer.decode(ids[begin:].tolist()).partition("say ")[2].partition("\n")[0])
            assert domains[begin] == asked % 2, text


# ---- bad data --------------------------------------------------------------------------------------------------------

BAD = {
    "no JSON": ("{", "Expecting property name"),
    "no object": ("[1]", "an object with messages and perhaps domain, verifier; it is list"),
    "other keys": ({"text": "x"}, "it has text"),
    "no list": ({"messages": "hello"}, "messages='hello': must be a list of at least one message"),
    "a number": ({"messages": 3}, "messages=3: must be a list of at least one message"),
    "no message": ({"messages": []}, r"messages=\[\]: must be a list of at least one message"),
    "no role": ({"messages": [{"content": "x"}]}, "must have a role, a content and nothing else"),
    "another role": ({"messages": [{"role": "tool", "content": "x"}]}, "must be one of system, user, assistant"),
    "no reply": ({"messages": [{"role": "user", "content": "x"}]}, "the last one must be the assistant's"),
    "an empty reply": (chat("x", ""), r"messages\[1\].content='': must not be empty"),
    "an empty earlier reply": (chat("x", " ", "y"), r"messages\[1\].content=' ': must not be empty"),
    "a list": ({"messages": [{"role": "user", "content": ["x"]}]}, "must be a string"),
    "half a character": ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "must be text in UTF-8"),
    "a verifier": (chat("x", "y", verifier={"answer": 3}), "must be a string"),
    "a domain": (chat("x", "y", domain=3), "domain=3: must be a string"),
    "a mark": (chat("x <|endoftext|>", "y"), r"must be free of <\|endoftext\|>"),
    "deep": ("[" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lines_are_named(tmp_path: Path, name: str) -> None:
    line, message = BAD[name]
    config = written(tmp_path, [*some(12), line])
    with pytest.raises(ConfigError, match=message) as refused:
        config.open(**SIZES)
    assert f"{tmp_path}/chats.jsonl, line 13" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_template_that_loses_the_boundary_is_named(tmp_path: Path) -> None:
    source = written(tmp_path, some()).open(**SIZES)
    tokenizer = source.store.tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    with pytest.raises(ConfigError, match=rf"{tmp_path}/chats.jsonl, line 1.* shows it in another way than the model"):
        written(tmp_path, some()).open(tokenizer=tokenizer, **SIZES)
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="the tokenizer of the run has no chat template"):
        written(tmp_path, some()).open(tokenizer=tokenizer, **SIZES)


def test_files_must_be_jsonl_with_conversations(tmp_path: Path) -> None:
    (tmp_path / "chats.jsonl").write_text("\n\n")
    with pytest.raises(ConfigError, match=r"files with conversations; .*chats.jsonl has none"):
        ChatFiles.Config(path=f"{tmp_path}/*.jsonl").open(**SIZES)
    (tmp_path / "texts.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"only .jsonl files; it also matches .*texts.txt"):
        ChatFiles.Config(path=f"{tmp_path}/*.txt").open(**SIZES)
    with pytest.raises(ConfigError, match="path=None is not valid: name files"):
        ChatFiles.Config()


def test_other_templates_are_other_stores(tmp_path: Path) -> None:
    source = written(tmp_path, some()).open(**SIZES)
    tokenizer = source.store.tokenizer
    one = written(tmp_path, some()).open(tokenizer=tokenizer, **SIZES)
    tokenizer.chat_template = tokenizer.chat_template.replace("User: ", "U: ")
    other = written(tmp_path, some()).open(tokenizer=tokenizer, **SIZES)
    assert len({one.store.folder, other.store.folder, source.store.folder}) == 3
    assert "U: say" in tokenizer.decode(other.train(0, 1).inputs[0].tolist())
