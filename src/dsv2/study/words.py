"""What words from files may do: set keys of the typed config and choose its groups, nothing else.

The words of study files, stored definitions, dictionaries and W&B sweeps are Hydra overrides, which could also name
code to run, folders to write to and resolvers that read the environment.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dsv2.composition import checked
from dsv2.config import NAME, ConfigError
from dsv2.study import REQUEST_KEYS
from dsv2.training.run import Run

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

LABELS = ("study", "scale", "arm", "probe")  # names in a run's config; the first two are folders of the store
KEYS = frozenset(field.name for field in dataclasses.fields(Run.Config)) | {"recipe"}  # keys below: see `structure`
_KEY = rf"(?:{'|'.join(sorted(KEYS))})(?:\.\w+)*"
# Another key of the run's config, or a multiple of one; OmegaConf's own resolvers read the environment.
RELATIVE = re.compile(rf"\$\{{(?:{_KEY}|\.\w+(?:\.\w+)*|(?:times|plus):{_KEY},\s*-?[\d.]+(?:e-?\d+)?)\}}")


def require_allowed(words: Sequence[str]) -> None:
    """Raise `ConfigError` for the first word that a file may not contain."""
    from hydra.core.override_parser.types import OverrideType

    for word, override in zip(words, checked(words), strict=True):
        if not _names_key(override):
            raise ConfigError("override", word, _how_to_name(override.key_or_group))
        if override.type == OverrideType.DEL or override.is_sweep_override():
            raise ConfigError("override", word, "words of a study set one value each; they delete and sweep nothing")
        if any("${" in RELATIVE.sub("", text) for text in (word, *_texts(override.value()))):
            valid = (
                "values refer to keys of the run as ${KEY}, ${times:KEY,FACTOR} or ${plus:KEY,TERM}; others are refused"
            )
            raise ConfigError("override", word, valid)


def require_name(key: str, name: Any) -> None:
    """Raise `ConfigError` unless `name` can name a folder of the store."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(key, name, "a name: letters, digits and . _ + -, and a letter, digit or _ first")


def _how_to_name(key: str) -> str:
    own = [name for name in REQUEST_KEYS if difflib.get_close_matches(key, [name], cutoff=0.75)]
    hint = f"did you mean {own[0]!r}? " if own and key not in REQUEST_KEYS else ""
    keys = ", ".join(sorted(KEYS - {*LABELS, "seed"}))
    return f"{hint}a study's own keys are {', '.join(REQUEST_KEYS)}; other words set keys below one of {keys}"


def _names_key(override: "Override") -> bool:
    first = re.split(r"[./]", override.key_or_group)[0]
    return first in KEYS and override.package is None


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a parsed value, keys included."""
    if isinstance(value, dict):
        value = [part for pair in value.items() for part in pair]
    if isinstance(value, list):
        for part in value:
            yield from _texts(part)
    else:
        yield str(value)
