"""Which language a text is in, by `py3langid`: naive Bayes over byte n-grams, 97 languages (Lui and Baldwin 2012)."""

from functools import lru_cache
from typing import NamedTuple

from py3langid.langid import MODEL_FILE, LanguageIdentifier

MOST = 400  # characters that are looked at
# Of written Chinese the model tells Mandarin, Wu and Cantonese apart, which share most of their texts.
NAMES = {"en": "english", "zh": "chinese", "wuu": "chinese", "yue": "chinese"}


class Language(NamedTuple):
    name: str  # as domains are called; a language without such a name by its code of ISO 639
    probability: float


@lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@lru_cache(maxsize=10_000)  # texts that are repeated are near one another
def _of_start(start: str) -> Language:
    shares: dict[str, float] = {}
    for code, probability in _identifier().rank(start):
        name = NAMES.get(code, code)
        shares[name] = shares.get(name, 0.0) + float(probability)
    best = max(shares, key=lambda name: shares[name])
    return Language(best, round(min(shares[best], 1.0), 4))


def identify(text: str) -> Language:
    """Return the likeliest language of the beginning of a text."""
    return _of_start(text[:MOST])
