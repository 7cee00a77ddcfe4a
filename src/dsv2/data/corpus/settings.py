"""The settings of each step of a corpus. Importing this needs no package of the extra `corpus`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from dsv2.config import ConfigBase

STEPS = ("language", "quality", "contentious", "duplicates")  # filters, in the order in which they are applied
ENGLISH_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")  # Gopher's
CHINESE_STOP_WORDS = ("的", "了", "是", "不", "我", "很", "在", "有", "这", "也", "就", "都")


class Rules:
    """The rules for texts of one language. Defaults are the published ones, for English pages."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        words: tuple[int, int] = (50, 100_000)  # of a document, punctuation not counted; of Chinese, characters
        word_length: tuple[float, float] = (3.0, 10.0)  # mean, in characters
        alphabetic: float = 0.8  # least share of words with a letter
        stop_words: tuple[str, ...] = ENGLISH_STOP_WORDS
        least_stop_words: int = 2  # different ones
        top_ngrams: bool = True  # whether one n-gram may not fill a share of the text; short texts always would
        final_marks: bool = True  # whether lines without . ! ? or a quotation mark at their end are removed
        least_sentences: int = 5  # that remain
        least_line_words: int = 3  # between spaces; shorter lines are removed

        def __post_init__(self) -> None:
            for name in ("words", "word_length"):
                low, high = getattr(self, name)
                self.require(0 <= low <= high < math.inf, name, "the least and the most, as in [3,10]")
            self.require(0 <= self.alphabetic <= 1, "alphabetic", "a share from 0 to 1")


def chinese_rules() -> Rules.Config:
    """Return the rules for short Chinese texts: no spaces, no Latin punctuation, one sentence is enough."""
    return Rules.Config(
        words=(10, 100_000),
        word_length=(1.0, 10.0),
        alphabetic=0.6,
        stop_words=CHINESE_STOP_WORDS,
        least_stop_words=1,
        top_ngrams=False,
        final_marks=False,
        least_sentences=1,
        least_line_words=1,
    )


class Quality:
    """The rules by language."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        english: Rules.Config = Rules.Config()
        chinese: Rules.Config = field(default_factory=chinese_rules)


class Contentious:
    """The filter of DeepSeek-V2's section 3.1.1 on data, for values of particular regions.

    The report names neither its list nor its classifier.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        words: str | None = None  # a file with a word per line, under lines `# LANGUAGE`; null: the list of the package
        threshold: float = 0.6  # documents with a score from here on are dropped
        most_words: float = 5.0  # words of the list per 1,000; documents with more are dropped too

        def __post_init__(self) -> None:
            self.require(0 <= self.threshold <= 1.01, "threshold", "a score from 0 to 1, or 1.01 to drop none by it")
            self.require(self.most_words >= 0, "most_words", "0 or more per 1,000 words")


class Duplicates:
    """MinHash with locality-sensitive hashing: two texts are near-duplicates if all hashes of one bucket are equal.

    Of texts whose shingles overlap by a share s (Jaccard), 1 - (1 - s^hashes)^buckets are found: 92% at s = 0.8.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        shingle: int = 5  # words, of Chinese characters
        buckets: int = 14
        hashes: int = 8  # per bucket

        def __post_init__(self) -> None:
            for name in ("shingle", "buckets", "hashes"):
                self.require(getattr(self, name) >= 1, name, "1 or more")


class Shares:
    """A mixture: how many tokens each domain has. By default 12% more Chinese than English, as in DeepSeek-V2 (3.1.1).

    The report does not say how much code.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        # Domain -> tokens, relative to those of other domains; a domain with 0 or without a weight is left out.
        weights: dict[str, float] = field(default_factory=lambda: {"english": 1.0, "chinese": 1.12, "code": 0.5})
        tokens: int | None = None  # of the training documents; null: as many as there are without repeating any

        def __post_init__(self) -> None:
            finite = all(0 <= weight < math.inf for weight in self.weights.values())
            valid = "numbers from 0 on, not all of them 0, as in {english:1.0,chinese:1.12}"
            self.require(finite and any(self.weights.values()), "weights", valid)
            self.require(self.tokens is None or self.tokens > 0, "tokens", "positive, or null")

        def __hash__(self) -> int:
            return hash((tuple(self.weights.items()), self.tokens))

        def parts(self) -> Mapping[str, float]:
            """Return the share of each domain; together they are 1."""
            total = sum(self.weights.values())
            return {domain: weight / total for domain, weight in self.weights.items() if weight}


class Selection(NamedTuple):
    """Which annotated documents make a corpus."""

    filters: tuple[str, ...]  # some of STEPS
    held_out_filters: tuple[str, ...]  # the same, of the documents set aside
    languages: tuple[str, ...]
    least_probability: float  # of the language
    contentious: Contentious.Config
    duplicates: Duplicates.Config
    shares: Shares.Config | None
