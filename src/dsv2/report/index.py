"""`index.html` under the root of the runs: every study with its verdicts, newest first, and links to the reports."""

import csv
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from dsv2.metrics import quantity
from dsv2.printing import warn
from dsv2.report.page import rendered
from dsv2.storage.files import write_text
from dsv2.storage.rundir import runs_root
from dsv2.storage.runs import STUDY, StoredRun, list_runs
from dsv2.storage.sealed import read_sealed
from dsv2.storage.values import read_yaml

INDEX = "index.html"


class Verdict(NamedTuple):
    """What a report says of one contrast."""

    contrast: str  # as in "loss_free against losses"
    metric: str
    difference: str  # with its interval
    word: str


class Entry(NamedTuple):
    """A study at a scale."""

    name: str
    scale: str
    question: str
    runs: str  # how many, by status
    date: str  # when its verdicts were last shown, or else of the report; "" without either
    report: str  # its address, relative to the index; "" without one
    others: tuple[str, ...]  # addresses of reports on other requests, as under an override
    verdicts: tuple[Verdict, ...]


def write_index() -> Path:
    """Write the index of all studies under `runs_root()`, which must exist; return its path."""
    root = runs_root()
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; there are no runs yet")
    runs = list_runs()
    entries = [entry(record, runs) for record in root.glob(f"*/*/{STUDY}")]
    entries.sort(key=lambda one: (one.date, one.name), reverse=True)
    single = sum(run.scale is None for run in runs)
    write_text(root / INDEX, rendered("index.html.j2", entries=entries, single=single, root=str(root.absolute())))
    return root / INDEX


def entry(record: Path, runs: list[StoredRun]) -> Entry:
    """Describe the study with this record, given the runs of the store.

    What is damaged is left out, with a warning.
    """
    place = record.parent
    name, scale = place.parent.name, place.name
    report = place / "report" / "report.html"
    return Entry(
        *(
            name,
            scale,
            _question(place / "study.yaml"),
            _counted([run for run in runs if (run.study, run.scale) == (name, scale)]),
        ),
        _date(place / "looks.json", report),
        _address(report) if report.is_file() else "",
        tuple(_address(path) for path in sorted(place.glob("reports/*/report.html"))),
        _verdicts(report.with_name("contrasts.csv")),
    )


def _address(path: Path) -> str:
    return quote(str(path.relative_to(runs_root())))


def _counted(runs: list[StoredRun]) -> str:
    counts = Counter(run.status for run in runs)
    return ", ".join(f"{number} {status}" for status, number in counts.items()) or "none"


def _question(path: Path) -> str:
    try:
        node = read_yaml(path)
        return str(node.get("question", "")) if isinstance(node, dict) else ""
    except FileNotFoundError:
        return ""  # stored before studies were
    except ValueError as error:
        warn(error)
        return ""


def _date(looks: Path, report: Path) -> str:
    """Return when verdicts were last shown (UTC), or else when the report was written."""
    try:
        dates = [str(look["date"]) for look in read_sealed(looks)["looks"]]
    except FileNotFoundError:
        dates = []
    except (ValueError, KeyError, TypeError) as error:
        warn(f"{looks}: {error}")
        dates = []
    if not dates and report.is_file():
        dates = [datetime.fromtimestamp(report.stat().st_mtime, UTC).isoformat()]
    return max(dates, default="")[:16].replace("T", " ")


def _verdicts(path: Path) -> tuple[Verdict, ...]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return tuple(_verdict(row) for row in csv.DictReader(file))
    except FileNotFoundError:
        return ()
    except (ValueError, KeyError, TypeError) as error:
        warn(f"{path}: damaged, {error}")
        return ()


def _verdict(row: dict[str, Any]) -> Verdict:
    mean, low, high = (float(row[name]) for name in ("mean", "low", "high"))
    return Verdict(
        f"{row['arm']} against {row['baseline']}",
        quantity(row["metric"]).label,
        f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]",
        row["word"],
    )
