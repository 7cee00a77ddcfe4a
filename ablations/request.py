"""Command-line arguments of a study: `key=value` words, split into the request and the overrides of its trials."""

from dataclasses import dataclass
from typing import Any, Literal

import yaml

from dsv2.composition import as_text
from dsv2.config import ConfigBase, ConfigError, structure

NAMES = ("sweep", "scale", "launcher")  # text, whatever YAML would read it as; a list of scales is YAML


@dataclass(frozen=True, kw_only=True)
class Request(ConfigBase):
    """The arguments other than overrides."""

    sweep: str
    scale: str | tuple[str, ...] = "smoke"  # several form a ladder, which gets a report of its own
    seeds: tuple[int, ...] | None = None
    workers: int | None = None
    launcher: Literal["local", "slurm", "ray"] = "local"
    dry_run: bool = False

    @property
    def scales(self) -> tuple[str, ...]:
        return (self.scale,) if isinstance(self.scale, str) else self.scale

    def __post_init__(self) -> None:
        self.require(len(set(self.scales)) == len(self.scales) > 0, "scale", "at least one, without duplicates")
        self.require(self.workers is None or self.workers > 0, "workers", "at least 1")


def parse(arguments: list[str]) -> tuple[Request, list[str]]:
    """Split `key=value` words into the request and the overrides of the trials."""
    own: dict[str, Any] = {}
    overrides = []
    for word in arguments:
        key, equals, value = word.partition("=")
        if equals and key in Request.__dataclass_fields__:
            try:
                text = key in NAMES and value[:1] not in ("", "[")
                own[key] = as_text(value) if text else yaml.safe_load(value)
            except yaml.YAMLError:
                raise ConfigError(key, value, "a word, or a list as in [0,1]") from None
        else:
            overrides.append(word)
    if "sweep" not in own:
        raise ConfigError("sweep", None, "name a study, as in sweep=balance_losses")
    return structure(own, Request), overrides
