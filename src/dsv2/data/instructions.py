"""Generated instructions whose replies can be verified: sort, reverse, copy, arithmetic, brackets, small Python."""

import operator
import random
import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from dsv2.config import ConfigError, class_name, digest, plain
from dsv2.data.chats import Chat, Chats
from dsv2.data.documents import Document, fraction, text_digest
from dsv2.data.verification import Answer, Calls, Verifier

FORMAT = 1  # increment when the same settings produce other instructions
HELD_OUT = 0.1  # share of all prompts that no training conversation has
TRIES = 1000  # prompts drawn for one conversation before giving up

PAIRS = {"(": ")", "[": "]", "{": "}", "<": ">"}
_SIGNS: dict[str, Callable[[int, int], int]] = {"*": operator.mul, "+": operator.add, "-": operator.sub}
_INPUTS = (-3, 0, 2, 10)  # of expressions


class Instruction(NamedTuple):
    """A prompt, its right reply, a wrong one of the same form, and what tells them apart."""

    prompt: str
    reply: str
    wrong: str
    verifier: Verifier


Make = Callable[[random.Random, int], Instruction]  # of a size: letters, digits or brackets


def sort(rng: random.Random, size: int) -> Instruction:
    letters = rng.sample(string.ascii_lowercase, size)
    return _of_letters(rng, rng.choice(("Sort: {}", "Put in order: {}")), letters, sorted(letters))


def reverse(rng: random.Random, size: int) -> Instruction:
    letters = rng.sample(string.ascii_lowercase, size)
    return _of_letters(rng, rng.choice(("Reverse: {}", "Read backwards: {}")), letters, letters[::-1])


def copy(rng: random.Random, size: int) -> Instruction:
    letters = rng.sample(string.ascii_lowercase, size)
    return _of_letters(rng, rng.choice(("Copy: {}", "Repeat: {}")), letters, letters)


def brackets(rng: random.Random, size: int) -> Instruction:
    """Close what is open, innermost first."""
    opened = rng.choices(list(PAIRS), k=size)
    closed = [PAIRS[each] for each in reversed(opened)]
    wrong = list(closed)
    place = rng.randrange(size)
    wrong[place] = rng.choice([each for each in PAIRS.values() if each != closed[place]])
    return answered(f"Close: {' '.join(opened)}", " ".join(closed), " ".join(wrong))


def arithmetic(rng: random.Random, size: int) -> Instruction:
    """Add or subtract; digits are written apart, so that each is a token."""
    a, b = sorted((rng.randrange(10**size), rng.randrange(10**size)), reverse=True)
    sign = rng.choice("+-")
    value = a + b if sign == "+" else a - b
    wrong = value + rng.choice([off for off in (-10, -1, 1, 10) if value + off >= 0])
    return answered(f"Compute: {_digits(a)} {sign} {_digits(b)}", _digits(value), _digits(wrong))


def python(rng: random.Random, size: int) -> Instruction:
    """Write a Python expression of x, which is verified by what it computes."""
    a, b = rng.randrange(2, 10**size + 2), rng.randrange(2, 10**size + 2)
    first, second = rng.sample(("*", "+", "-"), 2)
    words = {"*": "times", "+": "plus", "-": "minus"}
    values = [_SIGNS[second](_SIGNS[first](x, a), b) for x in _INPUTS]
    swapped = [_SIGNS[first](_SIGNS[second](x, a), b) for x in _INPUTS]
    reply, wrong = f"(x {first} {a}) {second} {b}", f"(x {second} {a}) {first} {b}"
    if swapped == values:  # as x + 2 - 2
        wrong = f"(x {first} {a}) {second} {b + 1}"
    calls = {f"f({x})": str(value) for x, value in zip(_INPUTS, values, strict=True)}
    prompt = f"In Python: x {words[first]} {a}, then {words[second]} {b}"
    return Instruction(prompt, reply, wrong, Calls(calls, "f = lambda x: ({reply})"))


