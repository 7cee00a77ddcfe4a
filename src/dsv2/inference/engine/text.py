"""The text of an answer as its tokens come in: whole characters only, up to the first stop string."""

import codecs
from collections.abc import Sequence

from dsv2.data.tokenizer import Tokenizer


class TextStream:
    """Text that grows token by token and ends before the first of `stops`, which may begin and end within tokens.

    What may still become a stop string, or lacks bytes of its last character, is held back. Pieces, joined, are `text`.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.text, self.shown = "", 0  # characters that were handed out
        self.stopped = False

    def add(self, token: int) -> str:
        """Take the next token; return the text that is certain by now and was not returned before."""
        return self._grown(self.decoder.decode(self.tokenizer.bytes_of(token)), held=True)

    def end(self) -> str:
        """Return what was held back, now that no more tokens come; bytes of half a character become U+FFFD."""
        return self._grown(self.decoder.decode(b"", final=True), held=False)

    def _grown(self, more: str, *, held: bool) -> str:
        if self.stopped:
            return ""
        before, self.text = len(self.text), self.text + more
        places = [self.text.find(stop, max(before - len(stop) + 1, 0)) for stop in self.stops]
        if found := [place for place in places if place >= 0]:
            self.text, self.stopped = self.text[: min(found)], True
        sure = len(self.text) - (self._begun() if held and not self.stopped else 0)
        piece = self.text[self.shown : sure]
        self.shown = max(self.shown, sure)
        return piece

    def _begun(self) -> int:
        """Return how many characters at the end of the text may be the beginning of a stop string."""
        longest = max(map(len, self.stops), default=0)
        for length in range(min(longest - 1, len(self.text)), 0, -1):
            ending = self.text[-length:]
            if any(stop.startswith(ending) for stop in self.stops):
                return length
        return 0
