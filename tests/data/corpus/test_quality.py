"""The rules of Gopher and C4 on known documents, kept and dropped."""

import pytest

from dsv2.data.corpus.quality import Judge
from dsv2.data.corpus.settings import Quality
from tests.references.raw_texts import page, review


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(Quality.Config())


@pytest.mark.parametrize("seed", range(3))
def test_good_text_is_kept_as_it_is(judge: Judge, seed: int) -> None:
    assert judge.judge(page(seed), "english") == ("", page(seed))
    assert judge.judge(review(seed), "chinese") == ("", review(seed))


@pytest.mark.parametrize(
    ("text", "language", "reason"),
    [
        (page(1, sentences=3), "english", "Gopher Quality: gopher_short_doc"),
        (page(1) + "\nlorem ipsum dolor sit amet.", "english", "C4 Quality: lorem_ipsum"),
        (page(1) + "\nint main() { return 0; } to end the page.", "english", "C4 Quality: curly_bracket"),
        ("\n".join("- " + line for line in page(1).splitlines()), "english", "Gopher Quality: gopher_too_many_bullets"),
        ("\n".join([page(1).splitlines()[0]] * 12), "english", "Gopher Repetition: dup_line_frac"),
        (page(1).replace(".", ""), "english", "C4 Quality: too_few_sentences"),
        (
            " ".join(["Zxqv wxyz bcdf"] * 2 + [f"qk{n}zz vw{n}pp" for n in range(40)]),
            "english",
            "gopher_enough_stop_words",
        ),
        ("很好", "chinese", "Gopher Quality: gopher_short_doc"),
        ("我觉得这本书真的很不错" * 5, "chinese", "Gopher Repetition: duplicated_5_n_grams"),
        ("我！？。。，，！！1 2 3 4 5 6 7 8 9 0 是不错", "chinese", "gopher_below_alpha_threshold"),
    ],
)
def test_bad_text_is_dropped_by_its_rule(judge: Judge, text: str, language: str, reason: str) -> None:
    assert reason in judge.judge(text, language).reason


def test_lines_that_are_no_prose_are_removed(judge: Judge) -> None:
    verdict = judge.judge(
        f"Home | About\n{page(2)}\nPlease enable Javascript to read on.\nWe use cookies for this.", "english"
    )
    assert verdict == ("", page(2))


def test_other_languages_are_judged_as_english(judge: Judge) -> None:
    assert judge.judge(page(1), "hu") == judge.judge(page(1), "english")
