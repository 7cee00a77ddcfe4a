"""The report says what its tables support and no more, in one file that needs nothing from outside."""

import io
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from ablations.report import main
from ablations.reporting.summary import arm_statistics, study_effects, summary, verdict_table
from ablations.reporting.write import StudyText, write_report
from dsv2.statistics.verdicts import UNSEEN, judge
from tests.references.tables import SIX, Tables, fake

METRICS = {"val/loss": "lower", "routing/max_violation": "lower", "routing/entropy": "higher"}
PROVENANCE = {"git": {"commit": "abc123", "dirty": True}, "versions": {"torch": "2.11"}, "command": "python -m x"}


def text_of(tables: Tables, metrics: dict[str, str] = METRICS, seeds: int = 3) -> StudyText:
    arms = list(tables.accounting["arm"])
    return StudyText(
        name="balance",
        scale="smoke",
        question="What does <each> loss move?",
        prediction="Its own | imbalance.",
        metric=list(metrics)[-1],
        metrics=metrics,
        equal=["total_params", "tokens"],
        margin={},
        baseline=arms[0],
        arms={arm: f"about {arm}" for arm in arms},
        seeds=range(seeds),
        published="No ablation is published.",
        shows_at="From 100 steps and 3 seeds.",
    )


@pytest.fixture(scope="module")
def six() -> Tables:
    return fake(seeds=3, steps=6)


def report(study: StudyText, tables: Tables, folder: Path, routing: bool = True) -> tuple[str, str]:
    path = write_report(
        study,
        tables.results,
        tables.metrics,
        tables.routing if routing else None,
        tables.accounting,
        PROVENANCE,
        folder,
        step_floor={"routing/max_violation": 0.1},
        final_floor={"routing/max_violation": 0.05},
    )
    assert path == folder / "report.html"
    return path.read_text(), (folder / "report.md").read_text()


