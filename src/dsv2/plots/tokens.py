"""A text with each token coloured by the expert or device it is sent to: as HTML for a notebook, or as a figure.

T tokens, K experts per token, E experts, D devices.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.cells import cell_len, chop_cells

from dsv2.models.moe.router import Routing
from dsv2.plots.style import PAGE, headline, styled, title_height

By = Literal["expert", "device"]
TINT = 0.55  # share of the palette's colour mixed with white, so that black text stays readable
POINTS = 7.0
LETTER, LINE = 0.602 * POINTS / 72, 1.7 * POINTS / 72  # inches per character of the monospaced font, and per line


class Paint(NamedTuple):
    """How one token is drawn."""

    text: str
    group: int | None  # its expert or device; None if another one is highlighted
    struck: bool  # whether the pair that determines the colour is dropped
    note: str  # all its experts, gates and drops


@dataclass(frozen=True)
class Html:
    """HTML markup that a notebook renders; `str` returns the source."""

    text: str

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.text


def paints(
    tokens: Sequence[str],
    routing: Routing,
    *,
    by: By = "device",
    num_devices: int = 1,
    sequence: int = 0,
    choice: int = 0,
    highlight: int | None = None,
) -> list[Paint]:
    """Colour the T `tokens` of one sequence by their `choice`-th expert (0: highest affinity) or its device.

    `highlight` colours a single expert or device. Raises ValueError if arguments do not match the layer's routing.
    """
    batch, length, num_experts = routing.affinities.shape
    top_k = routing.experts.shape[-1]
    rules = {
        "by": (by, "expert or device", by in ("expert", "device")),
        "num_devices": (
            num_devices,
            f"a divisor of {num_experts} experts",
            num_devices > 0 and num_experts % num_devices == 0,
        ),
        "sequence": (sequence, f"0 to {batch - 1}", 0 <= sequence < batch),
        "choice": (choice, f"0 to {top_k - 1}", 0 <= choice < top_k),
        "tokens": (len(tokens), f"as many as were routed, {length}", len(tokens) == length),
    }
    for field, (value, valid, holds) in rules.items():
        if not holds:
            raise ValueError(f"{field}={value}: must be {valid}")
    per_device = num_experts // num_devices
    experts, gates = routing.experts[sequence].tolist(), routing.gates[sequence].tolist()
    dropped = [[False] * top_k] * length if routing.dropped is None else routing.dropped[sequence].tolist()
    painted = []
    for text, chosen, weights, drops in zip(tokens, experts, gates, dropped, strict=True):
        group = chosen[choice] if by == "expert" else chosen[choice] // per_device
        shown = group if highlight in (None, group) else None
        painted.append(Paint(text, shown, drops[choice], _note(chosen, weights, drops, per_device)))
    return painted


def _note(experts: list[int], gates: list[float], dropped: list[bool], per_device: int) -> str:
    return "\n".join(
        f"expert {expert} on device {expert // per_device}, gate {gate:.3f}" + (", dropped" if drop else "")
        for expert, gate, drop in zip(experts, gates, dropped, strict=True)
    )


def colours(count: int) -> list[tuple[float, float, float]]:
    """Return a light colour per group: colour-blind-safe for up to ten groups, else evenly spaced hues."""
    import seaborn as sns

    palette = sns.color_palette("colorblind", count) if count <= 10 else sns.husl_palette(count, l=0.6)
    red, green, blue = ([1 - TINT * (1 - colour[i]) for colour in palette] for i in range(3))
    return list(zip(red, green, blue, strict=True))


def num_groups(routing: Routing, by: By, num_devices: int) -> int:
    return routing.affinities.shape[-1] if by == "expert" else num_devices


def paint_html(
    tokens: Sequence[str],
    routing: Routing,
    *,
    by: By = "device",
    num_devices: int = 1,
    sequence: int = 0,
    choice: int = 0,
    highlight: int | None = None,
    title: str | None = None,
) -> Html:
    """Render `paints` as self-contained HTML: tooltips list all experts of a token, dropped ones are struck through.

    More than ten groups cannot be told apart by hue alone: hover over tokens, or use `highlight`.
    """
    painted = paints(
        tokens, routing, by=by, num_devices=num_devices, sequence=sequence, choice=choice, highlight=highlight
    )
    palette = [
        f"rgb({','.join(str(round(255 * part)) for part in c)})" for c in colours(num_groups(routing, by, num_devices))
    ]
    used = sorted({paint.group for paint in painted if paint.group is not None})
    key = " ".join(f'<span style="background:{palette[group]}">&nbsp;{group}&nbsp;</span>' for group in used)
    head = f"<b>{html.escape(title)}</b><br>" if title else ""
    body = "".join(_span(paint, palette) for paint in painted)
    block = "font-family:monospace;white-space:pre-wrap;line-height:1.6;color:black;background:white;padding:.5em"
    return Html(f'<div style="{block}">{head}{by}: {key}\n\n{body}</div>')


def _span(paint: Paint, palette: list[str]) -> str:
    style = f"background:{palette[paint.group]}" if paint.group is not None else ""
    style += ";text-decoration:line-through 2px" if paint.struck else ""
    text = html.escape(visible(paint.text))
    return f'<span style="{style}" title="{html.escape(paint.note)}">{text}</span>'


def visible(token: str) -> str:
    """Mark the line breaks of a token with a visible sign."""
    return token.replace("\r", "").replace("\n", "↵\n")


# ---- as a figure -----------------------------------------------------------------------------------------------------


@styled({"figure.constrained_layout.use": False})
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
    """Draw `paints` in a monospaced font, `width` inches wide; dropped tokens are struck through."""
    painted = paints(
        tokens, routing, by=by, num_devices=num_devices, sequence=sequence, choice=choice, highlight=highlight
    )
    palette = colours(num_groups(routing, by, num_devices))
    columns = int((width - 0.1) / LETTER)
    used = sorted({paint.group for paint in painted if paint.group is not None})
    key = [Paint(f"{by} ", None, False, ""), *(Paint(f" {group} ", group, False, "") for group in used)]
    placed = _placed([*key, Paint("\n\n", None, False, ""), *painted], columns)
    lines = 1 + max(row for _, row, _, _ in placed)
    head = title_height(title, width) + 0.1 if title else 0.0
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
    """Lay out pieces as (column, row, text, paint); a token is broken only if it is longer than a line."""
    placed, column, row = [], 0, 0
    for paint in painted:
        for i, piece in enumerate((visible(paint.text) if paint.note else paint.text).split("\n")):
            if i:
                column, row = 0, row + 1
            for part in chop_cells(piece, columns) if piece else ():
                if column and column + cell_len(part) > columns:
                    column, row = 0, row + 1
                placed.append((column, row, part, paint))
                column += cell_len(part)
    return placed


def _draw(ax: Axes, column: int, row: int, text: str, paint: Paint, palette: list[tuple[float, float, float]]) -> None:
    if paint.group is not None:
        ax.add_patch(Rectangle((column, row + 0.08), cell_len(text), 0.84, facecolor=palette[paint.group], linewidth=0))
    if text.strip():
        ax.text(column, row + 0.5, text, family="monospace", fontsize=POINTS, va="center_baseline")
    if paint.struck:
        ax.plot([column, column + cell_len(text)], [row + 0.5] * 2, color="black", linewidth=0.9, solid_capstyle="butt")
