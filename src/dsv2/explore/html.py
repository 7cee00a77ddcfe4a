"""A trace as HTML: coloured tokens, tables and headings.

Every colour is also printed as a number under its token, so that no information relies on colour alone.

T tokens, K experts per token.
"""

import html
import math
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_rgb

from dsv2.explore.compare import Agreement
from dsv2.explore.trace import Trace, pairs
from dsv2.plots.text import device_colour

MODES = {
    "top expert": "The expert of highest affinity; colours are devices, shades the experts on a device.",
    "device": "The device of the expert of highest affinity.",
    "gate": "The highest affinity of the token; darker is higher.",
    "dropped": "The number of the token's pairs above their device's budget; darker is more.",
    "loss": "The loss of the token in nats, given those before it; darker is higher.",
}
DIFFERENCE = {"loss difference": "B's loss minus A's: blue where B predicts the token better, red where A does."}
LONG = 60  # characters from which a cell is wrapped
Colour = tuple[float, ...]


def painted(traced: Trace, layer: int, capacity_factor: float, mode: str, *, reference: Trace | None = None) -> str:
    """Return the text with each token coloured by `mode`; tooltips show loss, experts, devices, gates and drops.

    `reference` is a trace of the same tokens, with which the mode "loss difference" compares.
    """
    chosen = _by_token(traced, layer, capacity_factor)
    paint = _paint(traced, layer, chosen, mode, reference)
    spans = []
    for token, (piece, loss, mine) in enumerate(zip(traced.pieces, traced.losses.tolist(), chosen, strict=True)):
        colour, label = paint(token)
        hint = html.escape(_hint(token, piece, loss, mine))
        ink = "#fff" if _luminance(colour) < 0.4 else "#1a1a1a"
        spans.append(
            f'<span class="token" style="background:{_css(colour)};color:{ink}" title="{hint}">'
            f"<b>{html.escape(visible(piece))}</b><i>{label}</i></span>" + "<br>" * piece.count("\n")
        )
    return f'<div class="text">{"".join(spans)}</div>'


def token_table(traced: Trace, layer: int, capacity_factor: float) -> str:
    """Return a table with one row per token: loss, and experts with device and gate, highest affinity first.

    Dropped experts are struck through.
    """
    chosen = _by_token(traced, layer, capacity_factor)
    rows = []
    for token, (piece, loss, mine) in enumerate(zip(traced.pieces, traced.losses.tolist(), chosen, strict=True)):
        cells = [f"{pair.expert} (d{pair.device}) {pair.gate:.2f}" for pair in mine]
        struck = [f"<s>{cell}</s>" if pair.dropped else cell for cell, pair in zip(cells, mine, strict=True)]
        rows.append([str(token), html.escape(visible(piece)), "" if math.isnan(loss) else f"{loss:.2f}", *struck])
    slots = [f"expert {slot + 1}" for slot in range(len(chosen[0]))]
    return table(["#", "token", "loss, nats", *slots], rows, numbers={0, 2})


def _by_token(traced: Trace, layer: int, capacity_factor: float) -> list[list[Any]]:
    """Group the rows of `pairs`, as named tuples, by token."""
    rows = list(pairs(traced, layer, capacity_factor).itertuples(index=False))
    top_k = len(rows) // len(traced.pieces)
    return [rows[first : first + top_k] for first in range(0, len(rows), top_k)]


def table(header: list[str], rows: Iterable[Iterable[str]], *, numbers: Iterable[int] = ()) -> str:
    """Return an HTML table of cells that are HTML; the columns `numbers` are right-aligned, long cells wrap."""
    kinds = ["n" if index in set(numbers) else "" for index in range(len(header))]

    def line(tag: str, cells: Iterable[str]) -> str:
        inner = (
            f"<{tag} class='{'long' if len(cell) > LONG else kind}'>{cell}</{tag}>"
            for kind, cell in zip(kinds, cells, strict=True)
        )
        return f"<tr>{''.join(inner)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f'<div class="scroll"><table><thead>{line("th", header)}</thead><tbody>{body}</tbody></table></div>'


def heading(name: str, traced: Trace, load: pd.DataFrame, room: int) -> str:
    """Return the model's name, its loss on the text, and the pairs above a budget of `room` pairs per device."""
    over, total = int(load["dropped"].sum()), int(load["load"].sum())
    loss = ""
    if len(traced.pieces) > 1:
        loss = f"{traced.loss:.3f} nats per token, {traced.bits_per_byte:.3f} bits per byte; "
    return (
        f"<h2>{html.escape(name)}</h2><p>{len(traced.pieces)} tokens; {loss}"
        f"{over} of {total} pairs ({over / total:.1%}) above the budget of {room} per device.</p>"
    )


