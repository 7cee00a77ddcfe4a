"""Languages of texts."""

import pytest

from dsv2.data.corpus.language import identify
from tests.references.raw_texts import page, review


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (page(1), "english"),
        (review(1), "chinese"),
        ("房間有味，裝修太殘。", "chinese"),  # which the model takes for Cantonese
        ("Az öreg halász a kikötőben megjavította a hálót, és sokáig nézte a tengert.", "hu"),
    ],
)
def test_languages_are_known(text: str, name: str) -> None:
    language = identify(text)
    assert language.name == name
    assert 0.5 < language.probability <= 1


def test_only_the_beginning_counts() -> None:
    assert identify(page(1) + review(1) * 100) == identify(page(1) + review(2) * 100)
