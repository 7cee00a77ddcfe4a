"""Fenced blocks and command lines of a Markdown page."""

import re
from typing import NamedTuple


class Block(NamedTuple):
    language: str  # "" where none is given
    text: str


def blocks(markdown: str) -> list[Block]:
    """Every fenced block that is meant to be run; not the sources that a page quotes."""
    fenced = re.findall(r"^```([^\n]*)\n(.*?)^```", markdown, flags=re.S | re.M)
    return [Block(language.strip(), text) for language, text in fenced if ".source" not in language]


def commands(markdown: str) -> list[str]:
    """Lines of unnamed blocks, without their comments: what a reader types."""
    lines = [line for block in blocks(markdown) if not block.language for line in block.text.splitlines()]
    return [line.partition("  #")[0].strip() for line in lines if line.strip()]


def without_code(markdown: str) -> str:
    """What is left of a page without its fenced blocks and its words in backquotes."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", markdown, flags=re.S | re.M))
