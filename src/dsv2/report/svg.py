"""Figures of matplotlib as SVG within a page: colours that follow the page, ids of their own, texts to point at."""

import html
import re

from dsv2.plots.hover import CELLS, FIXED, POINTS

_HEAD = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_METADATA = re.compile(r"<metadata>.*?</metadata>\s*", re.DOTALL)
_EVERYTHING = re.compile(r'<style type="text/css">\*\{.*?\}</style>', re.DOTALL)  # for the whole page, if inlined
_SIZE = re.compile(r'(<svg[^>]*?) (?:width|height)="[\d.]+pt"')
_GREY = re.compile(r"#([0-9a-f]{2})\1\1\b")
_ID = re.compile(r'\sid="([^"]*)"')
_TEXTS = re.compile(rf"""\sid=(["'])(?P<start>{POINTS}|{CELLS})(?P<texts>.*?)\1""", re.DOTALL)
_TOLD = re.compile(r' told="(\d+)"')
_REFERENCE = re.compile(r'(href="#|url\(#)([^")]+)')
_DIGITS = re.compile(r"(?<![\d.])([1-9]\d*\.\d\d)\d+")  # not of numbers below 1, which scale glyphs
_NAMESPACES = re.compile(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"')
DARKEST, LIGHTEST = 0x16, 0xE8  # of a dark page, and of its text
DARK = "#16181b"  # a dark page, as in report.css


def inline(svg: str, name: str, width: int, label: str) -> str:
    """Return an SVG of matplotlib for use within an HTML page, `width` CSS pixels wide at most, read out as `label`.

    Greys become variables that `greys` defines, since on a dark page they are the other way round; ids get the prefix
    `name`, for several figures share a page.
    """
    told: list[str] = []  # texts, which nothing below may change

    def put_aside(found: re.Match[str]) -> str:
        attribute = "data-points" if found["start"] == POINTS else "data-cells"
        told.append(f' {attribute}="{html.escape(html.unescape(found["texts"]))}"')
        return f' told="{len(told) - 1}"'

    svg = _TEXTS.sub(put_aside, svg)
    text = _METADATA.sub("", _EVERYTHING.sub("", _HEAD.sub("", svg))).replace("<defs>\n   </defs>", "")
    text = _NAMESPACES.sub("", _DIGITS.sub(r"\1", text).replace("xlink:href", "href"))
    text = _SIZE.sub(r"\1", _SIZE.sub(r"\1", text))
    look = f'class="figure" style="max-width:{width}px" role="img" aria-label="{html.escape(label)}"'
    text = text.replace("<svg", f"<svg {look}", 1)
    text = _GREY.sub(r"var(--n\1)", text)
    used = {found[2] for found in _REFERENCE.finditer(text)}
    text = _ID.sub(lambda found: _identity(found[1], used, name), text)
    text = _REFERENCE.sub(lambda found: f"{found[1]}{name}-{found[2]}", text)
    text = re.sub(r">\s+<", "><", re.sub(r"\s*\n\s*", " ", text)).strip()
    return _TOLD.sub(lambda found: told[int(found[1])], text)


def _identity(given: str, used: set[str], name: str) -> str:
    """Return the attribute that takes the place of an id: none, unless something refers to it."""
    if given == FIXED:
        return ' class="fixed"'
    return f' id="{name}-{given}"' if given in used else ""


def greys(pages: str) -> str:
    """Return the CSS that defines the greys used in `pages`, on a light and on a dark page."""
    used = sorted(set(re.findall(r"--n([0-9a-f]{2})\b", pages)) | {"00", "ff"})
    both = "".join(f"--n{two}:light-dark(#{two * 3},{_dark(int(two, 16))});" for two in used)
    fixed = "".join(f"--n{two}:#{two * 3};" for two in used)
    return f":root{{{both}}} .figure .fixed{{{fixed}fill:#000}}"


def _dark(grey: int) -> str:
    """Return the colour of a grey on a dark page; `grey` is from 0 to 255, which is the page itself."""
    return DARK if grey == 255 else "#" + 3 * f"{round(LIGHTEST - grey / 255 * (LIGHTEST - DARKEST)):02x}"
