"""Words and sentences for datatrove's filters."""

from dsv2.data.corpus.words import WORDS, Padded


def test_words_are_split_at_spaces_and_marks_and_chinese_at_characters() -> None:
    assert WORDS.word_tokenize("It's 3 cats, naïve!") == ["It", "'", "s", "3", "cats", ",", "naïve", "!"]
    assert WORDS.word_tokenize("我买了iPad，好。") == ["我", "买", "了", "iPad", "，", "好", "。"]
    assert WORDS.word_tokenize("  \n") == []


def test_sentences_end_at_their_marks() -> None:
    assert [s.strip() for s in WORDS.sent_tokenize('He said "no." Then? Yes!')] == ['He said "no."', "Then?", "Yes!"]
    assert WORDS.sent_tokenize("很好。不错！") == ["很好。", "不错！"]
    assert WORDS.sent_tokenize("no mark\nnor here") == ["no mark", "nor here"]
    assert WORDS.sent_tokenize("...") == []


def test_spans_are_of_the_text() -> None:
    text = "One. Two three! 四。"
    assert [text[a:b] for a, b in WORDS.span_tokenize(text)] == WORDS.sent_tokenize(text)


def test_short_texts_are_padded_to_a_shingle() -> None:
    assert Padded(4).word_tokenize("很好") == ["很", "好", "", ""]
    assert Padded(4).word_tokenize("") == []
    assert Padded(1).word_tokenize("a b") == ["a", "b"]
