"""Conversations to learn from: what the assistant says is learned, what it was asked is only read.

B sequences, T tokens per sequence, W sequences of the training split, L tokens of a conversation.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import torch

from dsv2.config import ConfigError, Naming, class_name, setting
from dsv2.data.chat import ChatTemplate, Conversation, Message, require_messages
from dsv2.data.corpora import Text, absolute
from dsv2.data.documents import Document
from dsv2.data.packing import StoredText, fit_in, in_epochs
from dsv2.data.reading import find, stamp
from dsv2.data.source import NOT_SCORED, Batch, validation_sequences
from dsv2.data.store import Encoded, Split, Store
from dsv2.data.tokenizer import Tokenizer
from dsv2.data.verification import Verifier, from_json, to_json
from dsv2.printing import shortened, warn_once

FORMAT = 1  # increment when the same conversations are tokenized, packed or ordered differently
DOMAIN = "chat"  # of a conversation that names none
KEYS = {"messages", "domain", "verifier"}  # of a line of a file


class Chat(NamedTuple):
    """A conversation that ends with a reply, and how replies to it are verified."""

    messages: Sequence[Message]
    verifier: Verifier | None = None

    def to_text(self) -> str:
        """Return the text of its document."""
        return json.dumps({"messages": self.messages, "verifier": to_json(self.verifier)}, ensure_ascii=False)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read `to_text`. Raises ValueError for what is no conversation that can be learned from."""
        values = json.loads(text)
        require_messages(messages := values["messages"])
        if messages[-1]["role"] != "assistant":
            raise ValueError("messages: the last one must be the assistant's, since replies are what is learned")
        for place, message in enumerate(messages):
            if message["role"] == "assistant" and not message["content"].strip():
                raise ValueError(f"messages[{place}].content={message['content']!r}: must not be empty, being a reply")
        return cls(messages, from_json(values["verifier"]))


class ChatForm:
    """Conversations through the chat template of the tokenizer, of which replies are scored."""

    def shown(self, text: str) -> str:
        messages = Chat.from_text(text).messages
        with_roles = (f"{str(message['role']).capitalize()}: {message['content']}" for message in messages)
        return "\n\n".join(with_roles)  # as the template of the tokenizer that is trained on it has them

    def encode(self, tokenizer: Tokenizer, texts: list[str]) -> Iterator[Encoded]:
        template = ChatTemplate(tokenizer)
        for text in texts:
            chat = Chat.from_text(text)
            ids, mask = template.conversation(chat.messages)
            yield Encoded(ids, mask, json.dumps(to_json(chat.verifier)))


class Prompt(NamedTuple):
    """What comes before the last reply of a conversation."""

    ids: list[int]
    verifier: Verifier | None
    domain: int  # index into `Source.domains`


