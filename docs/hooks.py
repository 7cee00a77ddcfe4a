"""What mkdocs does while it builds: writes the page of studies, and puts code beside the equations.

Both come from the files themselves, so that neither can fall out of step with what runs.
"""

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from dsv2.config import structure
from dsv2.study.files import StudyFile, names, read

ROOT = Path(__file__).parents[1]
CODE = re.compile(r"^\[\[(?P<path>[\w/.]+\.py)::(?P<name>[\w.]+)\]\]$", flags=re.M)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of studies."""
    files.append(File.generated(config, "studies.md", content=studies_page()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each line `[[file.py::Name.method]]` by that function's source."""
    for line in markdown.splitlines():
        if "[[" in line and ".py" in line and not CODE.fullmatch(line):
            raise PluginError(f"{line}: write [[path/of/file.py::Name.method]], alone on its line")
    return CODE.sub(lambda line: code_block(line["path"], line["name"]), markdown)


def code_block(path: str, name: str) -> str:
    """The source of a function, method or class, fenced, under the path it comes from."""
    file = ROOT / path
    if not file.is_file():
        raise PluginError(f"{path}: no such file, asked for {name}")
    text = file.read_text()
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        kinds = (ast.FunctionDef, ast.ClassDef)
        definitions = [inner for inner in getattr(node, "body", []) if isinstance(inner, kinds) and inner.name == part]
        if not definitions:
            raise PluginError(f"{path}: has no {name}")
        node = definitions[0]
    lines = text.splitlines()[node.lineno - 1 : node.end_lineno]  # type: ignore[attr-defined]
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join([f"`{path}`", "", "```python {.source}", *(line[indent:] for line in lines), "```"])


# ---- the page of studies ---------------------------------------------------------------------------------------------


def studies_page() -> str:
    """Every file in `configs/sweep`: question, prediction, what is held equal, arms and the command."""
    scales = ", ".join(f"`scale={name}`" for name in named("scale"))
    studies = {name: read_study(name) for name in named("sweep")}
    lines = [
        "# Studies",
        "",
        f"Each study is one file in `configs/sweep`; this page is generated from them. Any study runs at {scales}.",
        "",
        "| study | question | metric | arms | minimum seeds |",
        "|---|---|---|---|---|",
    ]
    for name, study in studies.items():
        row = [f"[{name}](#{name})", study.question, f"`{study.metric}`", len(study.all_arms()), study.seeds]
        lines.append(_row(row))
    for name, study in studies.items():
        lines += ["", *_section(name, study)]
    return "\n".join(lines) + "\n"


def named(group: str) -> list[str]:
    """Return the names of all studies or scales; PluginError where there are none, which would be an empty page."""
    if not (every := names(group)):
        raise PluginError(f"no file of the group {group}: nothing to list on the page of studies")
    return every


def read_study(name: str) -> StudyFile:
    study: StudyFile = structure(read("sweep", name), StudyFile)
    return study


def _section(name: str, study: StudyFile) -> list[str]:
    judged = ", ".join(f"`{metric}` ({better})" for metric, better in study.judged.items())
    declared = "; ".join(
        f"`{contrast['arm']}` in `{contrast['metric']}`, margin {contrast['margin']:g}"
        for contrast in study.contrasts or ()
    )
    held = f"Held equal within 1%: {', '.join(study.equal)}."
    if study.differs:
        held += f" May differ: {', '.join(study.differs)}."
    if study.adjust:
        held += f" To keep them equal, the solver may change {', '.join(f'`{key}`' for key in study.adjust)}."
    if study.probes:
        held += f" Every arm is also trained on {', '.join(study.probes)}."
    command = f"python -m ablations.run sweep={name}"
    return [
        f"## {name} {{#{name}}}",
        "",
        f"**{study.question.strip()}**",
        "",
        f"Predicted: {study.prediction}",
        "",
        *([f"Published: {study.published_text}", ""] if study.published_text else []),
        *([f"Where the effect is expected to show: {study.shows_at}", ""] if study.shows_at else []),
        *([f"Overrides of all arms: {_code([*study.data, *study.base])}.", ""] if study.data or study.base else []),
        f"Metrics and their better direction: {judged}. Baseline: `{study.baseline}`.",
        "",
        *([f"Contrasts, which get a verdict: {declared}.", ""] if declared else []),
        held,
        "",
        *["```", f"{command} dry_run=true", command, "```", ""],
        "| arm | what it is | overrides |",
        "|---|---|---|",
        *(_row([arm, node.about, _code(node.overrides)]) for arm, node in study.all_arms().items()),
    ]


def _code(overrides: Iterable[str]) -> str:
    return " ".join(f"`{override}`" for override in overrides)


def _row(cells: list[Any]) -> str:
    return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |"
