"""Results as a paper prints them, beside the published rows: out of stores with made-up results."""

import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablations.report import main
from ablations.reporting.findings import collect
from ablations.reporting.paper_table import html_table, latex, latex_text, markdown, paper_table, write_tables
from dsv2.study.files import read


@pytest.fixture
def table_9() -> dict:
    """The study of Table 9, which names that table."""
    return read("sweep", "attention_moe") | {"name": "table_9"}


class Cells(HTMLParser):
    """The text of every cell of an HTML table, row by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        self.inside = tag in ("td", "th")

    def handle_data(self, data):
        if self.inside and data.strip():
            self.rows[-1].append(data)


def test_the_paper_table_has_ours_and_the_published_rows(table_9, fill, capsys, runs):
    planned = fill(table_9, seeds=(0, 1))
    assert main(["sweep=table_9", "--table"]) == 0
    printed = capsys.readouterr().out
    folder = runs / "table_9" / "smoke" / "report"
    assert (folder / "paper_table.md").read_text() in printed
    table, text = paper_table(planned, collect(planned))
    assert list(table.columns) == list(planned.arms)
    assert table.loc[("ours", "KV cache per token (elements)"), "small_mla"] == "96"
    assert table.loc[("published", "KV cache per token (elements)"), "small_mla"] == "15.6K"
    assert table.loc[("published", "MMLU")].to_dict() == {
        "small_mha": "48.7",
        "small_mla": "50.0",
        "small_mha_partial_rope": "",
        "small_mha_key_norm": "",
        "large_mha": "57.5",
        "large_mla": "59.0",
    }
    losses = table.loc[("ours", "validation loss (lower is better)")]
    values = [float(losses[arm].split()[0]) for arm in ("small_mha", "small_mla")]
    assert values[0] - values[1] == pytest.approx(0.1, abs=0.01)
    assert "DeepSeek-V2, Table 9 (MoE models; small 1.33T tokens, large 420B)" in text
    assert "other models, data and budgets" in text
    assert markdown(table, text).count("\n|") == len(table) + 1
    assert "small_mla" in markdown(table, text)
    tex = (folder / "paper_table.tex").read_text()
    assert tex == latex(table, text)
    assert tex.count(r"\\") == len(table) + 1
    assert r"small\_mla" in tex
    assert r"table\_9 at scale smoke" in tex
    page = (folder / "paper_table.html").read_text()
    assert page.count("<tr>") == len(table) + 1
    assert text in page


def test_latex_is_plain_ascii(table_9, fill):
    planned = fill(table_9, seeds=(0, 1))
    tex = latex(*paper_table(planned, collect(planned)))
    assert "±" not in tex
    assert r"$\pm$" in tex


def test_html_is_the_same_each_time(table_9, fill):
    planned = fill(table_9, seeds=(0, 1))
    table, text = paper_table(planned, collect(planned))
    assert html_table(table, text) == html_table(table, text)


def test_every_format_has_every_cell(table_9, fill):
    planned = fill(table_9, seeds=(0, 1))
    table, text = paper_table(planned, collect(planned))
    cells = [[str(cell) for cell in row if cell] for row in table.to_numpy().tolist()]
    in_html = Cells(html_table(table, text)).rows[1:]
    in_latex = [line for line in latex(table, text).splitlines() if line.endswith(r"\\")][1:]
    in_markdown = markdown(table, text).splitlines()[2 : len(table) + 2]
    rows = zip(table.index, cells, in_html, in_latex, in_markdown, strict=True)
    for label, row, html_row, tex_row, markdown_row in rows:
        assert html_row[-len(row) :] == row
        assert label[1] in html_row
        shown = [cell.strip() for cell in tex_row.removesuffix(r"\\").replace(r"$\pm$", "±").split("&") if cell.strip()]
        assert shown[-len(row) :] == row
        assert label[1] in shown
        assert [cell.strip() for cell in markdown_row.strip("|").split("|") if cell.strip()] == [*label, *row]


def test_an_unfinished_table_says_so(fill):
    planned = fill("attention_dense", seeds=(0, 1), leave_out=1)
    _, text = paper_table(planned, collect(planned))
    assert "1 of 8 trials have no result: do not compare arms" in text


def test_any_study_has_a_table_of_its_own_rows(fill, runs):
    planned = fill("kv_rank", seeds=(0,))
    table, text = paper_table(planned, collect(planned))
    assert set(table.index.get_level_values(0)) == {"ours"}
    assert "Published" not in text
    assert (
        table.loc[("ours", "validation loss (lower is better)"), "rank1"].count("±") == 0
    )  # one seed has no deviation
    assert write_tables(planned) == ((runs / "kv_rank" / "smoke" / "report" / "paper_table.md").read_text(), [])


def test_names_are_escaped_in_every_format(mine, fill):
    """Of domains, which may be anything, and of arms."""
    metric = "val/bpb_50%_<i>$x"
    mine["judged"][metric] = "lower"
    mine["arms"] = {"none": mine["arms"]["none"], "a_b+c": mine["arms"]["expert"]}
    planned = fill(mine)
    table, text = paper_table(planned, collect(planned))
    label = "validation bits per byte, 50%_<i>$x (lower is better)"
    assert ("ours", label) in table.index
    tex = latex(table, text)
    assert r"validation bits per byte, 50\%\_\textless{}i\textgreater{}\$x (lower is better)" in tex
    assert r"a\_b+c" in tex
    (row,) = [row for row in Cells(html_table(table, text)).rows if any("bits per byte" in cell for cell in row)]
    assert row[0] == label
    assert "<i>" not in html_table(table, text) + markdown(table, text)
    assert "a_b+c" in markdown(table, text)


# ---- any text --------------------------------------------------------------------------------------------------------


@given(st.text(alphabet='\\{}$&#%_^~<>|"± ab\n') | st.text())
def test_latex_typesets_any_text_as_it_was_written(text):
    """Read as TeX reads it: no character is left that TeX would obey."""
    names = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<"}
    names |= {"textgreater": ">", "textbar": "|", "textquotedbl": '"'}
    tokens = re.split(r"(\\[a-z]+\{\}|\\[&%$#_{}]|\$\\pm\$)", latex_text(text))
    read = [names[t[1:-2]] if t.endswith("{}") and len(t) > 3 else "±" if "pm$" in t else t[1:] for t in tokens[1::2]]
    assert not re.search(r"[\\&%$#_{}~^<>|\"]", "".join(tokens[::2]))
    assert "".join(a + b for a, b in zip(tokens[::2], [*read, ""], strict=True)) == " ".join(text.split())


def test_a_latex_table_of_odd_names_has_its_cells():
    table = pd.DataFrame({"a&b": ["1 % 2"], "c_d": ["3 ± 4"]}, index=pd.MultiIndex.from_tuples([("ours", "x#y")]))
    tex = latex(table, "a_b & $5 ~ ^ # {\\x}")
    assert r"a\&b & c\_d \\" in tex
    assert r"x\#y & 1 \% 2 & 3 $\pm$ 4 \\" in tex
    assert r"\caption{a\_b \& \$5 \textasciitilde{} \textasciicircum{} \# \{\textbackslash{}x\}}" in tex