class Chats(StoredText):
    """Whole conversations, several to a sequence, none of which sees another; padding fills what remains.

    The sequences are the same in every epoch, in another order. A conversation that is longer than a sequence is left
    out, which is said. The last token of a conversation has no target.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Text.Config):
        """Base of the sources of conversations, each a document of `Chat.to_text`."""

        def identity(self, naming: Naming = class_name) -> dict[str, str]:
            return super().identity(naming) | {"chats": str(FORMAT)}

        def open(self, *, tokenizer: Tokenizer | None = None, **sizes: Any) -> "Chats":
            """Open as `Text.Config` does. Raises ConfigError for a conversation that cannot be used, saying where."""
            template = Tokenizer.chat_template if tokenizer is None else tokenizer.chat_template
            if template is None:
                raise ConfigError("data", self.label, "text, since the tokenizer of the run has no chat template")
            opened = super().open(tokenizer=tokenizer, **sizes)
            assert isinstance(opened, Chats)
            return opened

        def given(self, tokenizer: Tokenizer) -> dict[str, str]:
            template = hashlib.sha256((tokenizer.chat_template or "").encode()).hexdigest()
            return super().given(tokenizer) | {"template": template}

        @property
        def form(self) -> ChatForm:
            return ChatForm()

        def pack(self, store: Store, **settings: Any) -> "Chats":
            return Chats(self, store, **settings)

    def __init__(
        self,
        config: Config,
        store: Store,
        *,
        sequence_length: int,
        seed: int,
        validation_tokens: int,
        identity: dict[str, Any],
    ) -> None:
        """Pack a store. Raises `ConfigError` if a prompt is longer than a sequence, or all conversations are."""
        super().__init__(store, sequence_length=sequence_length, seed=seed, identity=identity)
        self.config = config
        self._rows = self._packed("training", store.train)
        self._val_rows = self._packed("validation", store.val)[
            : validation_sequences(sequence_length, validation_tokens)
        ]
        self.train_tokens = len(self._rows) * sequence_length
        self.num_windows = len(self._rows)  # W

    def _packed(self, name: str, split: Split) -> list[list[int]]:
        lengths, longest = _lengths(split), self.sequence_length
        for number in np.flatnonzero(lengths > longest).tolist():
            if (asked := len(_prompt(split, number))) >= longest:
                raise ConfigError(
                    "trainer.sequence_length",
                    longest,
                    f"more than {asked}, the tokens of the prompt in {self._place(split, number)}",
                )
        fits = np.flatnonzero(lengths <= longest)
        if not len(fits):
            valid = f"at least {lengths.min()}, the tokens of the shortest conversation for {name}"
            raise ConfigError("trainer.sequence_length", longest, valid)
        if left_out := len(lengths) - len(fits):
            tokens = int(lengths[lengths > longest].sum())
            warn_once(
                f"data: {left_out:,} of {len(lengths):,} conversations for {name} are longer than a sequence of "
                f"{longest} tokens and are left out, {tokens:,} of {lengths.sum():,} tokens"
            )
        return [[int(fits[item]) for item in row] for row in fit_in(lengths[fits], longest)]

    def overview(self, total_tokens: int) -> str:
        split, epochs = self.store.train, total_tokens / (self.num_windows * self.sequence_length)
        held = sum(map(len, self._rows))
        empty = 1 - _lengths(split)[[number for row in self._rows for number in row]].sum() / self.train_tokens
        return (
            f"data: {held:,} conversations in {self.num_windows:,} sequences of {self.sequence_length} tokens, "
            f"{empty:.0%} of them padding; {self.train_tokens:,} tokens are an epoch, these are {epochs:.2f}"
        )

    def _place(self, split: Split, number: int) -> str:
        """Return where a conversation of a split was read, as far as its file is still there."""
        assert split.numbers is not None
        wanted = int(split.numbers[number])
        try:
            document = next(itertools.islice(self.config.documents(), wanted, None), None)
        except (ConfigError, OSError):
            document = None
        return (document and document.place) or f"conversation {wanted + 1}"

    # ---- sequences ----

    def windows(self, first: int, count: int) -> np.ndarray:
        """Return the rows of training sequences `first` to `first + count - 1`, (count,) int64."""
        return in_epochs(self.seed, self.num_windows, first, count)

    def train(self, first: int, count: int) -> Batch:
        return self._batch(self.store.train, [self._rows[row] for row in self.windows(first, count)])

    def validation(self) -> Batch:
        return self._batch(self.store.val, self._val_rows)

    def _batch(self, split: Split, rows: Sequence[Sequence[int]]) -> Batch:
        conversations = [[_conversation(split, number) for number in row] for row in rows]
        batch = packed(conversations, length=self.sequence_length, pad_id=self.store.tokenizer.end_id)
        domains = torch.zeros_like(batch.inputs, dtype=torch.int8)
        for row, numbers in enumerate(rows):
            start = 0
            for number, (ids, _) in zip(numbers, conversations[row], strict=True):
                domains[row, start : start + len(ids)] = int(split.domains[number])
                start += len(ids)
        return batch._replace(domains=domains)

    # ---- what is asked ----

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end a reply: <|endoftext|>, and the one that ends every reply that is learned."""
        split = self.store.train
        last = {_last(split, number) for number in range(len(split.starts))}
        return frozenset({self.store.tokenizer.end_id} | (last if len(last) == 1 else set()))

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The prompts of all training conversations whose replies can be verified."""
        return _prompts(self.store.train)

    @cached_property
    def held_out_prompts(self) -> list[Prompt]:
        """The prompts of all validation conversations whose replies can be verified."""
        return _prompts(self.store.val)


def packed(rows: Sequence[Sequence[Conversation]], *, length: int, pad_id: int) -> Batch:
    """Put the conversations of each row one after the other into sequences of T = `length` tokens.

    Targets are the next tokens of the same conversation, where they are marked. Padding is by place, not by id.
    """
    shape = (len(rows), length)
    inputs, targets = np.full(shape, pad_id, dtype=np.int64), np.full(shape, NOT_SCORED, dtype=np.int64)
    positions = np.full(shape, -1, dtype=np.int64)
    for row, conversations in enumerate(rows):
        start = 0
        for ids, mask in conversations:
            end = start + len(ids)
            inputs[row, start:end], positions[row, start:end] = ids, np.arange(len(ids))
            targets[row, start : end - 1] = np.where(mask[1:], ids[1:], NOT_SCORED)
            start = end
    return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), None, torch.from_numpy(positions))


def _lengths(split: Split) -> np.ndarray:
    """Return the tokens of each document, (n,) int64."""
    return np.diff(split.starts, append=len(split.tokens))


def _conversation(split: Split, number: int) -> Conversation:
    assert split.scored is not None
    first = int(split.starts[number])
    end = int(split.starts[number + 1]) if number + 1 < len(split.starts) else len(split.tokens)
    return Conversation(split.tokens[first:end].tolist(), split.scored[first:end].tolist())


def _last(split: Split, number: int) -> int:
    """Return the token that ends the last reply of a conversation."""
    ids, mask = _conversation(split, number)
    return ids[len(mask) - 1 - mask[::-1].index(True)]


def _prompt(split: Split, number: int) -> list[int]:
    """Return the ids before the last reply of a conversation."""
    ids, mask = _conversation(split, number)
    end = len(mask) - mask[::-1].index(True)  # of the reply
    return ids[: end - [*mask[:end][::-1], False].index(False)]


def _prompts(split: Split) -> list[Prompt]:
    verifiers = [from_json(json.loads(note)) for note in split.notes]
    return [
        Prompt(_prompt(split, number), verifier, int(split.domains[number]))
        for number, verifier in enumerate(verifiers)
        if verifier is not None
    ]


class ChatFiles:
    """Conversations of the user's .jsonl files, one per line: `messages`, and optionally `domain` and `verifier`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Chats.Config):
        path: str | None = setting(None)  # a glob, may contain **; the fingerprint has the content, not the path

        def __post_init__(self) -> None:
            super().__post_init__()
            self.require(bool(self.path), "path", "name files, as in data.path='chats/**/*.jsonl'")

        def documents(self) -> Iterator[Document]:
            assert self.path is not None
            return read_chats("data.path", self.path)

        def stamp(self) -> tuple[Any, ...]:
            assert self.path is not None
            return stamp("data.path", self.path)

        def anchored(self) -> Self:
            assert self.path is not None
            return replace(self, path=absolute(self.path))


