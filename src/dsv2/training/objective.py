"""The kinds of runs besides those that minimise the cross-entropy of their data: what a run may be configured with."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from dsv2.config import ConfigBase


class Objective:
    """Base of what a run minimises instead, and of where it gets its batches from."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase, ABC):
        """`run` is a `Run.Config`, which has this as a field and therefore imports it."""

        @abstractmethod
        def require_fits(self, run: Any) -> None:
            """Raise ConfigError, with the full key, for a run that cannot have this objective."""

        @abstractmethod
        def module(self, run: Any) -> Any:
            """Return the `Module` that trains a run with this objective."""
