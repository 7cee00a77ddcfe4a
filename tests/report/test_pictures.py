"""Files of a figure."""

import matplotlib
import matplotlib.pyplot as plt
import pytest

from dsv2.report.pictures import Drawing, Picture, picture, pictures

matplotlib.use("Agg")


def drawn(formats: tuple[str, ...] = ()) -> Picture:
    figure, ax = plt.subplots(figsize=(2, 1))
    ax.plot([1, 2, 3])
    return picture("line", "A line.", figure, formats)


@pytest.mark.parametrize(
    ("formats", "names"),
    [((), ["line.png"]), (("svg",), ["line.png", "line.svg"]), (("pdf", "png"), ["line.png", "line.pdf"])],
)
def test_a_png_is_written_and_what_else_is_asked_for(formats, names) -> None:
    files = drawn(formats).files(formats)
    assert list(files) == names
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert all(content.startswith(starts[name[-3:]]) for name, content in files.items())


def test_how_far_it_is_is_said_before_each_figure() -> None:
    said: list[str] = []

    def fail() -> None:
        raise ZeroDivisionError

    done, problems = pictures([Drawing("a", "", fail), Drawing("b", "", lambda: plt.subplots()[0])], (), said.append)
    assert said == ["drawing figure 1 of 2, a", "drawing figure 2 of 2, b"]
    assert ([item.name for item in done], len(problems)) == (["b"], 1)


def test_the_same_figure_gives_the_same_files() -> None:
    assert drawn(("svg", "pdf")) == drawn(("svg", "pdf"))
