"""Command-line arguments of a study: `key=value` words, split into the request and the overrides of its trials."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

from dsv2.composition import as_text
from dsv2.config import CONFIG_DIR, ConfigBase, ConfigError, structure
from dsv2.storage.values import parse_yaml
from dsv2.study import REQUEST_KEYS

MOST_WORKERS = 1000
NAMES = ("sweep", "scale", "launcher", "hardware")  # text, whatever YAML would read it as; a list of scales is YAML


@dataclass(frozen=True, kw_only=True)
class Files(ConfigBase):
    """What a report writes: `report.*`."""

    formats: tuple[Literal["png", "svg", "pdf"], ...] = ("png",)  # of its figures; a PNG is always among them


@dataclass(frozen=True, kw_only=True)
class Request(ConfigBase):
    """The arguments other than overrides."""

    sweep: str
    scale: str | tuple[str, ...] = "smoke"  # several form a ladder, which gets a report of its own
    seeds: tuple[int, ...] | None = None
    workers: int | None = None
    launcher: Literal["local", "slurm", "ray"] = "local"
    dry_run: bool = False
    plan: bool = False
    mixed_kernels: bool = False
    until_decided: bool = False
    report: Files = field(default_factory=Files)
    hardware: str = "here"  # of the estimate in a dry run: this machine, or a key of `distributed.outlook.HARDWARE`
    price: float | None = None  # of a device per hour, in any currency

    @property
    def scales(self) -> tuple[str, ...]:
        return (self.scale,) if isinstance(self.scale, str) else self.scale

    def __post_init__(self) -> None:
        self.require(len(set(self.scales)) == len(self.scales) > 0, "scale", "at least one, without duplicates")
        self.require(
            self.workers is None or 0 < self.workers <= MOST_WORKERS,
            "workers",
            f"at least 1, and at most {MOST_WORKERS}",
        )
        self.require(self.price is None or 0 <= self.price < math.inf, "price", "0 or more, and finite, per hour")
        only = self.dry_run or (self.hardware == "here" and self.price is None)
        self.require(only, "hardware" if self.hardware != "here" else "price", "given with dry_run=true alone")


def parse(arguments: list[str], keys: Collection[str] = REQUEST_KEYS) -> tuple[Request, list[str]]:
    """Split `key=value` words into the request and the overrides of the trials, which begin with a key of a run.

    `keys` are those that the command takes. Raises ConfigError for any other word.
    """
    own: dict[str, Any] = {}
    overrides = []
    for word in arguments:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError("argument", word, f"key=value, as in sweep=balance_losses; keys are {', '.join(keys)}")
        if key not in keys:
            overrides.append(word)
            continue
        group, _, name = key.rpartition(".")
        place = own.setdefault(group, {}) if group else own
        if name in place:
            raise ConfigError(key, value, "one value; it is given twice")
        if not value:
            raise ConfigError(key, value, "a value after the equals sign")
        try:
            place[name] = as_text(value) if key in NAMES and value[0] != "[" else parse_yaml(value)
        except ValueError:
            raise ConfigError(key, value, "a word, or a list as in [0,1]") from None
    if "sweep" not in own:
        raise ConfigError("sweep", None, f"name a study, as in sweep=balance_losses; there are {', '.join(studies())}")
    return structure(own, Request), overrides


def studies() -> list[str]:
    """Return the names of the studies in `configs/sweep`."""
    return _names("sweep")


def _names(folder: str) -> list[str]:
    return sorted(path.stem for path in (CONFIG_DIR / folder).glob("*.yaml"))


def usage(text: str | None) -> str:
    """Return a command's help, followed by the studies and scales that there are."""
    return f"{text}\nstudies: {', '.join(studies())}\nscales:  {', '.join(_names('scales'))}"
