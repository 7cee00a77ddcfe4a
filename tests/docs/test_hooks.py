"""What mkdocs is given: the page of studies holds every study, and code on a page is the code that runs."""

import os
import re
import subprocess
import sys
import types
from html.parser import HTMLParser
from pathlib import Path

import pytest
from mkdocs.exceptions import PluginError

from dsv2.study import files
from dsv2.study.files import StudyFile

ROOT = Path(__file__).parents[2]
STUDIES = sorted(path.stem for path in (ROOT / "configs" / "sweep").glob("*.yaml"))
SCALES = sorted(path.stem for path in (ROOT / "configs" / "scales").glob("*.yaml"))


class Sections(HTMLParser):
    """The text, the table rows and the code blocks of a page, by the id of the heading that they are under."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text: dict[str, str] = {}
        self.rows: dict[str, list[list[str]]] = {}
        self.code: dict[str, list[str]] = {}
        self._at, self._within = "", ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("h1", "h2"):
            self._at = given.get("id") or ""
            self.text[self._at], self.rows[self._at], self.code[self._at] = "", [], []
        elif tag == "tr" and self._at:
            self.rows[self._at].append([])
        elif tag in ("td", "th") and self._at:
            self._within = "cell"
            self.rows[self._at][-1].append("")
        elif tag == "pre" and self._at:
            self._within = "code"
            self.code[self._at].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "pre"):
            self._within = ""
        elif tag == "article":  # what follows is the theme's
            self._at = ""

    def handle_data(self, data: str) -> None:
        if not self._at:
            return
        self.text[self._at] += data
        if self._within == "cell":
            self.rows[self._at][-1][-1] += data
        elif self._within == "code":
            self.code[self._at][-1] += data


@pytest.fixture(scope="session")
def page(site: Path) -> Sections:
    return Sections((site / "studies.html").read_text())


def plain(text: str) -> str:
    """The text of a study as a page shows it: one paragraph, code without its backticks."""
    return " ".join(text.replace("`", "").split())


# ---- the page of studies ---------------------------------------------------------------------------------------------


def test_there_are_studies_and_scales() -> None:
    assert len(STUDIES) >= 14
    assert SCALES == ["base", "paper", "small", "smoke", "tiny"]


def test_every_scale_and_every_study_is_listed(page: Sections) -> None:
    assert re.findall(r"scale=(\w+)", page.text["studies"]) == SCALES
    header, *rows = page.rows["studies"]
    assert header == ["study", "question", "metric", "arms", "minimum seeds"]
    assert [row[0] for row in rows] == STUDIES
    assert set(page.text) == {"studies", *STUDIES}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_there_with_its_arms_and_its_command(page: Sections, hooks: types.ModuleType, name: str) -> None:
    study: StudyFile = hooks.read_study(name)
    text, arms = plain(page.text[name]), study.all_arms()
    said = [study.question, study.prediction, study.published_text, study.shows_at, *study.judged, *study.equal]
    for part in (*said, f"Baseline: {study.baseline}.", *study.data, *study.base, *study.probes):
        assert part is None or plain(part) in text, part
    header, *rows = page.rows[name]
    assert header == ["arm", "what it is", "overrides"]
    assert rows == [[arm, plain(node.about), " ".join(node.overrides)] for arm, node in arms.items()]
    command = f"python -m ablations.run sweep={name}"
    assert [block.split("\n") for block in page.code[name]] == [[f"{command} dry_run=true", command, ""]]
    (row,) = (row for row in page.rows["studies"] if row[0] == name)
    assert row[1:] == [plain(study.question), study.metric, str(len(arms)), str(study.seeds)]


@pytest.mark.parametrize("group", ["sweep", "scale"])
def test_a_folder_without_files_stops_the_build(
    group: str, hooks: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(files.FOLDERS, group, "nowhere")
    with pytest.raises(PluginError, match=f"no file of the group {group}"):
        hooks.studies_page()


@pytest.mark.slow
def test_the_command_builds_the_same_pages(site: Path, tmp_path: Path) -> None:
    words = ["-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    paths = {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=os.environ | paths, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    built = {path.name for path in (tmp_path / "site").glob("*.html")}
    assert built == {path.name for path in site.glob("*.html")} > {"studies.html", "equations.html"}
    again = Sections((tmp_path / "site" / "studies.html").read_text())
    assert again.rows == Sections((site / "studies.html").read_text()).rows
    assert set(again.rows) == {"studies", *STUDIES}


# ---- code beside equations -------------------------------------------------------------------------------------------


def test_the_code_on_a_page_is_the_code_that_runs(site: Path, hooks: types.ModuleType) -> None:
    block = hooks.code_block("src/dsv2/models/attention/mla.py", "MLA._absorbed")
    lines = block.split("```")[1].splitlines()[1:]
    source = (ROOT / "src/dsv2/models/attention/mla.py").read_text().splitlines()
    start = next(i for i, line in enumerate(source) if "def _absorbed" in line)
    assert lines == [line[4:] for line in source[start : start + len(lines)]]
    assert lines[-1].startswith("    return ")
    assert "[[src/" not in (site / "equations.html").read_text()


@pytest.mark.parametrize("what", [("src/dsv2/none.py", "route"), ("src/dsv2/models/moe/router.py", "Router.none")])
def test_code_that_is_gone_stops_the_build(what: tuple[str, str], hooks: types.ModuleType) -> None:
    with pytest.raises(PluginError, match=what[0]):
        hooks.code_block(*what)


@pytest.mark.parametrize(
    "line", ["see [[src/dsv2/config.py::digest]]", "[[src/dsv2/config.py:digest]]", "[[src/dsv2/config.py::digest]"]
)
def test_a_line_that_asks_for_code_in_another_way_stops_the_build(line: str, hooks: types.ModuleType) -> None:
    with pytest.raises(PluginError, match="alone on its line"):
        hooks.on_page_markdown(f"# Title\n\n{line}\n")
    assert "def digest(" in hooks.on_page_markdown("# Title\n\n[[src/dsv2/config.py::digest]]\n")
