"""Where runs lie: `runs/` in the current directory, or what DSV2_RUNS names."""

import os
from pathlib import Path


def runs_root() -> Path:
    return Path(os.environ.get("DSV2_RUNS", "runs"))
