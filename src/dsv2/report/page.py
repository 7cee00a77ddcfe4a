"""Reports as files: Markdown, a self-contained HTML page, tables as CSV and figures."""

import base64
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from dsv2.report.lead import MARKS, Lead
from dsv2.report.pictures import FORMATS, Picture
from dsv2.report.svg import greys, inline
from dsv2.storage.files import replacing, write_text

TEMPLATES = Path(__file__).parent / "templates"
# What Markdown, GitHub's or Python's, would read as markup: within a line, and at its start.
_INLINE = re.compile(r"[\\`*~$|]|(?<![^\W_])_|_(?![^\W_])|](?=[(\[:])|!(?=\[)|<(?=[A-Za-z/!?])|&(?=#?\w+;)")
_START = re.compile(r"[#>]|[+-](?=[\s-]|$)|\d+(?=[.)](\s|$))")
_BACKSLASHED = "\\`*_]!#>+-"  # the others are escaped as entities, which both know


class Table(NamedTuple):
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""  # printed below the table


class Section(NamedTuple):
    title: str
    paragraphs: Sequence[str]
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    finding: str = ""  # in bold above the paragraphs
    open: bool = False  # on a page with a lead, where others are folded


def write_page(
    folder: Path,
    title: str,
    headline: str,
    sections: Sequence[Section],
    tables: Mapping[str, str],
    *,
    lead: Lead | None = None,
    formats: Collection[str] = (),
) -> Path:
    """Write report.md, report.html, the figures and `tables` (CSV by name); return the path of report.html.

    Figures are PNGs, and files of the other `formats` too. With a `lead`, that is the first screen, instead of the
    headline, and sections are folded.
    """
    drawn = {
        folder / "figures" / name: content
        for section in sections
        for item in section.pictures
        for name, content in item.files(formats).items()
    }
    for stale in {path for kind in FORMATS for path in (folder / "figures").glob(f"*.{kind}")} - set(drawn):
        stale.unlink(missing_ok=True)  # from an earlier report
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for path, content in drawn.items():
        with replacing(path) as scratch:
            scratch.write_bytes(content)
    for name, table in tables.items():
        write_text(folder / f"{name}.csv", table)
    write_text(folder / "report.md", "\n\n".join(_markdown(title, headline, sections, lead)) + "\n")
    write_text(folder / "report.html", _html(title, headline, sections, lead))
    return folder / "report.html"


def _markdown(title: str, headline: str, sections: Sequence[Section], lead: Lead | None = None) -> Iterator[str]:
    """Yield the Markdown blocks of the page, in order."""
    yield f"# {markdown_text(title)}"
    if lead:
        yield from map(markdown_text, (f"Question: {lead.question}", f"Prediction: {lead.prediction}"))
        yield markdown_text(" ".join(filter(None, ("Outcome:", lead.held, lead.told))))
    yield f"**{markdown_text(headline)}**"
    if lead and lead.matrix:
        header, *rows = lead.matrix.plain()
        yield from (markdown_table(Table(header, rows)), markdown_text(lead.matrix.note))
    if lead:
        yield markdown_text("; ".join(f"{name}: {value}" for name, value in lead.cost))
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


def _html(title: str, headline: str, sections: Sequence[Section], lead: Lead | None) -> str:
    drawn = {
        item.name: inline(item.svg, f"f{number}", item.width, item.caption or item.name)
        for number, item in enumerate((item for section in sections for item in section.pictures), 1)
        if item.svg
    }
    return rendered(
        "report.html.j2",
        **{"title": title, "headline": headline, "sections": sections, "lead": lead, "drawn": drawn, "marks": MARKS},
        greys=greys("".join(drawn.values())),
        css=(TEMPLATES / "report.css").read_text(),
        script=(TEMPLATES / "report.js").read_text(),
    )


def rendered(template: str, **values: Any) -> str:
    """Render a template of this package with `values`, escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return environment.get_template(template).render(values)
