"""The page of all studies: verdicts, dates and links, newest first; what is damaged is left out with a warning."""

import html
import re
import shutil
from pathlib import Path

import pytest
import yaml

from dsv2.__main__ import main
from dsv2.report.index import write_index
from dsv2.storage.files import write_json
from dsv2.storage.rundir import write_result

CONTRASTS = """arm,baseline,metric,margin,better,error,n,mean,sd,low,high,word
mla,mha,val/loss,0.02,lower,0.05,3,-0.125,0.01,-0.2,-0.05,better
"""


def study(root: Path, name: str, date: str | None, question: str = "Is it so?") -> Path:
    """A study with a finished trial and, with a date, a report."""
    place = root / name / "tiny"
    trial = place / "trials" / "aaaa000000000000"
    trial.mkdir(parents=True)
    (trial / "config.yaml").write_text("seed: 0\n")
    write_result(trial, {"status": "finished", "metrics": {}})
    write_json(place / "study.json", {"trials": [["mla", 0, None, trial.name]]})
    (place / "study.yaml").write_text(yaml.safe_dump({"question": question}))
    if date is not None:
        (place / "report").mkdir()
        (place / "report" / "report.html").write_text("the report")
        (place / "report" / "contrasts.csv").write_text(CONTRASTS)
        write_json(place / "looks.json", {"looks": [{"date": "2026-01-01T00:00:00+00:00"}, {"date": date}]})
    return place


def text(page: str) -> str:
    """What a browser shows, on one line."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_studies_are_listed_newest_first_with_verdicts_and_links(runs: Path) -> None:
    study(runs, "older", "2026-03-01T10:00:00+00:00")
    study(runs, "newer", "2026-04-01T10:30:00+00:00", "Is a < b & c?")
    study(runs, "begun", None)
    page = write_index().read_text()
    shown = text(page)
    assert re.findall(r"(\w+) \(tiny\)", shown) == ["newer", "older", "begun"]
    assert re.findall(r'href="([^"]+)"', page) == ["newer/tiny/report/report.html", "older/tiny/report/report.html"]
    assert "newer (tiny) Is a < b & c? 2026-04-01 10:30 UTC · runs: 1 finished" in shown
    assert "mla against mha validation loss (nats/token) -0.1250 [-0.2000, -0.0500] better" in shown
    assert "begun (tiny) Is it so? no report yet · runs: 1 finished" in shown
    assert "<script" not in page
    assert "//" not in page.replace("<!doctype", "")


def test_reports_on_other_requests_and_single_runs_are_mentioned(runs: Path) -> None:
    place = study(runs, "mine", "2026-03-01T10:00:00+00:00")
    (place / "reports" / "0123456789abcdef").mkdir(parents=True)
    (place / "reports" / "0123456789abcdef" / "report.html").touch()
    single = runs / "train" / "bbbb000000000000"
    single.mkdir(parents=True)
    (single / "config.yaml").write_text("seed: 0\n")
    page = write_index().read_text()
    assert 'href="mine/tiny/reports/0123456789abcdef/report.html"' in page
    assert "1 single runs" in text(page)


def test_a_study_of_which_no_trial_is_left_is_listed(runs: Path) -> None:
    shutil.rmtree(study(runs, "mine", "2026-03-01T10:00:00+00:00") / "trials")
    assert "mine (tiny) Is it so? 2026-03-01 10:00 UTC · runs: none" in text(write_index().read_text())


@pytest.mark.parametrize("name", ["looks.json", "study.yaml", "report/contrasts.csv"])
def test_what_is_damaged_is_left_out_with_a_warning(runs: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    place = study(runs, "mine", "2026-03-01T10:00:00+00:00")
    (place / name).write_bytes(b"arm,mean\n\xff\0{[")
    assert "mine (tiny)" in text(write_index().read_text())
    said = capsys.readouterr().err
    assert said.startswith("warning: ")
    assert name in said


def test_the_page_is_written_by_a_command(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--html"]) == 2
    assert capsys.readouterr().err == f"error: {runs}: no such folder; there are no runs yet\n"
    runs.mkdir()
    assert main(["ls", "--html"]) == 0
    assert capsys.readouterr().out == f"{runs}/index.html\n"
    assert "No study has been run yet." in (runs / "index.html").read_text()
