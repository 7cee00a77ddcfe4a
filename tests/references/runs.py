"""What stored runs say, without what depends on the speed of the machine."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the logged rows of a run."""
    return [timeless(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_checksums(folder: Path) -> None:
    """Make a finished run one from before its files were covered by hashes."""
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({k: v for k, v in result.items() if k not in ("files", "sha256")}))


def timeless(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics without those of speed."""
    return {name: value for name, value in metrics.items() if not name.startswith("perf/")}
