"""What stands on top of a study's report: the question, the prediction and whether it held, the verdicts, the cost."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

# How a cell is coloured: by direction, and pale where it is exploratory. "value": no comparison.
Tone = Literal["better", "worse", "equivalent", "undecided", "maybe-better", "maybe-worse", "open", "value"]
MARKS: dict[str, str] = {
    **{"better": "▲", "worse": "▼", "equivalent": "≈", "undecided": "?"},
    **{"maybe-better": "△", "maybe-worse": "▽", "open": "", "value": ""},
}


class Cell(NamedTuple):
    """An arm in a metric: a mean of the baseline, or a difference to it with its interval."""

    text: str = ""
    interval: str = ""
    tone: Tone = "value"
    confirmatory: bool = False  # whether it is a contrast that was declared before the study was run
    hint: str = ""  # arm, metric, number of seeds, values: shown when pointed at


class Column(NamedTuple):
    name: str
    about: str = ""  # unit and which direction is better


class Row(NamedTuple):
    name: str
    about: str  # the arm in words
    cells: Sequence[Cell]


class Matrix(NamedTuple):
    """The verdicts of a study: arms by metrics."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    note: str  # how to read it

    def plain(self) -> Iterator[list[str]]:
        """Yield the head and the rows as text, contrasts in the mark of their verdict."""
        yield ["arm", *(f"{column.name} ({column.about})" if column.about else column.name for column in self.columns)]
        for row in self.rows:
            yield [row.name, *(" ".join(filter(None, (_mark(c), c.text, c.interval))) for c in row.cells)]


class Lead(NamedTuple):
    """The first screen of a report."""

    question: str
    prediction: str
    held: str  # in a word or two, as in "held"; "" without a verdict
    told: str  # ... and in a sentence
    matrix: Matrix | None
    cost: Sequence[tuple[str, str]]  # name and value


def _mark(cell: Cell) -> str:
    return f"[{MARKS[cell.tone]}]" if cell.confirmatory else MARKS[cell.tone]
