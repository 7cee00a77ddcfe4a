"""A model with its tokenizer: text in, text out."""

from typing import NamedTuple

from dsv2.data.tokenizer import Tokenizer
from dsv2.models.transformer import Transformer


class Reader(NamedTuple):
    """A model that reads and writes text."""

    model: Transformer
    tokenizer: Tokenizer
    longest: int  # tokens that the model was trained to read

    def prompt(self, text: str) -> list[int]:
        """Token ids of a prompt, begun as its tokenizer begins texts.

        Raises ValueError for an empty one, and for one that is not Unicode text, as arguments of a shell may be.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"prompt={text!r}: text in UTF-8") from None
        ids = [*self.tokenizer.prefix, *self.tokenizer.encode(text)]
        if not ids:
            raise ValueError("prompt='': at least one character")
        return ids
