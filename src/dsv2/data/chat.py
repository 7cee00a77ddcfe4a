"""Conversations as token ids, through the chat template that belongs to a tokenizer.

T tokens of a conversation.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from dsv2.data.tokenizer import Tokenizer
from dsv2.printing import described, shortened

ROLES = ("system", "user", "assistant")
KEYS = {"role", "content"}
Message = Mapping[str, str]  # of `role`, one of ROLES, and `content`


class Conversation(NamedTuple):
    """The tokens of a conversation, and which of them its assistant writes."""

    ids: list[int]  # (T,), with BOS where the template has it, and nowhere else
    mask: list[bool]  # (T,), True for the tokens of replies and what ends each of them


class ChatTemplate:
    """Turns messages into the text and the tokens that a model reads.

    The template is a Jinja program, perhaps of somebody else: it runs in a sandbox and sees the messages and the names
    of special tokens. It is rendered as by `apply_chat_template` of transformers, without tools.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Compile the template of a tokenizer. Raises ValueError if it has none, or none that is valid."""
        if tokenizer.chat_template is None:
            raise ValueError("chat_template=None: the tokenizer has no chat template, so that it only knows texts")
        self.tokenizer, self.source = tokenizer, tokenizer.chat_template
        try:
            self._template = _environment().from_string(self.source)
        except jinja2.TemplateError as error:
            raise ValueError(f"chat_template: not a Jinja template; {described(error)}") from None

    def text(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """Render messages, with what precedes the assistant's next reply if told so. Raises ValueError.

        A message has a role, one of `ROLES`, and a content without special tokens; in which order roles may follow one
        another is the template's affair.
        """
        require_messages(messages, self.tokenizer.marks)
        return self._text(messages, add_generation_prompt=add_generation_prompt)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids after which the assistant's next reply begins. Raises ValueError as `text` does."""
        return self.tokenizer.encode_marked(self.text(messages, add_generation_prompt=True))

    def conversation(self, messages: Sequence[Message]) -> Conversation:
        """Return the ids of messages, and which of them are replies.

        What precedes a reply is the `prompt` of the messages before it, token by token. Raises ValueError as `text`
        does, and for a template with which that is not so, as one that drops thoughts from earlier replies.
        """
        require_messages(messages, self.tokenizer.marks)
        ids = self._ids(messages)
        mask = [False] * len(ids)
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                start, end = self._ids(messages[:place], add_generation_prompt=True), self._ids(messages[: place + 1])
                if end[: len(start)] != start or ids[: len(end)] != end:
                    raise ValueError(
                        f"messages[{place}]: this chat template shows it in another way than the model writes it after "
                        "the messages before, so that its tokens cannot be told from others"
                    )
                mask[len(start) : len(end)] = [True] * (len(end) - len(start))
        return Conversation(ids, mask)

    @cached_property
    def opening(self) -> str:
        """What the template writes between a prompt and the content of a reply, as a space; the model writes it too."""
        asked, mark = [{"role": "user", "content": "?"}], "\ue000"
        try:
            prompt = self._text(asked, add_generation_prompt=True)
            whole = self._text([*asked, {"role": "assistant", "content": mark}], add_generation_prompt=False)
        except ValueError:  # a template with conditions, which this conversation does not meet
            return ""
        before, found, _ = whole.partition(mark)
        return before.removeprefix(prompt) if found and before.startswith(prompt) else ""

    def _ids(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[int]:
        return self.tokenizer.encode_marked(self._text(messages, add_generation_prompt=add_generation_prompt))

    def _text(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        settings: dict[str, Any] = {"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render(
                messages=[dict(message) for message in messages], **settings, **self.tokenizer.special_tokens
            )
        except Exception as error:  # whatever the program of somebody else does
            raise ValueError(f"messages: the chat template does not take them; {described(error)}") from None


def require_messages(messages: Sequence[Message], marks: Sequence[str] = ()) -> None:
    """Raise ValueError for the first message that is none, or whose content has one of `marks`."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError(f"messages={shortened(repr(messages))}: must be a list of at least one message")
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        if not isinstance(message, Mapping) or set(message) != KEYS:
            raise ValueError(f"{where}={shortened(repr(message))}: must have a role, a content and nothing else")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise ValueError(f"{where}.role={shortened(repr(role))}: must be one of {', '.join(ROLES)}")
        shown = f"{where}.content={shortened(repr(content))}"
        if not isinstance(content, str):
            raise ValueError(f"{shown}: must be a string")
        for mark in marks:
            if mark in content:
                raise ValueError(f"{shown}: must be free of {mark}, which is the template's to write")
        try:
            content.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{shown}: must be text in UTF-8") from None


class _Generation(Extension):
    """`{% generation %}`, with which transformers finds the tokens of replies; `conversation` does so without."""

    tags = {"generation"}  # noqa: RUF012, as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """Jinja's, without names that Python gives a meaning to."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        for name, value in attributes.items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"{name!r} is no name of a variable")
        super().__setitem__(name, value)


def _environment() -> ImmutableSandboxedEnvironment:
    """Return the sandbox, with what transformers offers templates, apart from the time."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.globals |= {"namespace": _Namespace, "raise_exception": _refuse}
    environment.filters["tojson"] = _to_json
    return environment


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, **settings: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False} | settings)
