"""Tokenizers: byte-level BPE trained on a corpus's training split, and those of imported models.

V vocabulary.
"""

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from dsv2.config import ConfigError
from dsv2.storage.files import replacing, write_json
from dsv2.storage.rundir import CHAT_TEMPLATE_FILE, TOKENIZER, TOKENIZER_SETTINGS
from dsv2.storage.values import parse_object

END_OF_TEXT = "<|endoftext|>"
END_ID = 0
SMALLEST_VOCAB = 257  # 256 bytes and <|endoftext|>
# DeepSeek-V2's, with transformers' marks around what an assistant writes. Runs that were tuned on conversations read
# them in this form, so that it has to stay.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ 'Assistant:' }}{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_SINGLE_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# GPT-2's pattern always starts a new word at a space after a visible character, so texts are cut there and each
# distinct piece is encoded once: the English corpus takes 3 s instead of 8 s, with the same tokens.
_CUT = re.compile(r"(?<=[!-~])(?= )")
_MOST_REMEMBERED = 500_000  # pieces, about 100 MB


class Tokenizer:
    """Lossless byte-level BPE. Id 0 is <|endoftext|>, which `encode` never returns, whatever the text."""

    end_id = END_ID  # ends a text
    start_id = END_ID  # precedes a text that has no context
    prefix: tuple[int, ...] = ()  # ids at the start of every prompt
    chat_template: str | None = CHAT_TEMPLATE  # in Jinja; `data.chat` renders it
    special_tokens: Mapping[str, str] = MappingProxyType({"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT})

    def __init__(self, backend: tokenizers.Tokenizer, vocab_size: int | None = None) -> None:
        """Wrap a backend; `vocab_size` is the model's V, of which a small corpus may leave the last ids unused."""
        backend.encode_special_tokens = True  # "<|endoftext|>" in a document is ordinary text
        self._backend = backend
        self.ids = np.array(sorted(backend.get_vocab().values()))  # that have a token; others are never generated
        self.vocab_size = max(int(self.ids[-1]) + 1, vocab_size or 0)
        self._remembered: dict[str, list[int]] = {}

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Train on texts; the same texts give the same tokenizer. Raises `ConfigError` below 257 tokens."""
        if vocab_size < SMALLEST_VOCAB:
            raise ConfigError("vocab_size", vocab_size, f"at least {SMALLEST_VOCAB}: every byte and {END_OF_TEXT}")
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        assert backend.token_to_id(END_OF_TEXT) == END_ID
        return cls(backend, vocab_size)

    @classmethod
    def load(cls, path: Path, vocab_size: int | None = None) -> "Tokenizer":
        """Read a tokenizer written by `save`; `vocab_size` as for the constructor. Raises ValueError if damaged."""
        return cls(_read_backend(path), vocab_size)

    def save(self, path: Path) -> None:
        """Write a `tokenizer.json`, which transformers can read too."""
        path.write_text(self.to_json(), encoding="utf-8")

    def write_to(self, folder: Path) -> None:
        """Write what `load_tokenizer` reads, atomically."""
        with replacing(folder / TOKENIZER) as scratch:
            self.save(scratch)

    def to_json(self) -> str:
        """Return the content of `tokenizer.json`."""
        return self._backend.to_str()

    @property
    def settings(self) -> dict[str, Any]:
        """The content of `tokenizer_config.json`, with which transformers reads `tokenizer.json` as it is read here."""
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **self.special_tokens,
            "add_bos_token": bool(self.prefix),
            "chat_template": self.chat_template,
            "clean_up_tokenization_spaces": False,
        }

    @property
    def hash(self) -> str:
        """SHA-256 of `tokenizer.json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the token ids of one text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text."""
        if len(self._remembered) > _MOST_REMEMBERED:
            self._remembered.clear()
        known = self._remembered
        cut = [_CUT.split(text) for text in texts]
        new = [piece for piece in dict.fromkeys(chain.from_iterable(cut)) if piece not in known]
        known.update(
            (piece, encoding.ids) for piece, encoding in zip(new, self._backend.encode_batch_fast(new), strict=True)
        )
        return [list(chain.from_iterable(map(known.__getitem__, pieces))) for pieces in cut]

    def encode_marked(self, text: str) -> list[int]:
        """Return the token ids of a text in which special tokens, written out, are these tokens."""
        first, *others = map(self.encode, text.split(END_OF_TEXT))
        return [*first, *chain.from_iterable((END_ID, *ids) for ids in others)]

    @property
    def marks(self) -> tuple[str, ...]:
        """What `encode_marked` takes for a special token wherever it stands."""
        return (END_OF_TEXT,)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids; invalid UTF-8 becomes U+FFFD, ids without a token are empty."""
        return b"".join(map(self.bytes_of, ids)).decode(errors="replace")

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Return the text of each token; joined, they equal `decode`. A character split over tokens is in the last."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        pieces = [decoder.decode(self.bytes_of(index)) for index in ids]
        if pieces:
            pieces[-1] += decoder.decode(b"", final=True)
        return pieces

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """Bytes of text per token, (V,) int32; 0 for <|endoftext|> and unused ids."""
        lengths = np.array([len(data) for data in self._bytes], dtype=np.int32)
        lengths[END_ID] = 0
        return lengths

    def bytes_of(self, index: int) -> bytes:
        """Return the bytes of one token, none for an id without a token; those of a text in order are its UTF-8."""
        return self._bytes[index] if 0 <= index < self.vocab_size else b""

    @cached_property
    def _bytes(self) -> list[bytes]:
        """Bytes of each of the V ids."""
        byte_of = _byte_of_letter()
        table = [b""] * self.vocab_size
        for token, index in self._backend.get_vocab().items():
            table[index] = bytes(byte_of[letter] for letter in token) if index != END_ID else END_OF_TEXT.encode()
        return table


class ImportedTokenizer(Tokenizer):
    """The `tokenizer.json` of another model, with the special tokens of its `tokenizer_config.json`."""

    def __init__(
        self, backend: tokenizers.Tokenizer, settings: Mapping[str, Any], vocab_size: int | None = None
    ) -> None:
        """Wrap a backend. Raises ValueError unless `settings` has a bos_token or eos_token in the vocabulary."""
        super().__init__(backend, vocab_size)
        self._settings = dict(settings)
        self.chat_template = _chat_template(settings)
        self.special_tokens = {
            name: content
            for name, token in settings.items()
            if name.endswith("_token") and (content := _content(token)) is not None
        }
        backend.encode_special_tokens = False  # as in transformers: the text of a special token becomes that token
        bos, eos = (backend.token_to_id(self.special_tokens.get(name, "")) for name in ("bos_token", "eos_token"))
        ids = [token for token in (bos, eos) if token is not None]
        if not ids:
            raise ValueError(f"{TOKENIZER_SETTINGS} names no bos_token or eos_token in the vocabulary of {TOKENIZER}")
        self.start_id, self.end_id = ids[0], ids[-1]
        adds = settings.get("add_bos_token")  # without it, the tokenizer's post-processor decides
        added = backend.encode("", add_special_tokens=True).ids[:1] if adds is None else [bos] * bool(adds)
        self.prefix = tuple(token for token in added if token is not None and token == bos)

    @property
    def settings(self) -> dict[str, Any]:
        """The content of `tokenizer_config.json`."""
        return self._settings

    def write_to(self, folder: Path) -> None:
        """Write what `load_tokenizer` reads, each file atomically."""
        write_json(folder / TOKENIZER_SETTINGS, self.settings)
        super().write_to(folder)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, without adding special tokens."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_marked(self, text: str) -> list[int]:
        """Return the token ids of a text in which special tokens, written out, are these tokens."""
        return self.encode(text)

    @property
    def marks(self) -> tuple[str, ...]:
        """What `encode_marked` takes for a special token wherever it stands."""
        return tuple(token.content for token in self._backend.get_added_tokens_decoder().values() if token.special)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids, including special tokens."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """Bytes of text per token, (V,) int32; 0 for special tokens and unused ids."""
        lengths = np.array([len(data) for data in self._bytes], dtype=np.int32)
        lengths[[index for index, token in self._backend.get_added_tokens_decoder().items() if token.special]] = 0
        return lengths

    @cached_property
    def _bytes(self) -> list[bytes]:
        byte_of, added = _byte_of_letter(), self._backend.get_added_tokens_decoder()
        byte_level = '"ByteLevel"' in json.dumps(json.loads(self.to_json())["decoder"])
        table = [b""] * self.vocab_size
        for token, index in self._backend.get_vocab().items():
            if index in added:
                table[index] = token.encode()
            elif byte_level and byte_of.keys() >= set(token):
                table[index] = bytes(byte_of[letter] for letter in token)
            elif single := _SINGLE_BYTE.fullmatch(token):
                table[index] = bytes([int(single[1], 16)])
            else:
                table[index] = token.replace("\u2581", " ").encode()  # SentencePiece's space
        return table


def load_tokenizer(folder: Path, vocab_size: int | None = None) -> Tokenizer | None:
    """Return the tokenizer stored in `folder`, or None. `vocab_size` is the model's V.

    Raises ValueError for invalid files.
    """
    path, settings = folder / TOKENIZER, folder / TOKENIZER_SETTINGS
    if not path.is_file():
        return None
    if not settings.is_file():
        return Tokenizer.load(path, vocab_size)
    backend, template = _read_backend(path), folder / CHAT_TEMPLATE_FILE
    try:
        values = parse_object(settings.read_bytes())
        if template.is_file():
            values |= {"chat_template": template.read_text(encoding="utf-8")}
        return ImportedTokenizer(backend, values, vocab_size)
    except ValueError as error:
        raise ValueError(f"{settings}: {error}") from None


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing more specific
        raise ValueError(f"{path}: not a tokenizer, {error}") from None
    if not backend.get_vocab_size():
        raise ValueError(f"{path}: a tokenizer without tokens")
    return backend


def _content(token: Any) -> str | None:
    """Return the text of a special token, which tokenizer_config.json gives as a string or as an object."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _chat_template(settings: Mapping[str, Any]) -> str | None:
    """Return the chat template of tokenizer_config.json, the default one of several, or None."""
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default")
    if not isinstance(template, str | None):
        raise ConfigError("chat_template", template, "a Jinja template, or a list of them with their names")
    return template


def _byte_of_letter() -> dict[str, int]:
    """Map the letters of byte-level BPE to bytes: visible ones to themselves, from U+0100 on the others in order."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}
