"""A model with its tokenizer: text in, text out."""

from typing import NamedTuple

from dsv2.data.tokenizer import Tokenizer
from dsv2.inference.engine.engine import Engine
from dsv2.models.transformer import Transformer


class Reader(NamedTuple):
    """A model that scores and generates text."""

    model: Transformer
    tokenizer: Tokenizer
    longest: int  # sequence length that the model was trained on

    def prompt(self, text: str) -> list[int]:
        """Encode a prompt, with the tokenizer's prefix.

        Raises ValueError if it is empty, is not Unicode text, as arguments of a shell may be, or has a token beyond the
        model's vocabulary.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"prompt={text!r}: must be text in UTF-8") from None
        ids = [*self.tokenizer.prefix, *self.tokenizer.encode(text)]
        if not ids:
            raise ValueError("prompt='': must have at least one character")
        if max(ids) >= self.model.config.vocab_size:
            size = self.model.config.vocab_size
            raise ValueError(f"prompt={text!r}: has the token {max(ids)}, but the model's vocabulary has {size}")
        return ids

    def engine(
        self,
        *,
        num_rows: int,
        max_length: int | None = None,
        max_waiting: int | None = None,
        prompts_first: bool = True,
    ) -> Engine:
        """Return an engine of rows of `max_length` tokens (default: `longest`), whose other arguments are `Engine`'s.

        Only ids that have a token are generated.
        """
        return Engine(
            self.model,
            num_rows=num_rows,
            max_length=self.longest if max_length is None else max_length,
            tokenizer=self.tokenizer,
            ids=self.tokenizer.ids,
            max_waiting=max_waiting,
            prompts_first=prompts_first,
        )
