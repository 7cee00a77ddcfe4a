"""The kinds of runs besides those that minimise the cross-entropy of their data: what a run may be configured with."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dsv2.config import ConfigBase

if TYPE_CHECKING:
    from dsv2.training.module import Module
    from dsv2.training.run import Run


class Objective:
    """Base of what a run minimises instead, and of where it gets its batches from."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase, ABC):
        @abstractmethod
        def require_fits(self, run: "Run.Config") -> None:
            """Raise ConfigError, with the full key, for a run that cannot have this objective."""

        @abstractmethod
        def module(self, run: "Run.Config") -> "Module":
            """Return the module that trains a run with this objective."""
