"""`result.json`, the one file that says how a run ended."""

import json
import sys
from pathlib import Path
from typing import Any

RESULT = "result.json"


def finished(folder: Path) -> dict[str, Any] | None:
    """The result of a run that finished, or None; nothing but a complete `result.json` decides."""
    result = read_result(folder)
    return result if result.get("status") == "finished" else None


def read_result(folder: Path) -> dict[str, Any]:
    """What `result.json` says; empty where there is none, and, said on stderr, where it is damaged."""
    path = folder / RESULT
    try:
        result = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        result = None
    if not isinstance(result, dict) or not _numbers(result.get("metrics", {})):
        print(f"warning: {path} is damaged; the run counts as unfinished", file=sys.stderr)
        return {}
    return result


def _numbers(metrics: Any) -> bool:
    return isinstance(metrics, dict) and all(isinstance(value, int | float) for value in metrics.values())
