"""Needle in a haystack: a sentence hidden in held-out text is asked for, at several lengths and depths.

L tokens that the model reads, H tokens of text around the needle.
"""

import random
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from dsv2.config import ConfigBase, ConfigError
from dsv2.data.needles import WORDINGS, Needle, find_haystack, hide, needles
from dsv2.data.packing import PackedText
from dsv2.evaluation.benchmarks import Measured
from dsv2.evaluation.scoring import Question, likelihoods
from dsv2.models.transformer import Transformer
from dsv2.printing import described

MULTIPLES = (1, 2, 4, 8, 16)  # of the length of training, or the divisors of the longest context


class Hidden(NamedTuple):
    """A needle at one length and depth."""

    length: int  # L
    depth: float  # 0: at the start of the text, 1: right before the question
    question: int  # number of the question; its needle and its text are the same at every depth
    needle: Needle
    asked: Question


class NeedleGrid:
    """Questions about needles in held-out text: a pure function of corpus, tokenizer and sizes."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        lengths: tuple[int, ...] = (128, 256, 512, 1024, 2048)  # L, tokens
        depths: int = 9  # evenly spaced from 0 to 1
        questions: int = 8  # per length and depth

        def __post_init__(self) -> None:
            distinct = len(set(self.lengths)) == len(self.lengths) > 0 and min(self.lengths) > 0
            self.require(distinct, "lengths", "at least one, all positive and different")
            self.require(self.depths >= 2, "depths", "at least 2, the start and the end")
            self.require(self.questions > 0, "questions", "positive")

        def build(self, source: PackedText) -> "NeedleGrid":
            """Hide the needles. Raises ConfigError for a length that leaves no room or that the text does not have."""
            return NeedleGrid(self, source)

    def __init__(self, config: Config, source: PackedText) -> None:
        self.ids, self.hidden = source.store.tokenizer.ids, list[Hidden]()
        every, prefix = needles(source.store.tokenizer), source.store.tokenizer.prefix
        for length in config.lengths:
            for number in range(config.questions):
                rng = random.Random(f"needle grid {length} {number}")
                needle = rng.choice([needle for needle in every if needle.wording == number % len(WORDINGS)])
                room = length - needle.length - len(prefix)
                if room < 0:
                    valid = f"at least {length - room}, the tokens of a needle and its question"
                    raise ConfigError("benchmarks.lengths", length, valid)
                try:
                    haystack = find_haystack(needle, source.store.val, room, rng, source.store.tokenizer)
                except ValueError as error:
                    raise ConfigError("benchmarks.lengths", length, f"shorter; {error}") from None
                for step in range(config.depths):
                    depth = step / (config.depths - 1)
                    prompt = [*prefix, *hide(needle, haystack, round(depth * room))]
                    asked = Question(prompt, needle.answer_ids)
                    self.hidden.append(Hidden(length, depth, number, needle, asked))

    def run(self, model: Transformer, *, batch_tokens: int) -> Measured:
        """Ask all questions, at most `batch_tokens` tokens per pass, and return the means of `scores_of`."""
        try:
            table = self.measure(model, batch_tokens=batch_tokens)
        except Exception as error:  # the training does not depend on it
            return Measured({}, {"needle": described(error)})
        return Measured({name: score.mean for name, score in scores_of(table).items()}, {}, table)

    def measure(self, model: Transformer, *, batch_tokens: int) -> pd.DataFrame:
        """Return one row per question and depth.

        Columns: length (tokens), depth, question (its number), wording (index), correct (whether argmax predicts
        every token of the answer) and nats (log-probability of the answer, at most 0).
        """
        questions = [hidden.asked for hidden in self.hidden]
        answers = likelihoods(model, questions, batch_tokens=batch_tokens, ids=self.ids)
        rows = [
            (hidden.length, hidden.depth, hidden.question, hidden.needle.wording, all(answer.hits), answer.total)
            for hidden, answer in zip(self.hidden, answers, strict=True)
        ]
        return pd.DataFrame(rows, columns=COLUMNS)


COLUMNS = ["length", "depth", "question", "wording", "correct", "nats"]


class Estimate(NamedTuple):
    mean: float
    stderr: float | None  # over the questions, whose depths are averaged; None for a single question


def scores_of(table: pd.DataFrame) -> dict[str, Estimate]:
    """Return `bench/needle`, the share of answers found, `bench/needle_nats` per answer, and the share by length."""
    of_questions = table.groupby(["length", "question"])[["correct", "nats"]].mean()
    by_length = {f"bench/needle_{length}": part["correct"] for length, part in of_questions.groupby(level="length")}
    columns = {"bench/needle": of_questions["correct"], "bench/needle_nats": of_questions["nats"]} | by_length
    return {
        name: Estimate(float(values.mean()), float(values.std()) / len(values) ** 0.5 if len(values) > 1 else None)
        for name, values in columns.items()
    }


def usual_lengths(longest: int, *, imported: bool) -> tuple[int, ...]:
    """Return 1 to 16 times the length of training, or up to the longest context of an imported model."""
    if imported:
        return tuple(longest // times for times in reversed(MULTIPLES))
    return tuple(longest * times for times in MULTIPLES)
