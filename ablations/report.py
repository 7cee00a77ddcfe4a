"""The report of a study: verdict first, then what it rests on. Tables and figures in, Markdown and one HTML file out.

Needs no torch: everything is rebuilt from the tables that the trials left behind. `results` has one row a trial;
`metrics` is long (arm, seed, step, tokens, metric, value); `routing` has one row per arm, seed, step, layer and expert
and is empty or None for dense models; `accounting` has one row an arm.
"""

import base64
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from ablations.summary import (
    StudyText,
    arm_statistics,
    chosen,
    finished,
    number,
    spread,
    study_effects,
    summary,
    verdict_table,
)
from dsv2.analysis.statistics import ALPHA, detectable_in_sd
from dsv2.analysis.style import quantity
from dsv2.analysis.verdicts import RULE, Effect, IncompleteStudy, difference_text
from dsv2.files import replacing

if TYPE_CHECKING:
    from ablations.figures import Picture

__all__ = ["StudyText", "summary", "verdict_table", "write_report"]


class Table(NamedTuple):
    header: list[str]
    rows: list[list[str]]


class Section(NamedTuple):
    title: str
    paragraphs: list[str]
    table: Table | None = None
    pictures: "tuple[Picture, ...]" = ()


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
    pictures = draw(study, finished(results), metrics, routing, effects, step_floor or {}, final_floor or {})
    others = [text for text in sentences if text not in headline]
    sections = _sections(study, results, effects, accounting, provenance, others, pictures, final_floor or {})
    files = {f"figures/{picture.name}.png": picture.png for picture in pictures}
    for stale in set((folder / "figures").glob("*.png")) - {folder / name for name in files}:
        stale.unlink(missing_ok=True)  # of an earlier report with other metrics
    for name, data in files.items():
        _write(folder / name, data)
    _write(folder / "table.csv", arm_statistics(study, results).to_csv(index=False).encode())
    _write(folder / "report.md", _markdown(study, headline, sections).encode())
    _write(folder / "report.html", _html(study, headline, sections).encode())
    return folder / "report.html"


# ---- the report's parts ----------------------------------------------------------------------------------------------


def _sections(
    study: StudyText,
    results: pd.DataFrame,
    effects: Sequence[Effect],
    accounting: pd.DataFrame,
    provenance: Mapping[str, Any],
    others: list[str],
    pictures: "tuple[Picture, ...]",
    floor: Mapping[str, float],
) -> list[Section]:
    arms = "; ".join(f"{arm}: {text}" for arm, text in study.arms.items())
    ran = finished(results)
    trials = (
        f"{len(ran)} of {len(study.arms) * len(study.seeds)} trials finished, {ran['seconds'].sum():,.0f} s in all."
    )
    flat = pd.json_normalize(dict(provenance)).to_dict("records")[0] if provenance else {}
    changed = any(str(key).endswith("dirty") and bool(value) for key, value in flat.items())
    dirty = ["The code had uncommitted changes: the commit alone does not reproduce this."] if changed else []
    sections = [
        Section("The other metrics", others) if others else None,
        Section("Question", [study.question, f"Predicted: {study.prediction}", f"Arms - {arms}."]),
        Section(
            "Results by arm", [f"Mean ± standard deviation over seeds. {trials}"], _arm_table(study, results, floor)
        ),
        Section("Figures", [], None, pictures) if pictures else None,
        Section("Effects", [RULE], _effect_table(effects)) if effects else None,
        Section("What could have been detected", *_detectable(study, effects)) if effects else None,
        Section("Held equal", [], _equality(study, accounting)),
        Section("Published", [study.published]) if study.published else None,
        Section("Accounting", [], Table(list(accounting.columns), _cells(accounting))),
        Section("Provenance", dirty, Table(["what", "value"], [[str(k), str(v)] for k, v in flat.items()])),
    ]
    return [section for section in sections if section is not None]


def _cells(table: pd.DataFrame) -> list[list[str]]:
    return [[number(value) for value in row] for row in table.itertuples(index=False)]


def _arm_table(study: StudyText, results: pd.DataFrame, floor: Mapping[str, float]) -> Table:
    table = arm_statistics(study, results)
    judged = [metric for metric in study.metrics if f"{metric} mean" in table]
    rows = [
        [row["arm"], str(row["n"]), *(spread(row[f"{m} mean"], row[f"{m} sd"]) for m in judged)]
        for row in table.to_dict("records")
    ]
    if any(metric in floor for metric in judged):
        rows.append(["random router", "", *(number(floor.get(metric)) for metric in judged)])
    return Table(["arm", "n", *(quantity(metric).short for metric in judged)], rows)


def _effect_table(effects: Sequence[Effect]) -> Table:
    header = ["metric", "arm", "difference [95% t]", "[95% BCa]", "p (Holm)", "p (sign flip)", "verdict", "note"]
    rows = []
    for effect in effects:
        bca = difference_text(effect.mean, effect.bca_low, effect.bca_high)
        rows.append(
            [
                quantity(effect.metric).short,
                effect.arm,
                difference_text(effect.mean, effect.low, effect.high),
                bca.partition(" ")[2],
                "" if math.isnan(effect.p_holm) else f"{effect.p_holm:.2g}",
                f"{effect.p_sign_flip:.2g}",
                effect.word,
                effect.note,
            ]
        )
    return Table(header, rows)


def _detectable(study: StudyText, effects: Sequence[Effect]) -> tuple[list[str], Table]:
    rows = []
    for metric in dict.fromkeys(effect.metric for effect in effects):
        found = [effect.detectable for effect in effects if effect.metric == metric]
        rows.append([quantity(metric).short, number(min(found)), number(max(found)), number(study.margin.get(metric))])
    family = max(len(study.arms) - 1, 1)
    in_sd = detectable_in_sd(len(study.seeds), ALPHA / family)
    text = (
        f"With {len(study.seeds)} seeds and {family} arms compared, a true difference is found in four of five such "
        f"studies when it is {in_sd:.2g} standard deviations of the paired differences; smaller ones would often "
        "have been missed. By the spread seen here, from the quietest arm to the noisiest:"
    )
    return [text], Table(["metric", "smallest found, from", "to", "margin stated"], rows)


def _equality(study: StudyText, accounting: pd.DataFrame) -> Table:
    """What the study holds equal, and how equal every accounted number came out over the arms."""
    rows = []
    for column in accounting.select_dtypes("number").columns:
        low, high = accounting[column].min(), accounting[column].max()
        apart = "equal" if low == high else f"{(high - low) / max(abs(high), abs(low)):.2%} apart"
        rows.append([str(column), "yes" if column in study.equal else "", number(low), number(high), apart])
    named = {row[0] for row in rows}
    rows += [[thing, "yes", "", "", ""] for thing in study.equal if thing not in named]
    return Table(["quantity", "held equal", "lowest arm", "highest arm", "over the arms"], rows)


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
