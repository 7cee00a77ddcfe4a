"""dsv2: a research workbench for ablations of DeepSeek-V2."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsv2.accounting.account import account as account
    from dsv2.inference.generate import generate as generate
    from dsv2.interop.huggingface import from_hf as from_hf
    from dsv2.interop.huggingface import to_hf as to_hf
    from dsv2.models.moe.balance import balance_losses as balance_losses
    from dsv2.models.moe.dropping import drop as drop
    from dsv2.models.moe.router import Routing as Routing
    from dsv2.models.moe.router import route as route
    from dsv2.models.transformer import Output as Output
    from dsv2.report.runs import compare as compare
    from dsv2.report.runs import runs as runs
    from dsv2.training.run import load as load
    from dsv2.training.saved import open_run as open_run

_WHERE = {
    "Output": "models.transformer",
    "Routing": "models.moe.router",
    "account": "accounting.account",
    "balance_losses": "models.moe.balance",
    "compare": "report.runs",
    "drop": "models.moe.dropping",
    "from_hf": "interop.huggingface",
    "generate": "inference.generate",
    "load": "training.run",
    "open_run": "training.saved",
    "route": "models.moe.router",
    "runs": "report.runs",
    "to_hf": "interop.huggingface",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import dsv2` costs nothing."""
    if name not in _WHERE:
        raise AttributeError(f"module 'dsv2' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dsv2.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
