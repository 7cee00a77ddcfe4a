"""`result.json`, the one file that says how a run ended."""

import json
from pathlib import Path
from typing import Any

RESULT = "result.json"


def finished(folder: Path) -> dict[str, Any] | None:
    """The result of a run that finished, or None; nothing but a complete `result.json` decides."""
    result = read_result(folder)
    return result if result.get("status") == "finished" else None


def read_result(folder: Path) -> dict[str, Any]:
    """What `result.json` says; empty where there is none."""
    path = folder / RESULT
    return json.loads(path.read_text()) if path.is_file() else {}
