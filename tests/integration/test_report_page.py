"""A report in a browser: its first screen answers, tables sort and filter, points and cells speak, dark is dark."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Locator

from ablations.reporting.findings import Findings
from ablations.reporting.words import StudyText
from ablations.reporting.write import write_report
from dsv2.statistics.contrast import Contrast
from tests.references.browser import chromium
from tests.references.tables import fake

pytestmark = pytest.mark.slow
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a study of three arms."""
    tables = fake(("none", "expert", "paper"), seeds=3, layers=1, steps=4)
    study = StudyText(
        **{"name": "balance", "scale": "smoke", "question": "What is asked?", "prediction": "It gets better."},
        **{"metric": "val/loss", "metrics": {"val/loss": "lower", "routing/max_violation": "lower"}, "equal": []},
        contrasts=[Contrast("paper", "none", "routing/max_violation", 0.1, "better")],
        **{"decided_at": 3, "baseline": "none", "seeds": range(3)},
        arms={arm: f"about {arm}" for arm in ("none", "expert", "paper")},
    )
    found = Findings(
        study=study,
        results=tables.results,
        metrics=tables.metrics,
        routing=tables.routing,
        accounting=tables.accounting,
        provenance={f"key{number}": f"value {number}" for number in range(9)},
    )
    path: Path = write_report(found, tmp_path_factory.mktemp("report"))
    return path.as_uri()


def column(section: Locator, index: int) -> list[str]:
    return section.locator(f"tbody tr:visible td:nth-child({index})").all_inner_texts()


def test_the_first_screen_answers_what_was_asked_what_came_out_and_how_sure(address: str) -> None:
    with chromium(width=1280, height=800) as tab:
        tab.page.goto(address)
        for text in ("What is asked?", "It gets better.", "Every interval is at", "trials finished", "training FLOPs"):
            box = tab.page.get_by_text(text).first.bounding_box()
            assert box["y"] + box["height"] <= 800, text
        framed = tab.page.locator("table.matrix td.confirmatory")
        assert framed.count() == 1
        assert framed.bounding_box()["y"] < 800
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 1280
        assert not tab.page.locator("figure").first.is_visible()  # folded

        tab.page.get_by_role("navigation").get_by_text("Figures").click()
        tab.page.locator("figure").first.wait_for()
        figure = tab.page.locator("figure", has=tab.page.locator("[data-points]")).first
        narrow = figure.bounding_box()["width"]
        figure.click()
        assert figure.bounding_box()["width"] >= narrow
        assert "big" in figure.get_attribute("class")
        assert tab.errors == []
        assert [url for url in tab.outside() if not url.startswith("file:")] == []


def test_tables_sort_by_number_and_filter_by_words(address: str) -> None:
    with chromium() as tab:
        tab.page.goto(address)
        tab.page.get_by_role("navigation").get_by_text("Results by arm").click()
        section = tab.page.locator("details", has=tab.page.get_by_role("heading", name="Results by arm"))
        head = section.locator("th").nth(3)
        head.click()
        values = [float(cell.split()[0]) for cell in column(section, 4)]
        assert values == sorted(values)
        assert head.get_attribute("aria-sort") == "ascending"
        head.press("Enter")
        values = [float(cell.split()[0]) for cell in column(section, 4)]
        assert values == sorted(values, reverse=True)

        tab.page.get_by_role("navigation").get_by_text("Provenance").click()
        long = tab.page.locator("details", has=tab.page.get_by_role("heading", name="Provenance"))
        assert long.locator("tbody tr:visible").count() == 9
        long.get_by_label("filter rows").fill("key7 VALUE")
        assert column(long, 1) == ["key7"]
        long.get_by_label("filter rows").fill("")
        assert len(column(long, 1)) == 9
        assert tab.errors == []


def test_points_and_cells_say_what_they_are(address: str) -> None:
    with chromium() as tab:
        tab.page.goto(address)
        tip = tab.page.locator("#tip")
        tab.page.locator("table.matrix td.confirmatory").hover()
        assert re.search(r"paper - none, expert violation .*\n.* 3 seeds, .*\nseed 0: ", tip.inner_text())
        tab.page.get_by_role("navigation").get_by_text("Figures").click()
        point = tab.page.locator("[data-points] use").first
        point.scroll_into_view_if_needed()
        box = point.bounding_box()
        tab.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert re.search(r"(expert|paper) - none, 3 seeds\n", tip.inner_text())
        cells = tab.page.locator("[data-cells]").first
        cells.scroll_into_view_if_needed()
        box = cells.bounding_box()
        tab.page.mouse.move(box["x"] + 2, box["y"] + 2)
        assert re.search(r"load / mean load\nexpert \d+, \w+ [\d,.M]+: \d", tip.inner_text())
        tab.page.mouse.move(2, 2)
        assert not tip.is_visible()
        assert tab.errors == []


def test_dark_follows_the_system_the_button_and_never_paper(address: str) -> None:
    with chromium() as tab:
        tab.page.emulate_media(color_scheme="light")
        tab.page.goto(address)
        light = tab.page.evaluate(BACKGROUND)
        ink = "getComputedStyle(document.querySelector('svg.figure')).fill"
        assert (light, tab.page.evaluate(ink)) == ("rgb(255, 255, 255)", "rgb(0, 0, 0)")
        tab.page.emulate_media(color_scheme="dark")
        assert (tab.page.evaluate(BACKGROUND), tab.page.evaluate(ink)) == ("rgb(22, 24, 27)", "rgb(232, 232, 232)")
        tab.page.get_by_role("button", name="light or dark").click()
        assert tab.page.evaluate(BACKGROUND) == light
        tab.page.get_by_role("button", name="light or dark").click()
        tab.page.emulate_media(media="print", color_scheme="dark")
        assert tab.page.evaluate(BACKGROUND) == light
        tab.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert all(tab.page.locator("details").evaluate_all("all => all.map(one => one.open)"))
        assert tab.errors == []
