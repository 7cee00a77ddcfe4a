"""Reports are read from the files that a study leaves behind, and damage is named."""

import pytest

from dsv2.explore import browse

MARKDOWN = "# toy (smoke)\n\n**Against none: worse & <b>.**\n\n## Results\n"
TABLE = "arm,n,val/loss mean,val/loss sd,own mean,own sd\nnone,2,5.1234,0.02,1,\na<b,1,5.2,,,\n"


@pytest.fixture
def report(runs):
    folder = runs / "toy" / "smoke" / "report"
    folder.mkdir(parents=True)
    (folder / "report.md").write_text(MARKDOWN)
    (folder / "table.csv").write_text(TABLE)
    (folder / "report.html").write_text('<p class="x">whole & "quoted"</p><script>bad()</script>')
    (runs / "toy" / "unfinished" / "report").mkdir(parents=True)
    return browse.Report(folder)


def test_a_report_is_found_and_read(runs, report):
    assert browse.reports(runs) == [report]
    assert report.name == "toy (smoke)"
    assert browse.headline(report) == "Against none: worse & <b>."
    table = browse.results(report)
    for cell in ("5.123 ± 0.020", "1.000", "a&lt;b", "validation loss"):
        assert f">{cell}</t" in table
    frame = browse.frame(report)
    assert frame.startswith("<iframe sandbox title")
    assert "whole &amp; &quot;quoted&quot;" in frame
    assert frame.count("<") == 2


@pytest.mark.parametrize(
    ("name", "content", "ask"),
    [
        ("report.md", "# no verdict", browse.headline),
        ("table.csv", "", browse.results),
        ("table.csv", "other,columns\n1,2\n", browse.results),
    ],
)
def test_damage_is_named(report, name, content, ask):
    (report.folder / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        ask(report)
    (report.folder / name).unlink()
    with pytest.raises(ValueError, match=name):
        ask(report)
