"""A page as files: it needs nothing from outside, shows text as it was written, and leaves nothing stale behind."""

import base64
import io
import re
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from markdown import markdown as render
from PIL import Image

from dsv2.report.page import Picture, Section, Table, markdown_table, picture, without_markup, write_page
from tests.references.pages import Page

matplotlib.use("Agg")

ODD = "<b>a</b> & 50% &lt; x < 3 <i>"
PNG = b"\x89PNG no picture, and bytes all the same"


@pytest.fixture
def sections() -> list[Section]:
    """A section with everything in it, and one of a paragraph."""
    table = Table(["arm", "loss"], [["none", "3.10"], [f"odd {ODD}", "+0.02"]], note=f"A note {ODD}.")
    pictures = [Picture("wide", f"Caption {ODD}", PNG, 900), Picture("small", "", PNG, 400)]
    full = Section(f"What {ODD}", [f"First {ODD}.", "Second."], [table], pictures, finding=f"Found {ODD}.")
    return [full, Section("Plain", ["Third."])]


@pytest.fixture
def written(sections: list[Section], tmp_path: Path) -> Path:
    return write_page(tmp_path, f"The {ODD}", f"Better {ODD}.", sections, {"losses": "arm,loss\nnone,3.1\n"}).parent


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_page_is_two_texts_its_tables_and_its_figures(written: Path) -> None:
    files = {str(path.relative_to(written)) for path in written.rglob("*") if path.is_file()}
    assert files == {"report.html", "report.md", "losses.csv", "figures/wide.png", "figures/small.png"}
    assert (written / "losses.csv").read_text() == "arm,loss\nnone,3.1\n"
    assert (written / "figures" / "wide.png").read_bytes() == PNG


def test_writing_again_replaces_what_is_there_and_removes_stale_figures(written: Path) -> None:
    (written / "figures" / "notes.txt").write_text("of the user")
    path = write_page(written, "Another", "Nothing.", [Section("One", [], (), [Picture("wide", "", b"new", 1)])], {})
    assert path == written / "report.html"
    assert {file.name for file in (written / "figures").iterdir()} == {"wide.png", "notes.txt"}
    assert (written / "figures" / "wide.png").read_bytes() == b"new"
    assert (written / "report.md").read_text().startswith("# Another\n\n**Nothing.**\n\n## One\n")


def test_a_full_disk_leaves_the_old_page(written: Path, sections: list[Section], monkeypatch) -> None:
    before = (written / "report.html").read_text()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dsv2.storage.files.sync", full)
    with pytest.raises(OSError, match="No space left"):
        write_page(written, "Another", "Nothing.", sections, {})
    assert (written / "report.html").read_text() == before
    assert not [path for path in written.rglob(".*") if path.is_file()]


# ---- HTML ------------------------------------------------------------------------------------------------------------


def test_the_html_loads_nothing_and_shows_text_as_it_was_written(written: Path) -> None:
    text = (written / "report.html").read_text()
    shown = Page(text)  # its tags nest
    assert shown.loaded == [f"data:image/png;base64,{base64.b64encode(PNG).decode()}"] * 2
    assert "url(" not in text
    assert "@import" not in text
    for words in ("The {}", "Better {}.", "What {}", "First {}.", "Found {}.", "odd {}", "A note {}.", "Caption {}"):
        assert words.format(ODD) in shown.text, words
    assert "<b>" not in text
    order = [shown.text.index(words) for words in ("Better", "What", "Found", "First", "Caption", "odd", "A note")]
    assert order == sorted(order)


def test_figures_stand_side_by_side_where_they_are_narrow(written: Path) -> None:
    wide, small = re.findall(r"<figure.*?</figure>", (written / "report.html").read_text(), flags=re.S)
    assert 'class="wide"' in wide
    assert 'width="900"' in wide
    assert 'class="narrow"' in small
    assert "figcaption" not in small
    assert 'alt="What &lt;b&gt;' in small  # the section's title, for want of a caption


def test_numbers_are_aligned_and_long_cells_have_room(tmp_path: Path) -> None:
    cells = ["3 arms", "3.10", "+0.02", "-1", "[0.1, 0.2]", "none", "", "word " * 15]
    path = write_page(tmp_path, "T", "H", [Section("S", [], [Table(["x"] * len(cells), [cells])])], {})
    kinds = re.findall(r"<td( class=\"\w+\")?>", path.read_text())
    number = ' class="n"'
    assert kinds == ["", number, number, number, number, "", "", ' class="long"']  # the first names its row


# ---- Markdown --------------------------------------------------------------------------------------------------------


def test_the_markdown_says_the_same(written: Path) -> None:
    text = (written / "report.md").read_text()
    shown = Page(render(text, extensions=["tables"], output_format="html"))
    for words in ("The {}", "Better {}.", "What {}", "First {}.", "Found {}.", "odd {}", "A note {}.", "Caption {}"):
        assert words.format(ODD) in shown.text, words
    assert shown.loaded == ["figures/wide.png", "figures/small.png"]
    assert "\n\n*Caption " in text
    assert text.count("\n*") == 1 + 2  # the caption, the headline and the finding: no empty caption
    assert text.endswith("Third.\n")


def test_cells_may_hold_what_separates_cells() -> None:
    table = markdown_table(Table(["a|b", "c"], [["1", "x | y"], ["", "2"]]))
    assert table == "| a\\|b | c |\n| --- | --- |\n| 1 | x \\| y |\n|  | 2 |"
    shown = render(table, extensions=["tables"], output_format="html")
    assert re.findall(r"<t[hd].*?>(.*?)</t[hd]>", shown) == ["a|b", "c", "1", "x | y", "", "2"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<b>a</b>", "&lt;b>a&lt;/b>"),
        ("<!-- x --> <?php", "&lt;!-- x --> &lt;?php"),
        ("&lt; &#60; &amp;", "&amp;lt; &amp;#60; &amp;amp;"),
        ("p < 0.05, a <- b, R&D, a & b, > quoted", "p < 0.05, a <- b, R&D, a & b, > quoted"),
    ],
)
def test_only_tags_and_entities_are_escaped(text: str, expected: str) -> None:
    assert without_markup(text) == expected


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_a_figure_becomes_a_png_of_few_colours_and_is_closed() -> None:
    figure, ax = plt.subplots(figsize=(5, 3))
    ax.imshow(np.random.default_rng(0).random((40, 40, 3)))
    made = picture("noise", "All colours.", ax)
    assert not plt.fignum_exists(figure.number)
    image = Image.open(io.BytesIO(made.png))
    assert image.format == "PNG"
    assert image.size == (5 * 150, 3 * 150)
    assert len(image.convert("RGB").getcolors(maxcolors=100_000)) <= 256
    assert made[:2] == ("noise", "All colours.")
    assert made.width == 5 * 120


def test_a_picture_is_of_a_figure_or_of_one_of_its_axes() -> None:
    pngs = []
    for whole in (True, False):
        figure, ax = plt.subplots(figsize=(2, 1))
        ax.plot([1, 2, 3])
        pngs.append(picture("line", "", figure if whole else ax).png)
    assert pngs[0] == pngs[1]
