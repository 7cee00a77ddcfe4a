"""Conversations as tokens: as transformers has them, with one BOS, and with replies told from what was asked."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv2.data.chat import ChatTemplate
from dsv2.data.tokenizer import END_ID, END_OF_TEXT, Tokenizer, load_tokenizer
from tests.references.twins import save_with_tokenizer

TEXTS = ["User: who is there?\n\nAssistant: the cat, who sat on the mat.", "数学 的 学习 naïve café"] * 3
TOKENIZER = Tokenizer.train(TEXTS, 320)
CHAT = ChatTemplate(TOKENIZER)
CHATML = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTENTS = st.text(alphabet=st.sampled_from(list("the cat?\n :UA数é")), max_size=12)


def chat(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """Messages of a user and an assistant in turn."""
    roles = ("user", "assistant")
    turns = [{"role": roles[place % 2], "content": content} for place, content in enumerate(contents)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def with_template(template: Any) -> Tokenizer:
    tokenizer = Tokenizer.train(TEXTS, 320)
    tokenizer.chat_template = template
    return tokenizer


def exported(folder: Path, tokenizer: Tokenizer) -> Any:
    """The tokenizer of transformers that reads what ours writes."""
    tokenizer.save(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer.settings))
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_a_conversation_is_written_as_deepseek_v2_writes_it() -> None:
    messages = chat("Who?", "The cat.", "Why?", system="Be brief.")
    text = f"{END_OF_TEXT}Be brief.\n\nUser: Who?\n\nAssistant: The cat.{END_OF_TEXT}User: Why?\n\n"
    assert CHAT.text(messages) == text
    assert CHAT.text(messages, add_generation_prompt=True) == f"{text}Assistant:"


def test_replies_are_masked_by_their_place() -> None:
    """BOS and EOS have the same id: only those that end replies belong to them, whatever the other ids are."""
    ids, mask = CHAT.conversation(chat("Who?", "The cat.", "Why?", "It sat.", system="Be brief."))
    assert TOKENIZER.decode(ids) == CHAT.text(chat("Who?", "The cat.", "Why?", "It sat.", system="Be brief."))
    replies, before = list[list[int]](), False
    for token, reply in zip(ids, mask, strict=True):
        if reply and not before:
            replies.append([])
        if reply:
            replies[-1].append(token)
        before = reply
    assert [TOKENIZER.decode(reply) for reply in replies] == [f" The cat.{END_OF_TEXT}", f" It sat.{END_OF_TEXT}"]
    assert ids[0] == END_ID
    assert not mask[0]


@settings(max_examples=100, deadline=None)
@given(st.lists(CONTENTS, min_size=2, max_size=5), st.none() | CONTENTS)
def test_what_precedes_a_reply_is_its_prompt(contents: list[str], system: str | None) -> None:
    """Token by token, from the BOS on, which there is once."""
    messages = chat(*contents, system=system)
    ids, mask = CHAT.conversation(messages)
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt, end = CHAT.prompt(messages[:place]), len(CHAT.conversation(messages[: place + 1]).ids)
            assert ids[: len(prompt)] == prompt
            assert TOKENIZER.decode(ids[len(prompt) : end]) == f" {message['content']}{END_OF_TEXT}"
            assert mask[len(prompt) - 1 : end] == [False, *[True] * (end - len(prompt))]
    replies = [message["content"] for message in messages if message["role"] == "assistant"]
    assert sum(mask) == sum(len(TOKENIZER.encode(f" {reply}")) + 1 for reply in replies)
    assert ids.count(END_ID) == 1 + len(contents) // 2
    assert ids[0] == END_ID


def test_transformers_gives_the_same_text_tokens_and_mask(tmp_path: Path) -> None:
    theirs = exported(tmp_path, TOKENIZER)
    for messages in (chat("Who?"), chat("Who?", "The cat.", "Why?", "数学\n", "naïve", system="Be brief.")):
        made = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert theirs.apply_chat_template(messages, tokenize=False) == CHAT.text(messages)
        assert (made["input_ids"], made["assistant_masks"]) == tuple(map(list, CHAT.conversation(messages)))
        asked = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert asked == CHAT.prompt(messages)


@pytest.mark.parametrize("kind", ["byte-level", "metaspace"])
@pytest.mark.parametrize("where", ["settings", "file"])
def test_the_template_of_an_imported_model_is_used(kind: str, where: str, tmp_path: Path) -> None:
    """With its special tokens, one BOS though the tokenizer begins texts with it, and a mask without marks for it."""
    save_with_tokenizer(tmp_path, kind, TEXTS)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # that of Llama replaces what tokenizer.json says of spaces
    settings["chat_template"] = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "no"}]
    if where == "file":
        (tmp_path / "chat_template.jinja").write_text(CHATML)
        settings["chat_template"] = "what the file takes precedence over"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours, theirs = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours is not None
    assert len(ours.prefix) == 1
    template, messages = ChatTemplate(ours), chat("the cat sat", "who", "on the mat", "cat")
    ids, mask = template.conversation(messages)
    assert ids == theirs.apply_chat_template(messages)["input_ids"]
    assert template.prompt(messages) == theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert [place for place, token in enumerate(ids) if token == ours.start_id] == [0]
    replies = "".join(ours.decode([token]) for token, reply in zip(ids, mask, strict=True) if reply)
    assert replies.split() == ["who<|im_end|>", "cat<|im_end|>"]
    (tmp_path / "again").mkdir()
    ours.write_to(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    assert again is not None
    assert again.chat_template == CHATML


def test_without_a_template_there_are_no_conversations(tmp_path: Path) -> None:
    save_with_tokenizer(tmp_path, "byte-level", TEXTS)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    with pytest.raises(ValueError, match="chat_template=None: the tokenizer has no chat template"):
        ChatTemplate(tokenizer)


def test_the_extensions_of_transformers_are_there(tmp_path: Path) -> None:
    """Loop controls, `tojson` that escapes nothing, namespaces and exceptions; without tools there are none."""
    template = (
        "{%- set seen = namespace(count=0) %}\n"
        "{%- for message in messages %}\n"
        "    {%- if message.role == 'system' %}{% continue %}{% endif %}\n"
        "    {%- set seen.count = seen.count + 1 %}\n"
        "{{ message | tojson }}\n"
        "{% endfor %}\n"
        "{% if tools is none %}{{ seen.count }}{% endif %}"
    )
    tokenizer = with_template(template)
    messages = chat("<a & 'b'> é", "x", system="s")
    ours, theirs = ChatTemplate(tokenizer).text(messages), exported(tmp_path, tokenizer)
    assert ours == theirs.apply_chat_template(messages, tokenize=False)
    assert ours.endswith("2")


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages=\\[\\]: must be a list of at least one message"),
        ("hello", "messages='hello': must be a list"),
        ({"role": "user", "content": "a"}, "messages=.*: must be a list"),
        ([*chat("a"), "b"], "messages\\[1\\]='b': must have a role, a content and nothing else"),
        ([{"role": "user"}], "messages\\[0\\]=.*: must have a role, a content"),
        ([{"role": "user", "content": "a", "tool_calls": []}], "messages\\[0\\]=.*: .* and nothing else"),
        ([{"role": "tool", "content": "a"}], "messages\\[0\\].role='tool': must be one of system, user, assistant"),
        ([*chat("a"), {"role": "assistant", "content": None}], "messages\\[1\\].content=None: must be a string"),
        ([*chat(f"a{END_OF_TEXT}b")], "messages\\[0\\].content='a<.endoftext.>b': must be free of <.endoftext.>"),
        ([*chat("\udcff")], "messages\\[0\\].content=.*: must be text in UTF-8"),
    ],
)
def test_messages_that_are_none_are_named(messages: Any, message: str) -> None:
    for use in (CHAT.text, CHAT.prompt, CHAT.conversation):
        with pytest.raises(ValueError, match=f"^{message}"):
            use(messages)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", "chat_template: not a Jinja template; TemplateSyntaxError: "),
        ("{{ raise_exception('roles must alternate') }}", "does not take them; TemplateError: roles must alternate"),
        ("{{ messages[0]['content'] + 3 }}", "does not take them; TypeError: "),
        ("{{ messages.append(3) }}", "does not take them; SecurityError: "),
        ("{{ ''.__class__.__mro__ }}", "does not take them; SecurityError: "),
        ("{% set names = namespace(__class__=3) %}", "does not take them; SecurityError: "),
        ("{{ range(10 ** 9) | list }}", "does not take them; OverflowError: "),
        ("{{ strftime_now('%d') }}", "does not take them; UndefinedError: 'strftime_now' is undefined"),
    ],
)
def test_a_template_that_fails_is_one_line(template: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", "\\(")):
        ChatTemplate(with_template(template)).text(chat("a"))


def test_replies_that_a_template_changes_later_cannot_be_masked() -> None:
    """As with thoughts that are dropped from earlier replies; prompts can still be made, for serving."""
    template = (
        "{% for message in messages %}{{ message['role'] + ':' }}{% if loop.last or message['role'] == 'user' %}"
        "{{ ' ' + message['content'] }}{% else %}{{ ' ...' }}{% endif %}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    dropping = ChatTemplate(with_template(template))
    assert sum(dropping.conversation(chat("a", "b")).mask) == len(TOKENIZER.encode(" b")) + 1
    with pytest.raises(ValueError, match=r"^messages\[1\]: this chat template shows it in another way than"):
        dropping.conversation(chat("a", "b", "c"))
    assert TOKENIZER.decode(dropping.prompt(chat("a", "b", "c"))).count("...") == 1