def agreement(first: Trace, second: Trace, likeness: Agreement) -> str:
    """Return a table of the agreement of two traces of one text, with reference values."""

    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.0%}"

    better = "-"
    if first.pieces == second.pieces:
        better = f"{int((second.losses[1:] < first.losses[1:]).sum())} of {len(first.pieces) - 1}"
    apart = second.bits_per_byte - first.bits_per_byte
    grouped = "-" if likeness.grouping is None else f"{likeness.grouping:.2f}"
    chance = f"two random routers: {share(likeness.profile_by_chance)}"
    rows = [
        [
            "bits per byte, B minus A",
            "-" if math.isnan(apart) else f"{apart:+.3f}",
            "negative: B predicts the text better",
        ],
        ["tokens that B predicts better", better, "half if neither is better"],
        ["similarity of loads", share(likeness.profile), f"overlap of the loads, each sorted; {chance}"],
        [
            "similarity of groups",
            grouped,
            "adjusted Rand index of tokens grouped by top expert: 1 if equal, 0 by chance",
        ],
    ]
    if likeness.same_top is not None:
        rows += [
            ["same top expert", share(likeness.same_top), "share of tokens"],
            ["experts in common", share(likeness.overlap), "share of a token's experts, mean over tokens"],
        ]
    return f"<h2>Agreement of A and B</h2>{table(['', '', 'reference'], rows, numbers={1})}"


def visible(piece: str) -> str:
    """Make a piece visible: line breaks and tabs as signs, a part of a character as an ellipsis."""
    return piece.replace("\n", "↵").replace("\t", "→") or "…"


def _hint(token: int, piece: str, loss: float, mine: list[Any]) -> str:
    loss_text = "first token, not predicted" if math.isnan(loss) else f"loss {loss:.2f} nats"
    lines = [f"token {token}, {piece!r}: {loss_text}"]
    for pair in mine:
        end = ", over capacity" if pair.dropped else ""
        lines.append(f"expert {pair.expert} on device {pair.device}, gate {pair.gate:.3f}{end}")
    return "\n".join(lines)


def _paint(
    traced: Trace, layer: int, chosen: list[list[Any]], mode: str, reference: Trace | None
) -> Callable[[int], tuple[Colour, str]]:
    """Return a function from token index to its colour and label."""
    top = [mine[0] for mine in chosen]
    losses = traced.losses.tolist()
    if mode == "top expert":
        shades = _shades(traced.routings[layer].affinities.shape[-1], traced.num_devices)
        return lambda token: (shades[top[token].expert], str(top[token].expert))
    if mode == "device":
        return lambda token: (tint(device_colour(top[token].device), 0.5), str(top[token].device))
    if mode == "gate":
        highest = max(pair.gate for pair in top) or 1.0
        return lambda token: (_ramp("Blues", top[token].gate / highest), f"{top[token].gate:.2f}".removeprefix("0"))
    if mode == "dropped":
        counts = [sum(pair.dropped for pair in mine) for mine in chosen]
        return lambda token: (_ramp("Oranges", counts[token] / len(chosen[token])), str(counts[token] or ""))
    if mode == "loss":
        most = max(losses[1:], default=0.0) or 1.0
        return lambda token: _unless_first(losses[token], lambda loss: (_ramp("Purples", loss / most), f"{loss:.1f}"))
    assert mode in DIFFERENCE, mode
    assert reference is not None
    apart = (traced.losses - reference.losses).tolist()
    widest = max(map(abs, apart[1:]), default=0.0) or 1.0
    diverging = colormaps["RdBu_r"]
    return lambda token: _unless_first(
        apart[token], lambda value: (diverging(0.5 + 0.4 * value / widest)[:3], _signed(value))
    )


def _signed(value: float) -> str:
    return f"{value:+.1f}" if abs(value) >= 0.05 else "0"


def _unless_first(value: float, paint: Callable[[float], tuple[Colour, str]]) -> tuple[Colour, str]:
    return ((1.0, 1.0, 1.0), "") if math.isnan(value) else paint(value)


def _shades(num_experts: int, num_devices: int) -> dict[int, Colour]:
    """Return a shade of the device's colour for each expert, paler from the first expert of a device to the last.

    With a single device, experts take the colours of devices in turn.
    """
    per_device = num_experts // num_devices
    if num_devices == 1:
        return {expert: tint(device_colour(expert), 0.5) for expert in range(num_experts)}
    return {
        expert: tint(device_colour(expert // per_device), 0.25 + 0.5 * (expert % per_device) / max(per_device - 1, 1))
        for expert in range(num_experts)
    }


def tint(colour: str, white: float) -> Colour:
    """Mix a colour with a share `white` of white, 0 to 1."""
    return tuple(part + (1 - part) * white for part in to_rgb(colour))


def _ramp(name: str, value: float) -> Colour:
    """Return the colour of a value on a colour map: 0 is white, 1 dark."""
    return (1.0, 1.0, 1.0) if value == 0 else colormaps[name](0.05 + 0.75 * float(value))[:3]


def _css(colour: Colour) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)


def _luminance(colour: Colour) -> float:
    return 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]
