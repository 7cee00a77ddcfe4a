"""Byte-level BPE, trained on a corpus' training split.

V vocabulary.
"""

import codecs
import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from dsv2.config import ConfigError

END_OF_TEXT = "<|endoftext|>"
END_ID = 0
SMALLEST_VOCAB = 257  # 256 bytes and <|endoftext|>
# GPT-2's pattern always starts a new word at a space that follows a visible character, so texts are cut there and
# each piece is encoded once: English takes 3 s instead of 8 s, with the same tokens.
_CUT = re.compile(r"(?<=[!-~])(?= )")
_MOST_REMEMBERED = 500_000  # pieces, some 100 MB


class Tokenizer:
    """Text to token ids and back, exactly. Id 0 is <|endoftext|>, which `encode` never makes, whatever the text."""

    def __init__(self, backend: tokenizers.Tokenizer, vocab_size: int | None = None) -> None:
        """`vocab_size` is the model's V; a corpus too small for that many merges leaves the last ids unused."""
        backend.encode_special_tokens = True  # "<|endoftext|>" in a document is text like any other
        self._backend = backend
        self.vocab_size = backend.get_vocab_size() if vocab_size is None else vocab_size
        self._remembered: dict[str, list[int]] = {}

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn the merges. The same texts give the same tokenizer. Raises `ConfigError` below 257 tokens."""
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
        """Read what `save` wrote; `vocab_size` as for the constructor."""
        return cls(tokenizers.Tokenizer.from_file(str(path)), vocab_size)

    def save(self, path: Path) -> None:
        """Write a `tokenizer.json`, which transformers can read as well."""
        path.write_text(self._backend.to_str(), encoding="utf-8")

    @property
    def hash(self) -> str:
        """sha256 of the saved form."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids of one text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        if len(self._remembered) > _MOST_REMEMBERED:
            self._remembered.clear()
        known = self._remembered
        cut = [_CUT.split(text) for text in texts]
        new = [piece for piece in dict.fromkeys(chain.from_iterable(cut)) if piece not in known]
        known.update((piece, found.ids) for piece, found in zip(new, self._backend.encode_batch_fast(new), strict=True))
        return [list(chain.from_iterable(map(known.__getitem__, pieces))) for pieces in cut]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD, unused ids nothing."""
        return b"".join(self._bytes[index] for index in ids).decode(errors="replace")

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Text of each token, which joins to their `decode`: a character made of several tokens is the last one's."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        found = [decoder.decode(self._bytes[index]) for index in ids]
        if found:
            found[-1] += decoder.decode(b"", final=True)
        return found

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """(V,) int32: bytes of text each token stands for; 0 for <|endoftext|> and unused ids."""
        lengths = np.array([len(data) for data in self._bytes], dtype=np.int32)
        lengths[END_ID] = 0
        return lengths

    @cached_property
    def _bytes(self) -> list[bytes]:
        """What each of the V ids is written as."""
        of_letter = _byte_of_letter()
        table = [b""] * self.vocab_size
        for token, index in self._backend.get_vocab().items():
            table[index] = bytes(of_letter[letter] for letter in token) if index != END_ID else END_OF_TEXT.encode()
        return table


def _byte_of_letter() -> dict[str, int]:
    """Byte-level BPE writes each byte as a visible letter: itself where it is one, else the next from U+0100 on."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}
