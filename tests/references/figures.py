"""What every figure is held to: nothing cut off, nothing too small to read, no tick labels that touch."""

import io

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

TITLE = "A finding that is long enough to need a second line when it stands above a figure of a column's width"


def seen(ax: Axes) -> list[Line2D]:
    """The lines that can be seen and have points; others are for legends and for what is pointed at."""
    return [line for line in ax.lines if line.get_alpha() != 0 and len(np.asarray(line.get_xdata()))]


def ink(figure: Figure) -> np.ndarray:
    """Draw the figure at 100 dots per inch and return its darkness (height, width)."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    return 255 - np.asarray(Image.open(buffer).convert("L"), dtype=int)


def assert_readable(figure: Figure) -> None:
    """Assert that nothing touches the border and that no text is under 7 points."""
    dark = ink(figure)
    border = np.concatenate([dark[0], dark[-1], dark[:, 0], dark[:, -1]])
    assert border.max() == 0
    texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_visible() and text.get_text().strip()]
    assert min(text.get_fontsize() for text in texts) >= 7


def overlapping_ticks(figure: Figure) -> list[tuple[str, str]]:
    """Return the neighbours on a horizontal axis whose labels touch."""
    figure.canvas.draw()
    overlapping = []
    for ax in figure.axes:
        low, high = sorted(ax.get_xlim())
        ticks = [t for t in ax.xaxis.get_major_ticks() if low <= t.get_loc() <= high and t.label1.get_text()]
        shown = [tick.label1 for tick in ticks if tick.label1.get_visible()]
        boxes = [label.get_window_extent() for label in shown]
        overlapping += [
            (a.get_text(), b.get_text())
            for a, b, left, right in zip(shown, shown[1:], boxes, boxes[1:], strict=False)
            if left.x1 > right.x0
        ]
    return overlapping