@pytest.fixture(scope="module")
def written(six: Tables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete report."""
    folder = tmp_path_factory.mktemp("report")
    report(text_of(six), six, folder)
    return folder


class Page(HTMLParser):
    """Checks that tags nest, and collects what a browser would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("img", "meta"):
            self.open.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_complete_and_self_contained(written: Path) -> None:
    html, markdown = (written / "report.html").read_text(), (written / "report.md").read_text()
    page = Page(html)
    figures = sorted(path.stem for path in (written / "figures").iterdir())
    assert len(page.loaded) == len(figures) >= 8
    assert all(source.startswith("data:image/png;base64,") for source in page.loaded)
    assert "url(" not in html
    assert "@import" not in html
    assert set(re.findall(r"\(figures/(\w+)\.png\)", markdown)) == set(figures)
    for part in (
        "Published",
        "No ablation is published.",
        "From 100 steps and 3 seeds.",
        "abc123",
        "uncommitted changes",
        "versions.torch",
        "651,264",
        "about paper",
    ):
        assert part in html
        assert part in markdown
    assert html.index('class="verdict"') < html.index("What does &lt;each&gt;")  # verdict first, and escaped
    assert [path for path in written.rglob(".*") if path.is_file()] == []  # no scratch files stay


def test_the_table_holds_mean_and_deviation_of_finished_seeds(six: Tables, written: Path) -> None:
    table = pd.read_csv(written / "table.csv").set_index("arm")
    paper = six.results[six.results["arm"] == "paper"]["val/loss"]
    assert list(table.index) == list(SIX)
    assert table.loc["paper", "val/loss mean"] == pytest.approx(paper.mean())
    assert table.loc["paper", "val/loss sd"] == pytest.approx(paper.std(ddof=1))
    assert (table["n"] == 3).all()


def test_an_unseen_cost_is_not_called_absent(six: Tables) -> None:
    study = text_of(six)
    headline, sentences = summary(study, study_effects(study, six.results))
    loss = next(text for text in sentences if text.startswith("val/loss"))
    assert "no visible cost or gain" in loss
    assert re.search(r"smaller than 0\.\d+ would not have been seen", loss)
    assert "equivalent" not in loss  # no margin was stated
    assert loss in headline
    assert sentences[0].startswith("routing/entropy")  # the study's own metric first


def test_budgets_are_compared_among_the_arms_that_hold_them(tmp_path: Path) -> None:
    tables = fake(("none", "paper", "wide"), seeds=2, layers=1, steps=4)
    tables.accounting["total_params"] = [1000, 995, 2000]
    study = replace(text_of(tables, seeds=2), differs={"wide": ("total_params",)})
    _, markdown = report(study, tables, tmp_path)
    assert "| total_params | yes, but in wide | 995 | 1,000 | 0.50% apart |" in markdown
    _, markdown = report(replace(study, baselines={"wide": "wide"}, differs={}), tables, tmp_path)
    assert "| total_params | yes | 995 | 2,000 | 0.50% apart |" in markdown  # another size is no side of a comparison


def test_nothing_is_unseen_where_no_seed_overlaps() -> None:
    """A mean of +0.09 with every seed above the baseline's is undecided, not invisible."""
    values = {"base": np.array([3.06, 3.12, 3.09, 3.11]), "arm": np.array([3.13, 3.28, 3.22, 3.13])}
    (effect,) = judge(values, "val/loss", baseline="base", direction="lower")
    assert effect.low < 0 < effect.mean
    assert (effect.word, effect.separated) == ("undecided", "above")
    assert UNSEEN not in effect.note


def test_a_missing_trial_leaves_no_verdict(tmp_path: Path) -> None:
    tables = fake(("none", "paper"), seeds=3, layers=1, steps=4)
    tables.results.loc[(tables.results["arm"] == "paper") & (tables.results["seed"] == 1), "status"] = "diverged"
    html, markdown = report(text_of(tables), tables, tmp_path)
    assert "No verdict: 1 of 6 trials have no result: paper seed 1 (diverged)." in markdown
    assert "## Effects" not in markdown
    assert not (tmp_path / "figures" / "effects.png").exists()
    assert "better" not in html
    assert pd.read_csv(tmp_path / "table.csv").set_index("arm").loc["paper", "n"] == 2


def test_one_seed_gives_no_effects(tmp_path: Path) -> None:
    tables = fake(("none", "paper"), seeds=1, layers=1, steps=4)
    _, markdown = report(text_of(tables, seeds=1), tables, tmp_path)
    assert "No verdict: one seed" in markdown
    assert "## Effects" not in markdown
    assert not re.search(r"\b(better|worse|nan|inf)\b", markdown)


def test_dense_studies_have_no_routing_figures_and_stale_ones_go(tmp_path: Path) -> None:
    tables = fake(("mha", "mla"), seeds=3, steps=4, dense=True)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "expert_load.png").write_bytes(b"old")
    _, markdown = report(text_of(tables, {"val/loss": "lower"}), tables, tmp_path, routing=False)
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert names == {"effects", "loss", "loss_difference", "budgets", "val_loss_by_arm"}
    assert "routing" not in markdown


def test_seeds_and_arms_outside_the_study_are_left_out(six: Tables) -> None:
    study = text_of(six, seeds=2)
    other = six.results.assign(arm=six.results["arm"].replace("paper", "another"))
    both = pd.concat([six.results, other[other["arm"] == "another"]])
    assert list(arm_statistics(study, both)["n"]) == [2] * 6
    assert {(effect.n, effect.arm) for effect in study_effects(study, both)} == {(2, arm) for arm in SIX[1:]}


def test_the_terminal_table_fits_eighty_columns(six: Tables) -> None:
    console = Console(file=io.StringIO(), width=80)
    verdict_table(text_of(six), six.results, console)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, output.splitlines())) <= 80
    assert "…" not in output
    assert output.count("paper_dropping │") == 2  # in both tables, whole
    assert "no visible cost" in output


def test_the_module_needs_neither_torch_nor_matplotlib_to_import() -> None:
    code = "import sys, ablations.report; print(sorted({'torch', 'lightning', 'matplotlib.pyplot'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("word", ["seeds=[0]", "workers=2", "optim.lr=1"])
def test_a_report_is_of_what_was_run_and_takes_nothing_else(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep=balance_losses", word]) == 2
    assert f"words={word!r} is not valid: sweep= and scale= alone" in capsys.readouterr().err
