"""Studies: arms x paired seeds, run once each, judged together."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablations.studies import study
    from ablations.trials.results import results

__all__ = ["results", "study"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that workers and `--help` load no more than they need."""
    if name not in __all__:
        raise AttributeError(f"module 'ablations' has no attribute {name!r}")
    return getattr(
        importlib.import_module({"results": "ablations.trials.results", "study": "ablations.studies"}[name]), name
    )
