"""A text with each token painted by its expert or device, for print. `painting` has it as HTML for notebooks."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dsv2.analysis.painting import By, Paint, colours, num_groups, paints, visible
from dsv2.analysis.style import PAGE, STYLE, headline, wrapped
from dsv2.models.moe.router import Routing

POINTS = 7.0
LETTER, LINE = 0.602 * POINTS / 72, 1.7 * POINTS / 72  # inches that a letter of the monospaced font and a line take


def paint_tokens(
    tokens: Sequence[str],
    routing: Routing,
    *,
    by: By = "device",
    num_devices: int = 1,
    sequence: int = 0,
    choice: int = 0,
    highlight: int | None = None,
    width: float = PAGE,
    title: str | None = None,
) -> Figure:
    """`painting.paints` in a monospaced font, `width` inches wide; dropped tokens are struck through."""
    painted = paints(
        tokens, routing, by=by, num_devices=num_devices, sequence=sequence, choice=choice, highlight=highlight
    )
    palette = colours(num_groups(routing, by, num_devices))
    columns = int((width - 0.1) / LETTER)
    used = sorted({paint.group for paint in painted if paint.group is not None})
    key = [Paint(f"{by} ", None, False, ""), *(Paint(f" {group} ", group, False, "") for group in used)]
    placed = _placed([*key, Paint("\n\n", None, False, ""), *painted], columns)
    lines = 1 + max(row for _, row, _, _ in placed)
    head = 0.15 * len(wrapped(title, width)) + 0.1 if title else 0.0
    with plt.rc_context(STYLE | {"figure.constrained_layout.use": False}):
        height = lines * LINE + 0.1 + head
        figure = plt.figure(figsize=(width, height))
        ax = figure.add_axes((0.05 / width, 0.05 / height, 1 - 0.1 / width, lines * LINE / height))
        ax.set(xlim=(0, (width - 0.1) / LETTER), ylim=(lines, 0))
        ax.set_axis_off()
        for column, row, text, paint in placed:
            _draw(ax, column, row, text, paint, palette)
        headline(figure, title)
    return figure


def _placed(painted: Sequence[Paint], columns: int) -> list[tuple[int, int, str, Paint]]:
    """(column, row, text, paint) of each piece; a token is broken only where it is longer than a line."""
    placed, column, row = [], 0, 0
    for paint in painted:
        for i, piece in enumerate((visible(paint.text) if paint.note else paint.text).split("\n")):
            if i:
                column, row = 0, row + 1
            while piece:
                if column and column + len(piece) > columns:
                    column, row = 0, row + 1
                placed.append((column, row, piece[:columns], paint))
                column += len(piece[:columns])
                piece = piece[columns:]
    return placed


def _draw(ax: Axes, column: int, row: int, text: str, paint: Paint, palette: list[tuple[float, float, float]]) -> None:
    if paint.group is not None:
        ax.add_patch(Rectangle((column, row + 0.08), len(text), 0.84, facecolor=palette[paint.group], linewidth=0))
    if text.strip():
        ax.text(column, row + 0.5, text.replace("$", r"\$"), family="monospace", fontsize=POINTS, va="center_baseline")
    if paint.struck:
        ax.plot([column, column + len(text)], [row + 0.5] * 2, color="black", linewidth=0.9, solid_capstyle="butt")
