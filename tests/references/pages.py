"""Pages in HTML as a browser would take them."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Checks that tags nest, and collects what a browser would load and what it would show."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("img", "meta"):
            self.open.append(tag)
        asked = [value or "" for name, value in attrs if name in ("src", "href")]
        self.loaded += [address for address in asked if not address.startswith("#")]  # others are on the page itself

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
