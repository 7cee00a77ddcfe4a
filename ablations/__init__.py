"""Studies: arms x paired seeds, each run once and judged together."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablations.studies import study as study
    from ablations.trials.results import results as results

_WHERE = {"results": "ablations.trials.results", "study": "ablations.studies"}
__all__ = ["results", "study"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that workers and `--help` load only what they need."""
    if name not in _WHERE:
        raise AttributeError(f"module 'ablations' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return __all__
