"""Which documents are about values that are contested between regions: a list of words, and a classifier.

The classifier learns from the list: passages with a word of the list, and as many without, of each language. The words
themselves are blanked out of the former, so that it has to go by what stands around them. It is a logistic regression
on hashed words (of Chinese, characters) and pairs of them. Stochastic gradient descent in the order of the documents
gives the same weights whenever the documents are the same.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import SGDClassifier

from dsv2.config import ConfigError
from dsv2.data.corpus.words import HAN, WORDS

PASSAGE = 400  # characters
MOST_SCORED = 20  # passages of a document, evenly spaced
LEAST_LEARNED, MOST_LEARNED = 20, 10_000  # passages of either kind, of each language
FEATURES = 2**16
_BATCH = 512
_TOKEN = rf"[{HAN}]|[^\W{HAN}]+"


class WordList:
    """Words by language; one that another letter or digit continues is no occurrence, except in Chinese."""

    def __init__(self, path: str | None) -> None:
        """Read a file, or None for the package's own. Raises `ConfigError`."""
        text = _read(path)
        self.words: dict[str, list[str]] = {}
        for line in filter(None, map(str.strip, text.splitlines())):
            if line.startswith("#"):
                words = self.words.setdefault(line.lstrip("# ").lower(), [])
            elif not self.words:
                raise ConfigError("data.contentious.words", path, f"a line `# LANGUAGE` above {line!r}")
            else:
                words.append(line.lower())
        if not any(self.words.values()):
            raise ConfigError("data.contentious.words", path, "a file with a word per line")
        self.patterns = {language: _pattern(words) for language, words in self.words.items() if words}

    def count(self, text: str, language: str) -> int:
        """Count the occurrences of the words of a language."""
        pattern = self.patterns.get(language)
        return len(pattern.findall(text.lower())) if pattern else 0

    def blanked(self, text: str, language: str) -> str:
        """Return a text without them, in lower case."""
        return self.patterns[language].sub(" ", text.lower())


def _read(path: str | None) -> str:
    if path is None:
        return resources.files(__package__).joinpath("contentious_words.txt").read_text(encoding="utf-8")
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("data.contentious.words", path, f"a file with a word per line; {error}") from None


def _pattern(words: list[str]) -> re.Pattern[str]:
    """Match any of the words, the longest first; what a match may begin with is looked at before the words."""
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    inside = [word for word in longest_first if re.search(f"[{HAN}]", word)]
    bounded = [word for word in longest_first if word not in inside]
    parts = [rf"(?<!\w){_one_of(bounded)}(?!\w)"] if bounded else []
    return re.compile("|".join([*parts, *([_one_of(inside)] if inside else [])]))


def _one_of(words: list[str]) -> str:
    starts = "".join(re.escape(letter) for letter in sorted({word[0] for word in words}))
    return f"(?=[{starts}])(?:{'|'.join(map(re.escape, words))})"


def passages(text: str) -> list[str]:
    """Cut a text into pieces of equal length."""
    return [text[start : start + PASSAGE] for start in range(0, len(text), PASSAGE)]


class Classifier:
    """Scores documents with one model per language."""

    def __init__(self) -> None:
        self.features = HashingVectorizer(token_pattern=_TOKEN, ngram_range=(1, 2), n_features=FEATURES)
        self.models: dict[str, SGDClassifier] = {}  # by language
        self.examples: dict[str, int] = {}  # language -> passages of either kind that were learned

    def train(self, documents: Iterable[tuple[str, str]], words: WordList) -> "Classifier":
        """Train on pairs of text and language, read once; memory does not grow with them.

        A language in which fewer than LEAST_LEARNED passages have a word of the list gets no model.
        """
        batches: dict[str, list[tuple[str, int]]] = {}
        for language, text, label in self._examples(documents, words):
            batch = batches.setdefault(language, [])
            batch.append((text, label))
            if len(batch) == _BATCH:
                self._learn(language, batch)
                batch.clear()
        for language, batch in batches.items():
            self._learn(language, batch)
            if self.examples[language] < LEAST_LEARNED:
                del self.models[language]
        return self

    def _examples(self, documents: Iterable[tuple[str, str]], words: WordList) -> Iterator[tuple[str, str, int]]:
        """Yield language, passage and label: in turns one with a word of the list and one without."""
        wanted: dict[str, int] = {}
        for text, language in documents:
            if language not in words.patterns or self.examples.get(language) == MOST_LEARNED:
                continue
            for passage in passages(text):
                label = int(words.count(passage, language) > 0)
                if label == wanted.get(language, 1) and self.examples.get(language) != MOST_LEARNED:
                    yield language, words.blanked(passage, language) if label else passage.lower(), label
                    wanted[language] = 1 - label
                    self.examples[language] = self.examples.get(language, 0) + 1 - label

    def _learn(self, language: str, batch: list[tuple[str, int]]) -> None:
        model = self.models.setdefault(language, SGDClassifier(loss="log_loss", alpha=1e-4, random_state=0))
        if batch:
            texts, labels = zip(*batch, strict=True)
            model.partial_fit(self.features.transform(texts), labels, classes=[0, 1])

    def scores(self, texts: Sequence[str], language: str) -> list[float]:
        """Return for each text the mean probability of its passages, to 4 digits; 0 without a model."""
        if language not in self.models or not texts:
            return [0.0] * len(texts)
        pieces = [_chosen(passages(text)) for text in texts]
        flat = [piece.lower() for group in pieces for piece in group]
        probabilities = self.models[language].predict_proba(self.features.transform(flat))[:, 1]
        groups = np.split(probabilities, np.cumsum([len(group) for group in pieces])[:-1])
        return [round(float(group.mean()), 4) for group in groups]

    def save(self, path: Path) -> None:
        """Write the weights."""
        weights = {f"{name}:coef": model.coef_ for name, model in self.models.items()}
        weights |= {f"{name}:intercept": model.intercept_ for name, model in self.models.items()}
        counts = np.array([self.examples[name] for name in sorted(self.examples)], dtype=np.int64)
        with path.open("wb") as file:
            np.savez_compressed(file, names=np.array(sorted(self.examples)), counts=counts, **weights)

    @classmethod
    def load(cls, path: Path) -> "Classifier":
        """Read what `save` wrote."""
        classifier = cls()
        with np.load(path, allow_pickle=False) as stored:
            classifier.examples = dict(zip(map(str, stored["names"]), map(int, stored["counts"]), strict=True))
            for key in stored.files:
                language, colon, part = key.rpartition(":")
                if colon and part == "coef":
                    model = classifier.models.setdefault(language, SGDClassifier(loss="log_loss"))
                    model.coef_, model.intercept_ = stored[key], stored[f"{language}:intercept"]
                    model.classes_ = np.array([0, 1])
        return classifier


def density(text: str, language: str, words: WordList) -> float:
    """Return how many words of the list a text has, per 1,000 words."""
    total = max(len(WORDS.word_tokenize(text)), 1)
    return round(1000 * words.count(text, language) / total, 2)


def _chosen(pieces: list[str]) -> list[str]:
    """Return the passages of a document that are scored."""
    if len(pieces) <= MOST_SCORED:
        return pieces
    return [pieces[number] for number in np.linspace(0, len(pieces) - 1, MOST_SCORED).astype(int)]
