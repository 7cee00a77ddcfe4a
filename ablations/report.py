"""The report of a study: verdict first, then what it rests on. Tables and figures in, Markdown and one HTML file out.

Needs no torch: everything is rebuilt from the tables that the trials left behind. `results` has one row a trial;
`metrics` is long (arm, seed, step, tokens, metric, value); `routing` has one row per arm, seed, step, layer and expert
and is empty or None for dense models; `accounting` has one row an arm.
"""

import base64
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ablations.sections import Section, factorial_terms, sections_of
from ablations.summary import StudyText, arm_statistics, chosen, finished, study_effects, summary, verdict_table
from dsv2.analysis.verdicts import IncompleteStudy
from dsv2.files import replacing

__all__ = ["StudyText", "summary", "verdict_table", "write_report"]


def write_report(
    study: StudyText,
    results: pd.DataFrame,
    metrics: pd.DataFrame,
    routing: pd.DataFrame | None,
    accounting: pd.DataFrame,
    provenance: Mapping[str, Any],
    folder: Path,
    *,
    step_floor: Mapping[str, float] | None = None,
    final_floor: Mapping[str, float] | None = None,
) -> Path:
    """Write report.md, report.html, table.csv and figures/*.png under `folder`; the path of report.html.

    `step_floor` and `final_floor` are `random_floor` for the tokens of one logged step and of the validation set.
    `provenance` may nest (versions). Without a result for every trial the report says so and gives no verdict.
    """
    from ablations.figures import draw  # matplotlib only here

    results = chosen(study, results)
    try:
        effects, missing = study_effects(study, results), []
    except IncompleteStudy as error:
        effects, missing = [], error.missing
    if len(study.seeds) < 2:
        effects = []  # one seed is no effect
    headline, sentences = summary(study, effects, missing)
    terms = factorial_terms(study, results) if effects else []
    pictures = draw(
        study, finished(results), metrics, routing, accounting, effects, terms, step_floor or {}, final_floor or {}
    )
    others = [text for text in sentences if text not in headline]
    sections = sections_of(
        study, results, metrics, effects, terms, accounting, provenance, others, pictures, final_floor or {}
    )
    files = {f"figures/{picture.name}.png": picture.png for picture in pictures}
    for stale in set((folder / "figures").glob("*.png")) - {folder / name for name in files}:
        stale.unlink(missing_ok=True)  # of an earlier report with other metrics
    for name, data in files.items():
        _write(folder / name, data)
    _write(folder / "table.csv", arm_statistics(study, results).to_csv(index=False).encode())
    _write(folder / "report.md", _markdown(study, headline, sections).encode())
    _write(folder / "report.html", _html(study, headline, sections).encode())
    return folder / "report.html"


# ---- writing ---------------------------------------------------------------------------------------------------------


def _markdown(study: StudyText, headline: str, sections: Sequence[Section]) -> str:
    lines = [f"# {study.name} ({study.scale})", "", f"**{headline}**", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for paragraph in section.paragraphs:
            lines += [paragraph, ""]
        if section.table:
            cells = [section.table.header, ["---"] * len(section.table.header), *section.table.rows]
            lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells] + [""]
        for picture in section.pictures:
            lines += [f"![{picture.caption}](figures/{picture.name}.png)", "", f"*{picture.caption}*", ""]
    return "\n".join(lines)


def _html(study: StudyText, headline: str, sections: Sequence[Section]) -> str:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    template = environment.get_template("report.html.j2")
    return template.render(study=study, headline=headline, sections=sections)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as scratch:
        scratch.write_bytes(data)


if __name__ == "__main__":
    from ablations.publish import main

    sys.exit(main(sys.argv[1:]))
