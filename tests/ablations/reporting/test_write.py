"""A report as files: one page that needs nothing from outside, and text that nobody reads as markup."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from markdown import markdown as render

from ablations.reporting.findings import Findings
from ablations.reporting.write import judged_again, report_study, write_report
from tests.references.pages import Page
from tests.references.tables import SIX, fake


def report(findings: Findings, folder: Path) -> tuple[str, str]:
    """The text of report.html and of report.md."""
    path = write_report(findings, folder)
    assert path == folder / "report.html"
    return path.read_text(), (folder / "report.md").read_text()


@pytest.fixture(scope="module")
def written(six_arms, findings_of, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete report."""
    folder = tmp_path_factory.mktemp("report")
    report(findings_of(six_arms), folder)
    return folder


def test_the_report_is_complete_and_self_contained(written: Path) -> None:
    html, markdown = (written / "report.html").read_text(), (written / "report.md").read_text()
    page = Page(html)
    figures = sorted(path.stem for path in (written / "figures").iterdir())
    assert len(figures) == 8
    assert html.count('<svg class="figure"') == len(figures)
    assert len(html) < 2_000_000
    assert all(source.startswith("data:image/png;base64,") for source in page.loaded)
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
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
    first = html.index("What does &lt;each&gt;")  # escaped, and before the verdict
    assert first < html.index("Its own | imbalance.") < html.index('class="verdict"') < html.index("trials finished")
    assert [path for path in written.rglob(".*") if path.is_file()] == []  # no scratch files stay


def test_the_table_holds_mean_and_deviation_of_finished_seeds(six_arms, written: Path) -> None:
    table = pd.read_csv(written / "table.csv").set_index("arm")
    paper = six_arms.results[six_arms.results["arm"] == "paper"]["val/loss"]
    assert list(table.index) == list(SIX)
    assert table.loc["paper", "val/loss mean"] == pytest.approx(paper.mean())
    assert table.loc["paper", "val/loss sd"] == pytest.approx(paper.std(ddof=1))
    assert (table["n"] == 3).all()


def test_verdicts_can_be_computed_again_from_what_was_written(six_arms, findings_of, written: Path) -> None:
    expected = findings_of(six_arms).verdicts
    again = judged_again(written)
    assert [effect[:3] for effect in again] == [effect[:3] for effect in expected]
    for one, other in zip(again, expected, strict=True):
        assert one.word == other.word
        assert one[3:9] == pytest.approx(other[3:9], rel=1e-12)
    stored = pd.read_csv(written / "contrasts.csv")
    assert list(stored["word"]) == [effect.word for effect in again]


def test_every_trial_has_a_row(six_arms, written: Path) -> None:
    trials = pd.read_csv(written / "trials.csv")
    assert list(trials.columns[:6]) == ["arm", "seed", "status", "steps", "tokens", "seconds"]
    assert len(trials) == 18
    assert trials["val/loss"].to_numpy() == pytest.approx(six_arms.results["val/loss"].to_numpy(), rel=1e-12)
    assert set(trials["steps"]) == {60}


def test_a_missing_trial_leaves_no_verdict(findings_of, tmp_path: Path) -> None:
    tables = fake(("none", "paper"), seeds=3, layers=1, steps=4)
    tables.results.loc[(tables.results["arm"] == "paper") & (tables.results["seed"] == 1), "status"] = "diverged"
    html, markdown = report(findings_of(tables), tmp_path)
    assert "No verdict: 1 of 6 trials have no result: paper seed 1 (diverged)." in markdown
    assert "## Verdicts" not in markdown
    assert "## Exploratory" not in markdown
    assert not (tmp_path / "figures" / "effects.png").exists()
    assert not re.search(r"[▲▼△▽]</", html)
    assert pd.read_csv(tmp_path / "table.csv").set_index("arm").loc["paper", "n"] == 2


def test_one_seed_gives_no_effects(study_text, findings_of, tmp_path: Path) -> None:
    tables = fake(("none", "paper"), seeds=1, layers=1, steps=4)
    _, markdown = report(findings_of(tables, study_text(tables, seeds=1)), tmp_path)
    assert "No verdict: one seed" in markdown
    assert "## Verdicts" not in markdown
    assert not re.search(r"\b(worse|nan|inf)\b|[▲▼△▽]", markdown)


def test_dense_studies_have_no_routing_figures_and_stale_ones_go(study_text, findings_of, tmp_path: Path) -> None:
    tables = fake(("mha", "mla"), seeds=3, steps=4, dense=True)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "expert_load.png").write_bytes(b"old")
    findings = findings_of(tables, study_text(tables, {"val/loss": "lower"}), routing=False)
    _, markdown = report(findings, tmp_path)
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert names == {"effects", "loss", "loss_difference", "val_loss_by_arm"}
    assert "routing" not in markdown


def test_a_store_is_reported_and_where_the_report_lies_is_said(fill, console, runs) -> None:
    report_study(fill("kv_rank"), console)
    folder = runs / "kv_rank" / "smoke" / "report"
    named = f"report:  {folder}/report.html\nfigures: {folder}/figures\nstudies: {runs}/index.html\n"
    assert console.file.getvalue().endswith(named)
    assert "kv_rank (smoke)" in (runs / "index.html").read_text()
    assert {path.name for path in folder.iterdir()} == {
        *("report.html", "report.md", "table.csv", "trials.csv", "contrasts.csv", "figures")
    }


def test_nothing_is_drawn_before_it_is_asked_for() -> None:
    heavy = "{'lightning', 'matplotlib.pyplot'}"
    code = f"import sys, ablations.reporting.write; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---- text of users ---------------------------------------------------------------------------------------------------


ODD = "[bold]is[/bold] [red] $x_1$ | <b>a</b> & 50% #1 :smile:"


@pytest.fixture
def odd(mine) -> dict:
    """A study whose question, prediction and arms are told in text that others take for markup."""
    for name, arm in mine["arms"].items():
        arm["about"] = f"{name} {ODD}"
    words = {
        "question": f"Is {ODD}?",
        "prediction": f"It {ODD}.",
        "published": f"Once {ODD}.",
        "shows_at": f"At {ODD}.",
    }
    return mine | words


def shows_the_words_of(study: dict, shown: str) -> bool:
    """Whether all is there as it was written, what is said of arms as well."""
    words = [study[name] for name in ("question", "prediction", "published", "shows_at")]
    arms = [shown.count(arm["about"]) for arm in study["arms"].values()]
    return all(word in shown for word in words) and arms == [1, 1]


def test_text_of_users_is_not_read_as_html(odd, fill, console, runs) -> None:
    planned = fill(odd)
    report_study(planned, console)
    html = (runs / "mine" / "smoke" / "report" / "report.html").read_text()
    assert shows_the_words_of(odd, Page(html).text)
    assert "<b>" not in html
    assert planned.verdict().startswith("Against none, 3 paired seeds, look 1, interval at 96%:")


def test_text_of_users_is_not_read_as_tags_of_markdown(odd, fill, console, runs) -> None:
    report_study(fill(odd), console)
    markdown = (runs / "mine" / "smoke" / "report" / "report.md").read_text()
    rendered = render(markdown, extensions=["tables"], output_format="html")
    assert shows_the_words_of(odd, Page(rendered).text)
    assert "<b>" not in rendered
