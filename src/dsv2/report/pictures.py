"""Figures as files: PNG with few colours, SVG and PDF, and what a page shows of them."""

import io
import re
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from dsv2.printing import described

DPI = 200  # of a PNG
LONGEST_NAME = 60  # of a figure's file, in letters; a letter takes up to four bytes
PIXELS_PER_INCH = 120  # on a page; renders 7-point text at 12 pixels
FORMATS = ("png", "svg", "pdf")
REPRODUCIBLE: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


class Picture(NamedTuple):
    name: str
    caption: str
    png: bytes
    width: int  # on a page, in CSS pixels
    svg: str = ""
    pdf: bytes = b""

    def files(self, formats: Collection[str]) -> dict[str, bytes]:
        """Return the contents of the picture's files by name; a PNG is always among them."""
        kinds = {"png": self.png, "svg": self.svg.encode(), "pdf": self.pdf}
        return {f"{self.name}.{kind}": kinds[kind] for kind in FORMATS if kind == "png" or kind in formats}


class Drawing(NamedTuple):
    """A figure that is still to be drawn, by a function that returns a Figure or Axes."""

    name: str
    caption: str
    draw: Callable[[], Any]


def picture(name: str, caption: str, drawn: Any, formats: Collection[str] = ()) -> Picture:
    """Render a Figure or Axes to a PNG with 256 colours, a third of the full size in bytes, and an SVG, and close it.

    With "pdf" in `formats`, also to a PDF.
    """
    import matplotlib.pyplot as plt
    from matplotlib import rc_context
    from PIL import Image

    figure = drawn.get_figure() if hasattr(drawn, "get_xlim") else drawn
    made = {}
    with warnings.catch_warnings(), rc_context({"svg.hashsalt": "dsv2", "pdf.fonttype": 42}):
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the figure says so itself
        for kind in ("png", "svg", *(["pdf"] if "pdf" in formats else [])):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=DPI, metadata=REPRODUCIBLE.get(kind))
            made[kind] = buffer
    plt.close(figure)
    small = io.BytesIO()
    colours = Image.open(made["png"]).convert("RGB")
    colours.quantize(method=Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE).save(
        small, format="png", optimize=True, dpi=(DPI, DPI)
    )
    return Picture(
        re.sub(r"[^\w.+-]+", "_", name)[:LONGEST_NAME],
        caption,
        small.getvalue(),
        round(figure.get_size_inches()[0] * PIXELS_PER_INCH),
        made["svg"].getvalue().decode(),
        made["pdf"].getvalue() if "pdf" in made else b"",
    )


def pictures(
    drawings: Sequence[Drawing], formats: Collection[str] = (), begun: Callable[[str], object] = lambda text: None
) -> tuple[list[Picture], list[str]]:
    """Draw figures; return their pictures, and a sentence about each figure that failed.

    `begun` is called before each of them, with words that say how far it is.
    """
    import matplotlib.pyplot as plt

    done, problems = list[Picture](), list[str]()
    for number, drawing in enumerate(drawings, 1):
        begun(f"drawing figure {number} of {len(drawings)}, {drawing.name}")
        others = plt.get_fignums()
        try:
            done.append(picture(drawing.name, drawing.caption, drawing.draw(), formats))
        except Exception as error:  # of any library, as for a formula in a label; the other figures do not depend on it
            problems.append(f"The figure {drawing.name} could not be drawn: {described(error)}.")
            for number in set(plt.get_fignums()) - set(others):
                plt.close(number)
    return done, problems
