"""A report as files: Markdown, one HTML page that needs nothing else, a table and figures."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ablations.sections import Section
from dsv2.files import replacing

if TYPE_CHECKING:
    from ablations.figures import Picture


def write_page(
    folder: Path, title: str, headline: str, sections: Sequence[Section], pictures: "Sequence[Picture]", table: str
) -> Path:
    """Write report.md, report.html, table.csv (the text `table`) and figures/*.png; the path of report.html."""
    files = {f"figures/{picture.name}.png": picture.png for picture in pictures}
    for stale in set((folder / "figures").glob("*.png")) - {folder / name for name in files}:
        stale.unlink(missing_ok=True)  # of an earlier report with other metrics
    for name, data in files.items():
        _write(folder / name, data)
    _write(folder / "table.csv", table.encode())
    _write(folder / "report.md", _markdown(title, headline, sections).encode())
    _write(folder / "report.html", _html(title, headline, sections).encode())
    return folder / "report.html"


def _markdown(title: str, headline: str, sections: Sequence[Section]) -> str:
    lines = [f"# {title}", "", f"**{headline}**", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for paragraph in section.paragraphs:
            lines += [paragraph, ""]
        if section.table:
            cells = [section.table.header, ["---"] * len(section.table.header), *section.table.rows]
            lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells] + [""]
        for picture in section.pictures:
            lines += [f"![{picture.caption}](figures/{picture.name}.png)", "", f"*{picture.caption}*", ""]
    return "\n".join(lines)


def _html(title: str, headline: str, sections: Sequence[Section]) -> str:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    template = environment.get_template("report.html.j2")
    return template.render(title=title, headline=headline, sections=sections)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as scratch:
        scratch.write_bytes(data)
