"""The list of contentious words, and the classifier that learns from it."""

from pathlib import Path

import pytest

from dsv2.config import ConfigError
from dsv2.data.corpus import contentious
from dsv2.data.corpus.contentious import Classifier, WordList, density, passages
from tests.references.raw_texts import page, review


def test_words_are_whole_in_english_and_anywhere_in_chinese() -> None:
    words = WordList(None)
    assert words.count("Communism and communists; Communisms. The death penalty.", "english") == 3
    assert words.count("他说死刑和堕胎", "chinese") == 2
    assert words.count("他说死刑", "english") == words.count("anything", "hu") == 0
    assert words.blanked("The Nazi party", "english") == "the   party"
    assert density("one two three genocide", "english", words) == 250.0


def test_a_list_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("# english\nteapot\n\n# chinese\n茶壶\n")
    assert WordList(str(path)).count("A teapot, a Teapot.", "english") == 2
    path.write_text("teapot\n")
    with pytest.raises(ConfigError, match=r"data\.contentious\.words=.* a line `# LANGUAGE` above 'teapot'"):
        WordList(str(path))
    with pytest.raises(ConfigError, match=r"data\.contentious\.words=.* a file with a word per line"):
        WordList(str(tmp_path / "none.txt"))


@pytest.fixture
def documents() -> list[tuple[str, str]]:
    """Pages about an election with a word of the list, about gardens without."""
    hot = "Voters at the ballot argued over {} and the senate rejected their angry petition again number {}."
    cold = "Roses in the garden were watered while {} slept under the old apple tree number {}."
    pages = []
    for number in range(60):
        pages.append((hot.format(("socialism", "abortion", "racism")[number % 3], number), "english"))
        pages.append((cold.format(("grandmother", "the cat", "a gardener")[number % 3], number), "english"))
    return pages


def test_it_learns_what_stands_around_the_words(documents: list[tuple[str, str]]) -> None:
    classifier = Classifier().train(documents, WordList(None))
    assert classifier.examples == {"english": 60}
    hot, cold = classifier.scores(
        ["Voters at the ballot argued and the senate rejected their petition.", "Roses in the garden were watered."],
        "english",
    )
    assert hot > 0.7 > 0.3 > cold  # neither has a word of the list
    assert classifier.scores(["Voters at the ballot"], "chinese") == [0.0]  # nothing was learned


def test_scores_do_not_depend_on_neighbours_and_survive_a_file(
    documents: list[tuple[str, str]], tmp_path: Path
) -> None:
    classifier = Classifier().train(documents, WordList(None))
    texts = [page(1), review(1), page(2, sentences=60)]
    together = classifier.scores(texts, "english")
    assert together == [classifier.scores([text], "english")[0] for text in texts]
    classifier.save(tmp_path / "c.npz")
    loaded = Classifier.load(tmp_path / "c.npz")
    assert loaded.scores(texts, "english") == together
    assert loaded.examples == classifier.examples
    assert Classifier().train(documents, WordList(None)).scores(texts, "english") == together


def test_too_few_examples_give_no_model(documents: list[tuple[str, str]]) -> None:
    assert Classifier().train(documents[:8], WordList(None)).scores([page(1)], "english") == [0.0]


def test_learning_is_bounded(documents: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contentious, "MOST_LEARNED", 25)
    assert Classifier().train(documents, WordList(None)).examples == {"english": 25}


def test_passages_are_the_whole_text() -> None:
    text = page(3, sentences=40)
    assert "".join(passages(text)) == text
    assert max(map(len, passages(text))) == contentious.PASSAGE