def _of_letters(rng: random.Random, wording: str, letters: list[str], reply: list[str]) -> Instruction:
    wrong = list(reply)
    if len(wrong) > 1:
        place = rng.randrange(len(wrong) - 1)
        wrong[place], wrong[place + 1] = wrong[place + 1], wrong[place]
    else:
        wrong = [rng.choice([letter for letter in string.ascii_lowercase if letter != reply[0]])]
    return answered(wording.format(" ".join(letters)), " ".join(reply), " ".join(wrong))


def answered(prompt: str, reply: str, wrong: str) -> Instruction:
    """Return an instruction of which exactly this reply is right."""
    return Instruction(prompt, reply, wrong, Answer(reply))


def _digits(number: int) -> str:
    return " ".join(str(number))


TASKS: dict[str, Make] = {task.__name__: task for task in (sort, reverse, copy, arithmetic, brackets, python)}


class Instructions:
    """Conversations of one instruction and its reply, each task its own domain.

    Instance n is a pure function of the settings, and the first instances of more are those of fewer. A prompt's own
    text decides whether it is held out, so that nothing validated occurs in training; held-out replies are all right.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Chats.Config):
        vocab_size: int = 512
        tasks: tuple[str, ...] = tuple(TASKS)  # take turns
        instances: int = 10_000  # conversations to train on
        held_out: int = 600  # conversations for validation
        sizes: tuple[int, int] = (2, 5)  # fewest and most letters or brackets of an instruction
        digits: int = 2  # of the numbers in arithmetic, at most
        corrupted: float = 0.0  # share of the training replies that are wrong

        def __post_init__(self) -> None:
            super().__post_init__()
            makers = self.makers
            known = bool(self.tasks) and set(self.tasks) <= set(makers) and len(set(self.tasks)) == len(self.tasks)
            self.require(known, "tasks", f"some of {', '.join(makers)}, each once")
            for name in ("instances", "held_out", "digits"):
                self.require(getattr(self, name) > 0, name, "positive")
            low, high = self.sizes
            self.require(1 <= low <= high <= 26, "sizes", "two numbers from 1 to 26, ascending")
            self.require(0 <= self.corrupted <= 1, "corrupted", "between 0 and 1")

        @property
        def makers(self) -> Mapping[str, Make]:
            """What makes the instructions of each task."""
            return TASKS

        def documents(self) -> Iterator[Document]:
            yield from self._drawn(self.instances, held_out=False)
            yield from self._drawn(self.held_out, held_out=True)

        def content_hash(self) -> str:
            """Return a hash of what the texts are made from, which takes no time."""
            return digest(FORMAT, plain(self, naming=class_name))

        def _drawn(self, count: int, *, held_out: bool) -> Iterator[Document]:
            side = "held out" if held_out else "training"
            for number in range(count):
                task = self.tasks[number % len(self.tasks)]
                rng = random.Random(f"instruction {side} {task} {number // len(self.tasks)}")
                prompt, reply, wrong, verifier = self._one(task, rng, held_out=held_out)
                shown = wrong if not held_out and rng.random() < self.corrupted else reply
                messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": shown}]
                yield Document(Chat(messages, verifier).to_text(), task, held_out, f"{side} instruction {number + 1}")

        def _one(self, task: str, rng: random.Random, *, held_out: bool) -> Instruction:
            for _ in range(TRIES):
                if task == "arithmetic":
                    size = rng.randint(1, self.digits)
                else:
                    size = 1 if task == "python" else rng.randint(*self.sizes)
                made = self.makers[task](rng, size)
                if (fraction(text_digest(made.prompt)) < HELD_OUT) == held_out:
                    return made
            few = f"larger sizes: next to no instruction of {task} is {'held out' if held_out else 'trained on'}"
            raise ConfigError("data.sizes", list(self.sizes), few)
