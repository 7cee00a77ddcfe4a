"""Reports as files: Markdown, a self-contained HTML page, tables as CSV and figures as PNG."""

import base64
import io
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from dsv2.printing import described
from dsv2.storage.files import replacing, write_text

DPI = 150
LONGEST_NAME = 60  # of a figure's file, in letters; a letter takes up to four bytes
PIXELS_PER_INCH = 120  # renders 7-point text at 12 pixels
# What Markdown, GitHub's or Python's, would read as markup: within a line, and at its start.
_INLINE = re.compile(r"[\\`*~$|]|(?<![^\W_])_|_(?![^\W_])|](?=[(\[:])|!(?=\[)|<(?=[A-Za-z/!?])|&(?=#?\w+;)")
_START = re.compile(r"[#>]|[+-](?=[\s-]|$)|\d+(?=[.)](\s|$))")
_BACKSLASHED = "\\`*_]!#>+-"  # the others are escaped as entities, which both know


class Table(NamedTuple):
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""  # printed below the table


class Picture(NamedTuple):
    name: str
    caption: str
    png: bytes
    width: int  # on a page, in CSS pixels


class Drawing(NamedTuple):
    """A figure that is still to be drawn, by a function that returns a Figure or Axes."""

    name: str
    caption: str
    draw: Callable[[], Any]


class Section(NamedTuple):
    title: str
    paragraphs: Sequence[str]
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    finding: str = ""  # in bold above the paragraphs


def picture(name: str, caption: str, drawn: Any) -> Picture:
    """Render a Figure or Axes to a PNG with 256 colours, a third of the full size in bytes, and close it."""
    import matplotlib.pyplot as plt
    from PIL import Image

    figure = drawn.get_figure() if hasattr(drawn, "get_xlim") else drawn
    whole, small = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the figure says so itself
        figure.savefig(whole, format="png", dpi=DPI)
    plt.close(figure)
    colours = Image.open(whole).convert("RGB")
    colours.quantize(method=Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE).save(
        small, format="png", optimize=True
    )
    return Picture(
        re.sub(r"[^\w.+-]+", "_", name)[:LONGEST_NAME],
        caption,
        small.getvalue(),
        round(figure.get_size_inches()[0] * PIXELS_PER_INCH),
    )


def pictures(drawings: Iterable[Drawing]) -> tuple[list[Picture], list[str]]:
    """Draw figures; return their pictures, and a sentence about each figure that failed."""
    import matplotlib.pyplot as plt

    done, problems = list[Picture](), list[str]()
    for drawing in drawings:
        others = plt.get_fignums()
        try:
            done.append(picture(drawing.name, drawing.caption, drawing.draw()))
        except Exception as error:  # of any library, as for a formula in a label; the other figures do not depend on it
            problems.append(f"The figure {drawing.name} could not be drawn: {described(error)}.")
            for number in set(plt.get_fignums()) - set(others):
                plt.close(number)
    return done, problems


def write_page(folder: Path, title: str, headline: str, sections: Sequence[Section], tables: Mapping[str, str]) -> Path:
    """Write report.md, report.html, figures/*.png and `tables` (CSV by name); return the path of report.html."""
    drawn = {folder / "figures" / f"{item.name}.png": item.png for section in sections for item in section.pictures}
    for stale in set((folder / "figures").glob("*.png")) - set(drawn):
        stale.unlink(missing_ok=True)  # from an earlier report
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for path, png in drawn.items():
        with replacing(path) as scratch:
            scratch.write_bytes(png)
    for name, table in tables.items():
        write_text(folder / f"{name}.csv", table)
    write_text(folder / "report.md", "\n\n".join(_markdown(title, headline, sections)) + "\n")
    write_text(folder / "report.html", _html(title, headline, sections))
    return folder / "report.html"


def _markdown(title: str, headline: str, sections: Sequence[Section]) -> Iterator[str]:
    """Yield the Markdown blocks of the page, in order."""
    yield from (f"# {markdown_text(title)}", f"**{markdown_text(headline)}**")
    for section in sections:
        yield f"## {markdown_text(section.title)}"
        if section.finding:
            yield f"**{markdown_text(section.finding)}**"
        yield from map(markdown_text, section.paragraphs)
        for item in section.pictures:
            shown = markdown_text(item.caption or section.title)
            yield f"![{re.sub(_BRACKET, _entity, shown)}](figures/{quote(item.name)}.png)"
            if item.caption:
                yield f"*{shown}*"
        for table in section.tables:
            yield markdown_table(table)
            if table.note:
                yield markdown_text(table.note)


_BRACKET = re.compile(r"\\?[\[\]]")


def markdown_text(text: str) -> str:
    """Return one line of Markdown that is shown as `text`, with line breaks as spaces."""
    line = re.sub(_INLINE, _escape, " ".join(text.split()))
    start = _START.match(line)
    if start is None:
        return line
    if start[0].isdigit():
        return f"{start[0]}\\{line[start.end() :]}"
    return _escape(start) + line[1:]


def _escape(special: re.Match[str]) -> str:
    return f"\\{special[0]}" if special[0] in _BACKSLASHED else _entity(special)


def _entity(special: re.Match[str]) -> str:
    return f"&#{ord(special[0][-1])};"


def markdown_table(table: Table) -> str:
    """Format a table as Markdown."""
    cells = [list(map(markdown_text, row)) for row in (table.header, *table.rows)]
    cells.insert(1, ["---"] * len(table.header))
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def _html(title: str, headline: str, sections: Sequence[Section]) -> str:
    return rendered("report.html.j2", title=title, headline=headline, sections=sections)


def rendered(template: str, **values: Any) -> str:
    """Render a template of this package with `values`, escaped."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment.get_template(template).render(values)
