"""Benchmarks that discriminate between small models: cloze, in-context copying and arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dsv2.config import ConfigBase
from dsv2.data.packing import PackedText
from dsv2.evaluation import cloze, copying, exercises
from dsv2.evaluation.choice import Choice, answer, answer_both_ways
from dsv2.models.transformer import Transformer
from dsv2.printing import described

if TYPE_CHECKING:
    import pandas as pd

TASKS = ("cloze", "copying", "arithmetic")


class Measured(NamedTuple):
    """What benchmarks measured of a model."""

    scores: dict[str, float]
    failed: dict[str, str]  # tasks that failed, whose scores are missing, and why
    needles: "pd.DataFrame | None" = None  # see `needle.NeedleGrid.measure`


class TextBenchmarks:
    """Questions from a corpus, a pure function of corpus, tokenizer and sizes: the same for all arms and seeds."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        cloze_questions: int = 256
        cloze_context: int = 32  # tokens
        cloze_continuation: int = 16  # tokens per choice
        copying_strings: int = 32
        copying_length: int = 24  # tokens per string, which is shown twice
        exercises: int = 64  # only for a corpus with the domain "maths"

        def __post_init__(self) -> None:
            for name in ("cloze_questions", "cloze_context", "cloze_continuation", "copying_strings", "exercises"):
                self.require(getattr(self, name) > 0, name, "positive")
            most = copying.SYMBOLS
            self.require(2 <= self.copying_length <= most, "copying_length", f"2 to {most}, the number of symbols")

        def lengths(self) -> dict[str, int]:
            """Return the tokens per question, by the field that sets them; at most the model's sequence length."""
            cloze = self.cloze_context + self.cloze_continuation
            return {"cloze_context": cloze, "copying_length": 2 * self.copying_length}

        def build(self, source: PackedText, tasks: Sequence[str] = TASKS) -> "TextBenchmarks":
            """Build the questions of `tasks`. Raises ConfigError if the corpus has too little held-out text."""
            return TextBenchmarks(self, source, tasks)

    def __init__(self, config: Config, source: PackedText, tasks: Sequence[str] = TASKS) -> None:
        tokenizer, held_out = source.store.tokenizer, source.store.val
        self.domains, self.tokenizer = source.domains, tokenizer
        self.cloze, self.exercises, self.strings = list[Choice](), list[Choice](), np.zeros((0, 2), dtype=np.int64)
        if "cloze" in tasks:
            self.cloze = cloze.questions(
                held_out,
                self.domains,
                count=config.cloze_questions,
                context=config.cloze_context,
                continuation=config.cloze_continuation,
            )
        if "copying" in tasks:
            self.strings = copying.strings(
                held_out.tokens,
                count=config.copying_strings,
                length=config.copying_length,
                end_id=tokenizer.end_id,
                ids=tokenizer.ids,
            )
        if "arithmetic" in tasks and exercises.DOMAIN in self.domains:
            self.exercises = exercises.questions(
                tokenizer,
                domain=self.domains.index(exercises.DOMAIN),
                count=config.exercises,
                longest=source.sequence_length,
            )

    def run(self, model: Transformer, *, batch_tokens: int) -> Measured:
        """Run all benchmarks, at most `batch_tokens` tokens per pass. Draws no random numbers."""
        runs = dict(zip(TASKS, (self.run_cloze, self.run_copying, self.run_arithmetic), strict=True))
        scores, failed = dict[str, float](), dict[str, str]()
        for task, run in runs.items():
            if task == "arithmetic" and not self.exercises:
                continue
            try:
                scores |= run(model, batch_tokens=batch_tokens)
            except Exception as error:  # the training, and the other tasks, do not depend on it
                failed[task] = described(error)
        return Measured(scores, failed)

    def run_cloze(self, model: Transformer, *, batch_tokens: int) -> dict[str, float]:
        """Return `bench/cloze`, the share of correct answers, and with several domains `bench/cloze_<domain>`.

        Also `bench/cloze_margin`, the mean difference between the truth and the best distractor in nats per byte, and
        `bench/cloze_context`, the share correct if choices are scored by how much the context raises their likelihood;
        it rises above chance much earlier in training.
        """
        answers, informed = answer_both_ways(
            model,
            self.cloze,
            self.tokenizer.token_bytes,
            start=self.tokenizer.start_id,
            batch_tokens=batch_tokens,
            ids=self.tokenizer.ids,
        )
        scores = {
            "bench/cloze": float(answers.correct.mean()),
            "bench/cloze_margin": float(answers.margin.mean()),
            "bench/cloze_context": float(informed.correct.mean()),
        }
        if len(self.domains) > 1:
            domains = np.array([question.domain for question in self.cloze])
            for domain in np.unique(domains):
                scores[f"bench/cloze_{self.domains[domain]}"] = float(answers.correct[domains == domain].mean())
        return scores

    def run_copying(self, model: Transformer, *, batch_tokens: int) -> dict[str, float]:
        """Return `bench/copying`, the accuracy on the second copy, and `bench/copying_gain` in nats per token."""
        copied = copying.copy(model, self.strings, batch_tokens=batch_tokens, ids=self.tokenizer.ids)
        return {"bench/copying": copied.accuracy, "bench/copying_gain": copied.gain}

    def run_arithmetic(self, model: Transformer, *, batch_tokens: int) -> dict[str, float]:
        """Return `bench/arithmetic`, the share of exercises answered correctly."""
        tokenizer = self.tokenizer
        answers = answer(model, self.exercises, tokenizer.token_bytes, batch_tokens=batch_tokens, ids=tokenizer.ids)
        return {"bench/arithmetic": float(answers.correct.mean())}