def read_chats(key: str, pattern: str) -> Iterator[Document]:
    """Yield the conversations of .jsonl files. Raises ConfigError for a line that holds none, naming file and line."""
    for path in find(key, pattern):
        if path.suffix != ".jsonl":
            raise ConfigError(key, pattern, f"only .jsonl files; it also matches {path}")
        empty = True
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                place = f"{path}, line {number}"
                try:
                    yield _read(line, place)
                except (ValueError, RecursionError) as error:
                    why = "nested too deeply" if isinstance(error, RecursionError) else error
                    raise ConfigError(key, pattern, f"one conversation per line; {place}: {why}") from None
                empty = False
        if empty:
            raise ConfigError(key, pattern, f"files with conversations; {path} has none")


def _read(line: bytes, place: str) -> Document:
    row = json.loads(line)
    if not isinstance(row, dict) or "messages" not in row or not set(row) <= KEYS:
        keys = f"it has {', '.join(row)}" if isinstance(row, dict) else f"it is {type(row).__name__}"
        raise ValueError(f"an object with messages and perhaps {', '.join(sorted(KEYS - {'messages'}))}; {keys}")
    if not isinstance(domain := row.get("domain", DOMAIN), str):
        raise ValueError(f"domain={shortened(repr(domain))}: must be a string")
    values = {"messages": row["messages"], "verifier": row.get("verifier")}
    text = Chat.from_text(json.dumps(values)).to_text()
    (domain + text).encode()  # raises ValueError for half of a surrogate pair
    return Document(text, domain, place=place)
