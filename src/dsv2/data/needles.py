"""Needles: sentences hidden in real text, and questions about them.

B sequences, T tokens that the model reads, N tokens of a split, H tokens of text around a needle (the haystack), A
tokens of an answer.
"""

import itertools
import random
import string
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from dsv2.config import ConfigError, Naming, class_name
from dsv2.data.corpora import English
from dsv2.data.packing import PackedText
from dsv2.data.source import NOT_SCORED, Batch, validation_sequences
from dsv2.data.store import Split, Store
from dsv2.data.tokenizer import Tokenizer

FORMAT = 1  # increment when the same settings produce other sequences
SUBJECTS = ("the secret word", "the name of the ship", "the name of the horse", "the word on the door")
# The sentence to hide, and its question, which ends where the answer begins.
WORDINGS = (
    ("$Subject is $answer.", "What is $subject? It is"),
    ("Remember that $subject is $answer.", "$Subject is"),
    ("I was told that $subject is $answer.", "Now tell me: $subject is"),
)
_WORDS = """
amber anchor apple arrow basket beaver bottle bronze butter button camel candle carpet castle cherry circus copper
coral cotton crystal desert diamond dolphin dragon eagle emerald falcon feather flower garden ginger guitar hammer
honey island ivory jacket jungle kettle ladder lantern lemon magnet marble mirror needle olive orange parrot pencil
pepper piano pillow puzzle rabbit ribbon rocket saddle salmon silver spider ticket tiger violet
"""
ANSWERS = tuple(_WORDS.split())
TRIES = 1000  # haystacks drawn for one needle before giving up


class Needle(NamedTuple):
    """A sentence to hide and the question about it, in tokens."""

    wording: int  # index into WORDINGS
    subject: str
    answer: str
    sentence: list[int]
    question: list[int]
    answer_ids: list[int]  # A

    @property
    def length(self) -> int:
        """Tokens that the model reads besides the haystack; the last token of the answer is only predicted."""
        return len(self.sentence) + len(self.question) + len(self.answer_ids) - 1

    def occurs_in(self, text: str) -> bool:
        """Whether a text has the answer, or what it is the answer to."""
        folded = text.casefold()
        return self.answer in folded or self.subject in folded


def needles(tokenizer: Tokenizer) -> list[Needle]:
    """Return all needles: every subject in every wording with every answer."""
    cases = list(itertools.product(range(len(WORDINGS)), SUBJECTS, ANSWERS))
    texts = []
    for wording, subject, answer in cases:
        words = {"subject": subject, "Subject": subject[0].upper() + subject[1:], "answer": answer}
        texts += [" " + string.Template(part).substitute(words) for part in (*WORDINGS[wording], "$answer")]
    encoded = iter(tokenizer.encode_batch(texts))
    return [Needle(*case, next(encoded), next(encoded), next(encoded)) for case in cases]


def find_haystack(needle: Needle, split: Split, length: int, rng: random.Random, tokenizer: Tokenizer) -> list[int]:
    """Draw `length` consecutive tokens of the split in which the needle does not occur.

    Raises ValueError if the split is too short, or the needle occurs everywhere.
    """
    if length > len(split.tokens):
        raise ValueError(f"the text has only {len(split.tokens)} tokens, and a needle needs {length} around it")
    for _ in range(TRIES):
        first = rng.randrange(len(split.tokens) - length + 1)
        haystack: list[int] = split.tokens[first : first + length].tolist()
        if not needle.occurs_in(tokenizer.decode(haystack)):
            return haystack
    raise ValueError(f"{needle.answer!r} or {needle.subject!r} is in every {length} tokens of the text")


def hide(needle: Needle, haystack: list[int], place: int) -> list[int]:
    """Return the haystack (H,) with the needle after its first `place` tokens, 0 to H, and the question at the end."""
    assert 0 <= place <= len(haystack)
    return [*haystack[:place], *needle.sentence, *haystack[place:], *needle.question]


class Needles(PackedText):
    """Text with a needle in it, then its question and its answer, of which only the answer is scored.

    Needle, haystack, place and the number of tokens, `shortest` to T, are drawn uniformly: sequence n is a pure
    function of (seed, n). Padding follows a sequence of fewer than T tokens. Validation hides needles in held-out text,
    in sequences of T tokens, the same for every seed.
    """

    whole_answers = True

    @dataclass(frozen=True, kw_only=True)
    class Config(English.Config):
        vocab_size: int = 1024
        shortest: int = 48  # tokens of the shortest sequence

        def __post_init__(self) -> None:
            super().__post_init__()
            self.require(self.shortest > 0, "shortest", "positive")

        def identity(self, naming: Naming = class_name) -> dict[str, str]:
            return super().identity(naming) | {"needles": str(FORMAT)}

        def pack(self, store: Store, **settings: Any) -> "Needles":
            return Needles(store, shortest=self.shortest, **settings)

    def __init__(self, store: Store, *, shortest: int, **settings: Any) -> None:
        """Open a store as `PackedText` does. Raises `ConfigError` if sequences are too short for every needle."""
        super().__init__(store, **settings)
        self.needles, self.shortest = needles(store.tokenizer), shortest
        self.train_tokens, self.token_bytes = None, None  # sequences are endless, and what is scored is no text
        self._num_validation = validation_sequences(self.sequence_length, settings["validation_tokens"])
        longest = max(needle.length for needle in self.needles)
        if shortest < longest:
            raise ConfigError("data.shortest", shortest, f"at least {longest}, the tokens of the longest needle")
        if self.sequence_length < shortest:
            valid = f"at least data.shortest={shortest}"
            raise ConfigError("trainer.sequence_length", self.sequence_length, valid)

    def train(self, first: int, count: int) -> Batch:
        numbers = range(first, first + count)
        return self._asked(self.store.train, [f"{self.seed} {number}" for number in numbers], self.shortest)

    def validation(self) -> Batch:
        names = [f"validation {number}" for number in range(self._num_validation)]
        return self._asked(self.store.val, names, self.sequence_length)

    def _asked(self, split: Split, names: list[str], shortest: int) -> Batch:
        """Make one sequence per name, which seeds its random draws."""
        tokens = np.full((len(names), self.sequence_length + 1), self.store.tokenizer.end_id, dtype=np.int64)
        targets = np.full((len(names), self.sequence_length), NOT_SCORED, dtype=np.int64)
        for row, name in enumerate(names):
            rng = random.Random(f"needle {name}")
            needle, length = rng.choice(self.needles), rng.randint(shortest, self.sequence_length)
            haystack = find_haystack(needle, split, length - needle.length, rng, self.store.tokenizer)
            prompt = hide(needle, haystack, rng.randint(0, len(haystack)))
            tokens[row, : length + 1] = [*prompt, *needle.answer_ids]
            targets[row, len(prompt) - 1 : length] = needle.answer_ids
        return Batch(torch.from_numpy(tokens[:, :-1]), torch.from_numpy(targets), None)
