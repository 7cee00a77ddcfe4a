"""A page as files: it needs nothing from outside, shows text as it was written, and leaves nothing stale behind."""

import base64
import html
import io
import re
import warnings
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown import markdown as render
from PIL import Image

from dsv2.report.page import Section, Table, _markdown, markdown_table, markdown_text, write_page
from dsv2.report.pictures import Picture, picture
from dsv2.storage.space import DiskFull
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
    with pytest.raises(DiskFull, match=r"wide\.png: no space left on the disk"):
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
    assert "class=" not in wide
    assert "max-width:900px" in wide
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
    assert table == "| a&#124;b | c |\n| --- | --- |\n| 1 | x &#124; y |\n|  | 2 |"
    shown = render(table, extensions=["tables"], output_format="html")
    assert re.findall(r"<t[hd].*?>(.*?)</t[hd]>", html.unescape(shown)) == ["a|b", "c", "1", "x | y", "", "2"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<b>a</b>", "&#60;b>a&#60;/b>"),
        ("<!-- x --> <?php", "&#60;!-- x --> &#60;?php"),
        ("&lt; &#60; &amp;", "&#38;lt; &#38;#60; &#38;amp;"),
        ("p < 0.05, a <- b, R&D, a & b, 1 > 0", "p < 0.05, a <- b, R&D, a & b, 1 > 0"),
        ("a *b* _c_ d_e `f` ~g~ $h$", r"a \*b\* \_c\_ d_e \`f\` &#126;g&#126; &#36;h&#36;"),
        ("[a](b) [c]: d ![e][f] +0.1 [0.0, 0.2]", r"[a\](b) [c\]: d \![e\][f] +0.1 [0.0, 0.2]"),
        ("# a", r"\# a"),
        ("> a", r"\> a"),
        ("- a", r"\- a"),
        ("12. a", r"12\. a"),
        ("1) a", r"1\) a"),
        ("a\n\n# b\n\tc", "a # b c"),
        (r"C:\new\*", r"C:\\new\\\*"),
        ("balance_losses 1e-3 loss.expert=0.1 (x: y)", "balance_losses 1e-3 loss.expert=0.1 (x: y)"),
    ],
)
def test_only_what_would_be_markup_is_escaped(text: str, expected: str) -> None:
    assert markdown_text(text) == expected


MARKED = st.text(alphabet="\\`*_~$|[]()!<>&#+-=.:;1 ab/\n\"'{}^%") | st.text(
    alphabet=st.characters(categories=("L", "N", "P", "S", "Zs"))
)


@given(MARKED)
def test_markdown_shows_any_text_as_it_was_written(text: str) -> None:
    """As a paragraph, as a cell and as a caption."""
    words = " ".join(text.split())
    paragraph = render(markdown_text(text), extensions=["tables"], output_format="html")
    assert shown(paragraph) == ("p" if words else "", words)
    table = render(markdown_table(Table(["a", "b"], [[text, "end"]])), extensions=["tables"], output_format="html")
    assert list(map(html.unescape, re.findall("<td>(.*?)</td>", table))) == [words, "end"]


def shown(rendered: str) -> tuple[str, str]:
    """The tags of a page, and its text."""
    tags = re.findall(r"<(\w+)", rendered)
    return " ".join(tags), " ".join(Page(rendered).text.split())


@given(MARKED)
def test_captions_are_shown_as_they_were_written(text: str) -> None:
    (_, _, _, image, *_) = _markdown("T", "H", [Section("S", [], (), [Picture("a b(1)", text, PNG, 1)])])
    rendered = render(image, output_format="html")
    assert Page(rendered).loaded == ["figures/a%20b%281%29.png"]
    (alt,) = re.findall('alt="(.*?)"', rendered)
    assert html.unescape(alt) == (" ".join(text.split()) or ("S" if not text else ""))


@pytest.mark.parametrize("name", ["val/bpb_../../x", "a\x00b", "x" * 300, "数" * 300, "a b(c)"])
def test_a_figure_is_a_file_in_its_folder(name: str, tmp_path: Path) -> None:
    figure, _ = plt.subplots(figsize=(1, 1))
    write_page(tmp_path, "T", "H", [Section("S", [], (), [picture(name, "", figure)])], {})
    (file,) = (tmp_path / "figures").iterdir()
    assert list(tmp_path.rglob("*.png")) == [file]


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_a_figure_becomes_a_png_of_few_colours_and_is_closed() -> None:
    figure, ax = plt.subplots(figsize=(5, 3))
    ax.imshow(np.random.default_rng(0).random((40, 40, 3)))
    made = picture("noise", "All colours.", ax)
    assert not plt.fignum_exists(figure.number)
    image = Image.open(io.BytesIO(made.png))
    assert image.format == "PNG"
    assert image.size == (5 * 200, 3 * 200)
    assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
    assert len(image.convert("RGB").getcolors(maxcolors=100_000)) <= 256
    assert made[:2] == ("noise", "All colours.")
    assert made.width == 5 * 120


def test_letters_that_no_font_has_are_a_matter_of_the_figure() -> None:
    figure, ax = plt.subplots()
    ax.set_title("a\U000f0001")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert picture("x", "", figure).png


def test_a_picture_is_of_a_figure_or_of_one_of_its_axes() -> None:
    pngs = []
    for whole in (True, False):
        figure, ax = plt.subplots(figsize=(2, 1))
        ax.plot([1, 2, 3])
        pngs.append(picture("line", "", figure if whole else ax).png)
    assert pngs[0] == pngs[1]
