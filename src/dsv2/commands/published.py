"""`python -m dsv2 account --published`: published figures beside ours, and figures that are often quoted wrongly."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dsv2.report.terminal import add_row, open_console, open_table

if TYPE_CHECKING:
    from rich.table import Table

    from dsv2.accounting.quotations import Quotation


class Row(NamedTuple):
    """A published figure beside ours."""

    what: str
    name: str
    published: float
    ours: float
    unit: str
    difference: float  # relative to the published value
    agrees: bool | None  # None: not claimed
    why: str


def print_published(*, as_json: bool) -> None:
    """Print all published figures beside ours, then wrong quotations, as tables or JSON."""
    from dsv2.accounting.derived import derived
    from dsv2.accounting.published import PUBLISHED, WHAT, compare
    from dsv2.accounting.quotations import quotations

    compared, modelled, said = [compare(figure) for figure in PUBLISHED], derived(), quotations()
    if as_json:
        rows: list[dict[str, Any]] = [
            row.published._asdict() | row._asdict() | {"agrees": row.agrees} for row in compared
        ]
        rows = [{key: value for key, value in row.items() if key != "published"} for row in rows]
        for figure in modelled:
            own = figure._asdict()
            rows.append({"value": own.pop("published")} | own | {"difference": figure.difference, "agrees": None})
        rows += [quotation._asdict() | {"what": "quotation", "off": quotation.off} for quotation in said]
        print(json.dumps(rows, indent=2))
        return
    shown = [
        Row(WHAT[of.what][0], of.name, of.value, row.ours, of.unit, row.difference, row.agrees, row.why)
        for row in sorted(compared, key=lambda row: list(WHAT).index(row.published.what))
        for of in [row.published]
    ]
    shown += [Row(of.what, of.name, of.published, of.ours, of.unit, of.difference, None, of.why) for of in modelled]
    console = open_console()
    console.print(_figures(shown))
    console.print(_quotations(said))


def _figures(rows: Sequence[Row]) -> "Table":
    columns = ["model", "published", "ours", "difference", "agrees", "why"]
    table = open_table(columns, text=["agrees", "why"], title="Published figures and ours")
    words = {True: "yes", False: "no", None: "not claimed"}
    group = ""
    for row in rows:
        if row.what != group:
            group = row.what
            table.add_section()
            add_row(table, [group], style="bold")
        numbers = (f"{row.published:g}{row.unit}", f"{row.ours:.4g}{row.unit}", f"{row.difference:+.1%}")
        add_row(table, [row.name, *numbers, words[row.agrees], row.why])
    return table


def _quotations(said: "Sequence[Quotation]") -> "Table":
    title = "Often quoted, and wrong"
    table = open_table(["quotation", "quoted", "right", "off by", "why"], text=["why"], title=title)
    for row in said:
        numbers = (f"{row.quoted:g}{row.unit}", f"{row.right:.4g}{row.unit}", f"{row.off:+.0%}")
        add_row(table, [row.said, *numbers, row.why])
    return table
