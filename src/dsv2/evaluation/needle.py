"""Needle in a haystack: a sentence hidden in held-out text is asked for, at several lengths and depths.

L tokens that the model reads, H tokens of text around the needle.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dsv2.config import ConfigBase, ConfigError
from dsv2.data.needles import WORDINGS, Needle, find_haystack, hide, needles
from dsv2.data.packing import PackedText
from dsv2.evaluation.benchmarks import Measured
from dsv2.evaluation.scoring import Question, likelihoods
from dsv2.models.transformer import Transformer
from dsv2.printing import described

if TYPE_CHECKING:
    import pandas as pd

MULTIPLES = (1, 2, 4, 8, 16)  # of the trained length
COLUMNS = ["length", "depth", "question", "wording", "correct", "nats"]


class Hidden(NamedTuple):
    """A needle at one length and depth."""

    length: int  # L
    depth: float  # 0: at the start of the text, 1: right before the question
    question: int  # its number among those of this length and depth, each with a needle and a text of its own
    needle: Needle
    asked: Question


class Estimate(NamedTuple):
    mean: float
    stderr: float  # over the questions


class NeedleGrid:
    """Questions about needles in held-out text: a pure function of corpus, tokenizer and sizes."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        trained_length: int = 128  # tokens: sequence length before any extension
        multiples: tuple[int, ...] = MULTIPLES  # of it, at which needles are hidden
        depths: int = 9  # evenly spaced from 0 to 1
        questions: int = 8  # per length and depth

        def __post_init__(self) -> None:
            distinct = len(set(self.multiples)) == len(self.multiples) > 0 and min(self.multiples) > 0
            self.require(distinct, "multiples", "at least one, all positive and different")
            self.require(self.trained_length > 0, "trained_length", "positive")
            self.require(self.depths >= 2, "depths", "at least 2, the start and the end")
            self.require(self.questions > 0, "questions", "positive")

        @property
        def longest(self) -> int:
            """Tokens of the longest prompt."""
            return max(self.multiples) * self.trained_length

        def build(self, source: PackedText) -> "NeedleGrid":
            """Hide the needles. Raises ConfigError for a length that leaves no room or that the text does not have."""
            lengths = [multiple * self.trained_length for multiple in self.multiples]
            sizes = {"depths": self.depths, "questions": self.questions, "trained_length": self.trained_length}
            try:
                return NeedleGrid(source, lengths, **sizes)
            except ValueError as error:
                raise ConfigError("benchmarks.trained_length", self.trained_length, str(error)) from None

    def __init__(
        self,
        source: PackedText,
        lengths: Sequence[int],
        *,
        depths: int,
        questions: int,
        trained_length: int | None = None,
    ) -> None:
        """Hide needles in texts of `lengths` tokens; scores are by multiples of `trained_length` or else by tokens.

        Raises ValueError for a length that leaves no room or that the text does not have.
        """
        self.ids, self.trained_length = source.store.tokenizer.ids, trained_length
        self.hidden = [
            hidden
            for length in dict.fromkeys(lengths)
            for step in range(depths)
            for hidden in _hidden(source, length, step / (depths - 1), questions)
        ]

    def run(self, model: Transformer, *, batch_tokens: int) -> Measured:
        """Ask all questions, at most `batch_tokens` tokens per pass, and return the means of `scores`."""
        try:
            table = self.measure(model, batch_tokens=batch_tokens)
        except Exception as error:  # the training does not depend on it
            return Measured({}, {"needle": described(error)})
        return Measured({name: score.mean for name, score in self.scores(table).items()}, {}, table)

    def measure(self, model: Transformer, *, batch_tokens: int) -> "pd.DataFrame":
        """Return one row per question and depth.

        Columns: length (tokens), depth, question (its number), wording (index), correct (whether argmax predicts
        every token of the answer) and nats (log-probability of the answer, at most 0).
        """
        import pandas as pd

        questions = [hidden.asked for hidden in self.hidden]
        answers = likelihoods(model, questions, batch_tokens=batch_tokens, ids=self.ids)
        rows = [
            (hidden.length, hidden.depth, hidden.question, hidden.needle.wording, all(answer.hits), answer.total)
            for hidden, answer in zip(self.hidden, answers, strict=True)
        ]
        return pd.DataFrame(rows, columns=COLUMNS)

    def scores(self, table: "pd.DataFrame") -> dict[str, Estimate]:
        """Return `bench/needle`, the share of answers found, also by length, and `bench/needle_nats` per answer."""
        columns = {"bench/needle": table["correct"], "bench/needle_nats": table["nats"]}
        for length in sorted(set(table["length"])):
            name = length if self.trained_length is None else f"{length // self.trained_length}x"
            columns[f"bench/needle_{name}"] = table["correct"][table["length"] == length]
        values = {name: column.to_numpy(dtype=float) for name, column in columns.items()}
        return {
            name: Estimate(float(each.mean()), float(each.std(ddof=1)) / len(each) ** 0.5)
            for name, each in values.items()
        }


def _hidden(source: PackedText, length: int, depth: float, questions: int) -> Iterator[Hidden]:
    """Yield the questions of one length and depth, whose wordings take turns. Raises ValueError."""
    tokenizer = source.store.tokenizer
    for question in range(questions):
        rng = random.Random(f"needle grid {length} {depth} {question}")
        needle = rng.choice([needle for needle in needles(tokenizer) if needle.wording == question % len(WORDINGS)])
        room = length - needle.length - len(tokenizer.prefix)
        if room < 0:
            raise ValueError(f"{length} tokens: must be at least {length - room}, those of a needle and its question")
        try:
            haystack = find_haystack(needle, source.store.val, room, rng, tokenizer)
        except ValueError as error:
            raise ValueError(f"{length} tokens: {error}") from None
        prompt = [*tokenizer.prefix, *hide(needle, haystack, round(depth * room))]
        yield Hidden(length, depth, question, needle, Question(prompt, needle.answer_ids))
