"""Words and sentences of any language, for the filters of datatrove.

datatrove's own splitting needs spaCy, whose blank pipelines do no more: words at spaces and punctuation, of Chinese the
characters, sentences at their final marks.
"""

import re

from datatrove.utils.word_tokenizers import WordTokenizer

HAN = "\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{HAN}]|[^\W{HAN}]+|[^\w\s]")
_SENTENCE = re.compile(r"""[^.!?。！？…\n]*[^.!?。！？…\s][^.!?。！？…\n]*[.!?。！？…]*["'”’)）]*""")


class Words(WordTokenizer):
    """Splits text into words, Chinese characters and punctuation marks; and into sentences."""

    def word_tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return [text[start:end] for start, end in self.span_tokenize(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in _SENTENCE.finditer(text)]


class Padded(Words):
    """Words, filled up to a least number, so that a text shorter than a shingle has one."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least = least

    def word_tokenize(self, text: str) -> list[str]:
        words = super().word_tokenize(text)
        return [*words, *[""] * (self.least - len(words))] if words else words


WORDS = Words()
