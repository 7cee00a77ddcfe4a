"""Reports in `results/` are written anew from their own files: the same numbers, and nothing is lost."""

import importlib
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from dsv2.report.page import Section, Table, markdown_table, markdown_text

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "docs"))
REBUILD = importlib.import_module("rebuild_results")


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a committed report, and that of the same after it was rebuilt."""
    before = ROOT / "results" / "balance_losses" / "tiny"
    after = tmp_path_factory.mktemp("results") / "balance_losses" / "tiny"
    shutil.copytree(before, after)
    assert REBUILD.rebuild(after) == after / "report.html"
    return before, after


def test_a_report_rebuilt_is_the_committed_one(rebuilt: tuple[Path, Path]) -> None:
    before, after = rebuilt
    for name in ("table", "trials", "contrasts"):
        stored, again = (pd.read_csv(folder / f"{name}.csv") for folder in rebuilt)
        pd.testing.assert_frame_equal(stored, again, rtol=1e-12)
    assert (after / "report.md").read_text() == (before / "report.md").read_text()


def test_what_needs_the_runs_is_kept(rebuilt: tuple[Path, Path]) -> None:
    before, after = rebuilt
    text = (after / "report.md").read_text()
    assert "## Per token, per FLOP and per second\n" in text
    assert text.rindex("## Provenance") == text.rindex("## ")
    names = re.findall(r"\(figures/(\w+)\.png\)", text)
    assert {"effects", "loss", "expert_load"} <= set(names)
    kept = before / "figures" / "expert_load.png"
    assert (after / "figures" / "expert_load.png").read_bytes() == kept.read_bytes()


def test_text_survives_markdown() -> None:
    odd = "a *b* _c_ d_e `f` ~g~ $h$ [x](y) | 1 <b> &lt;"
    table = Table(["a", odd], [["1", odd], ["", "2"]])
    text = f"# T\n\n## {markdown_text(odd)}\n\n{markdown_text(odd)}\n\n{markdown_table(table)}\n"
    (section,) = REBUILD.earlier(text)
    assert section == Section(odd, [odd], [Table(["a", odd], [["1", odd], ["", "2"]])])


def test_an_unknown_report_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert REBUILD.main(["none/smoke"]) == 2
    assert capsys.readouterr().err.startswith("no report none/smoke; there are aa/tiny, ")
