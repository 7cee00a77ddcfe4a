"""Every figure of the workbench by name, as in `plots.forest(effects)`: takes tables, returns a matplotlib figure.

All share one style: text of at least 7 points at column width, a colour-blind-safe palette, and a distinct marker and
dash for each arm, so that figures can be read in black and white. `arms` fixes order and style: pass the whole list of
the study even to plot a part of it. `title` states the finding.
"""

import importlib
from typing import Any

_WHERE = {
    "study": ["difference_over_tokens", "forest", "imbalance_over_training", "loss_over_tokens", "metric_by_arm"],
    "load": ["device_load", "load_heatmap"],
    "balance": [
        "collapse_over_training",
        "drops_over_affinity",
        "drops_over_training",
        "load_at",
        "load_view",
        "losses_and_control",
    ],
    "cost": ["cache_over_context", "loss_over_active", "loss_over_budgets", "metric_over_cache"],
    "experts": [
        "certainty_over_layers",
        "coactivation_heatmap",
        "domain_heatmap",
        "information_bars",
        "loss_changes",
        "loss_over_experts",
        "loss_over_masked",
        "overlap_over_training",
        "token_concentration",
    ],
    "factorial": ["factorial_forest", "interaction"],
    "ladder": ["difference_over_compute", "loss_over_compute"],
    "alignment": ["answers_over_training"],
    "calibration": ["false_positive_rates", "power_by_effect"],
    "needle": ["found_over_length", "needle_heatmap"],
    "parallel": ["layer_times"],
    "pipeline": ["pipeline_timeline"],
    "positions": ["loss_over_position"],
    "rates": ["metric_over_lr"],
    "text": ["load_profiles", "text_load"],
    "tokens": ["paint_html", "paint_tokens"],
}
_MODULES = {name: module for module, names in _WHERE.items() for name in names}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """Import on first use, since matplotlib takes a second."""
    if name not in _MODULES:
        raise AttributeError(f"module 'dsv2.plots' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dsv2.plots.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
