"""`python docs/rebuild_results.py [STUDY/SCALE ...]`: write the reports under `results/` anew from their own files.

Verdicts, tables and figures of what `trials.csv` and `contrasts.csv` hold are computed again. What else there was, as
it needs the runs themselves (curves, loads), is kept: its sections with their tables, and its figures as they are.
"""

import html
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from ablations.reporting.figures import draw
from ablations.reporting.findings import Findings
from ablations.reporting.lead import lead_of
from ablations.reporting.sections import sections_of
from ablations.reporting.summary import summary
from ablations.reporting.words import StudyText, text_of
from ablations.reporting.write import contrasts_table, trials_table
from ablations.trials.looks import first_look
from ablations.trials.trials import Study
from dsv2.report.page import Section, Table, write_page
from dsv2.report.pictures import PIXELS_PER_INCH, Picture

RESULTS = Path(__file__).parents[1] / "results"
EARLIER_DPI = 150  # of figures that do not say theirs
EARLIER = ("Verdicts", "Question")  # sections of earlier reports whose words stand elsewhere now


def rebuild(folder: Path) -> Path:
    """Write the report of a folder `<study>/<scale>` anew; return the path of report.html."""
    text = (folder / "report.md").read_text() if (folder / "report.md").is_file() else ""
    kept, captions = earlier(text), dict(re.findall(r"\(figures/(.*?)\.png\)\n\n\*(.*)\*\n", text))
    findings = findings_of(folder, {section.title: section for section in kept})
    drawn, problems = draw(findings)
    if problems:
        raise ValueError(" ".join(problems))
    names = {picture.name for picture in drawn}
    drawn += [stored(folder, name, plain(said)) for name, said in captions.items() if name not in names]
    sections = sections_of(findings, drawn)
    titles = {section.title for section in sections} | set(EARLIER)
    sections[-1:-1] = [section for section in kept if section.title not in titles and section.tables]
    tables = {"table": findings.by_arm, "trials": trials_table(findings), "contrasts": contrasts_table(findings)}
    csv = {name: table.to_csv(index=False) for name, table in tables.items()}
    title = f"{findings.study.name} ({findings.study.scale})"
    return write_page(folder, title, summary(findings)[0], sections, csv, lead=lead_of(findings))


def findings_of(folder: Path, kept: dict[str, Section]) -> Findings:
    """Read what a written report holds of its study: its trials, and its contrasts as they were declared."""
    name, scale = folder.parts[-2:]
    trials, declared = (
        pd.read_csv(folder / f"{table}.csv", float_precision="round_trip", dtype={"arm": str, "baseline": str})
        for table in ("trials", "contrasts")
    )
    arms, seeds = list(dict.fromkeys(trials["arm"])), list(dict.fromkeys(trials["seed"]))
    study = Study(name, scale, seeds)
    text = _only(text_of(study), arms, trials, declared)
    look = first_look(seeds, study.decided_at, max(len(text.contrasts), 1))
    if abs(look.error - declared["error"][0]) > 1e-9:
        raise ValueError(f"{folder}: its intervals have an error of {declared['error'][0]}, a first look {look.error}")
    accounting = study.accounting()
    return Findings(
        study=text,
        results=trials,
        accounting=accounting[accounting["arm"].isin(arms)].assign(seeds=len(seeds)),
        provenance=provenance(kept["Provenance"]) if "Provenance" in kept else {},
        final_floor=floor_of(kept["Results by arm"], list(text.metrics)) if "Results by arm" in kept else {},
        recorded=look,
    )


def _only(text: StudyText, arms: Sequence[str], trials: pd.DataFrame, declared: pd.DataFrame) -> StudyText:
    """Leave out arms, metrics and contrasts that the report was not about."""
    from dataclasses import replace

    judged = [tuple(row) for row in declared[["arm", "baseline", "metric"]].itertuples(index=False, name=None)]
    contrasts = [contrast for contrast in text.contrasts if contrast[:3] in judged]
    if len(contrasts) < len(judged):
        raise ValueError(f"{text.name}: contrasts of the report are no longer in its file")
    return replace(
        text,
        metrics={metric: better for metric, better in text.metrics.items() if metric in trials},
        contrasts=contrasts,
        arms={arm: about for arm, about in text.arms.items() if arm in arms},
        baselines={arm: of for arm, of in text.baselines.items() if arm in arms},
    )


# ---- what an earlier report says -------------------------------------------------------------------------------------


def earlier(text: str) -> list[Section]:
    """Return the sections of a report in Markdown, without figures."""
    sections = []
    for part in re.split(r"^## ", text, flags=re.M)[1:]:
        title, *blocks = part.strip().split("\n\n")
        tables = [_table(block) for block in blocks if block.startswith("| ")]
        words = [plain(block) for block in blocks if not re.match(r"\| |!\[|\*[^*]", block)]
        sections.append(Section(plain(title), words, tables))
    return sections


def _table(block: str) -> Table:
    header, _, *rows = ([plain(cell) for cell in line.strip("|").split("|")] for line in block.splitlines())
    return Table(header, rows)


def plain(text: str) -> str:
    """Return the text that Markdown without markup shows."""
    return html.unescape(re.sub(r"\\([\\`*_\]!#>+.)-])", r"\1", text)).strip()


def provenance(section: Section) -> dict[str, Any]:
    """Return the nested values of the table of provenance."""
    nested: dict[str, Any] = {}
    for key, value in section.tables[0].rows:
        *groups, last = key.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = {"True": True, "False": False}.get(value, value)
    return nested


def floor_of(section: Section, metrics: Sequence[str]) -> dict[str, float]:
    """Return what a random router has, from the table of results."""
    rows = [row for row in section.tables[0].rows if row[0] == "random router"]
    return {metric: float(cell) for row in rows for metric, cell in zip(metrics, row[2:], strict=False) if cell}


def stored(folder: Path, name: str, caption: str) -> Picture:
    """Return a figure as it is stored."""
    path = folder / "figures" / f"{name}.png"
    with Image.open(path) as image:
        dpi = image.info.get("dpi", (EARLIER_DPI,))[0]
        width = round(image.size[0] / dpi * PIXELS_PER_INCH)
    return Picture(name, caption, path.read_bytes(), width)


def main(words: Sequence[str]) -> int:
    """Rebuild the reports named, or all that there are; return the exit status."""
    known = {str(path.parent.relative_to(RESULTS)): path.parent for path in sorted(RESULTS.glob("*/*/report.md"))}
    if unknown := [word for word in words if word not in known]:
        print(f"no report {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    for word in words or known:
        print(rebuild(known[word]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
