"""The rules of Gopher (Rae et al. 2021, appendix A.1) and C4 (Raffel et al. 2020, section 2.2), by datatrove."""

from typing import NamedTuple

from datatrove.data import Document
from datatrove.pipeline.filters import C4QualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result

from dsv2.data.corpus.settings import Quality, Rules
from dsv2.data.corpus.words import WORDS


class Verdict(NamedTuple):
    reason: str  # the rule that drops the document; "" keeps it
    text: str  # without the lines that C4 removes


class Judge:
    """Applies the rules of a text's language, in the order of FineWeb: repetition, Gopher's rules, C4's."""

    def __init__(self, config: Quality.Config) -> None:
        self.filters = {"english": filters_of(config.english), "chinese": filters_of(config.chinese)}

    def judge(self, text: str, language: str) -> Verdict:
        """Judge a text; one in another language by the rules for English."""
        document = Document(text=text, id="")
        for each in self.filters.get(language, self.filters["english"]):
            kept, reason = get_filter_result(each.filter(document))
            if not kept:
                return Verdict(f"{each.name.split(' ', 1)[1]}: {reason}", text)
        return Verdict("", document.text)


def filters_of(rules: Rules.Config) -> list[BaseFilter]:
    """Return datatrove's filters with these rules."""
    top = {} if rules.top_ngrams else {"top_n_grams": ()}
    return [
        GopherRepetitionFilter(language=WORDS, **top),
        GopherQualityFilter(
            min_doc_words=rules.words[0],
            max_doc_words=rules.words[1],
            min_avg_word_length=rules.word_length[0],
            max_avg_word_length=rules.word_length[1],
            max_non_alpha_words_ratio=rules.alphabetic,
            stop_words=list(rules.stop_words),
            min_stop_words=rules.least_stop_words,
            language=WORDS,
        ),
        C4QualityFilter(
            filter_no_terminal_punct=rules.final_marks,
            min_num_sentences=rules.least_sentences,
            min_words_per_line=rules.least_line_words,
            language=WORDS,
        ),
    ]
