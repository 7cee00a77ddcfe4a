"""The run from whose weights another one starts: `init_from=RUN[:STEP]`."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dsv2.composition import as_text, checked
from dsv2.config import ConfigBase, ConfigError, plain, setting
from dsv2.data.tokenizer import Tokenizer, load_tokenizer
from dsv2.models.transformer import Transformer
from dsv2.storage.paths import require_own_files
from dsv2.storage.rundir import (
    CONFIG,
    DATA,
    FINGERPRINT,
    TOKENIZER,
    TOKENIZER_SETTINGS,
    finished,
    read_data,
    read_result,
    require_own_tokenizer,
    require_unchanged,
)
from dsv2.storage.runs import find_run
from dsv2.storage.values import read_yaml
from dsv2.storage.weights import hash_of, read_weights

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

KEY = "init_from"
# What a run takes from its origin unless it is overridden: all that affects the result, except for the seed.
ADOPTED = ("model", "data", "optim", "loss", "trainer", "benchmarks", "objective")


@dataclass(frozen=True)
class Origin:
    """A run from whose weights another one starts, and what goes along."""

    folder: Path
    step: int | None  # None: of an imported model
    weights: Mapping[str, Tensor]
    tokenizer: Tokenizer | None  # None: its data are not text
    others: Mapping[str, Tensor] = field(default_factory=dict)  # what was trained besides the model

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        """Where the weights are, and which they are: their hash or, before they exist, the trial that makes them."""

        run: str = setting(MISSING)  # directory
        step: int | None = setting(None)  # None: its newest weights
        weights: str | None = None  # their SHA-256
        trial: str | None = None  # fingerprint of the trial of a study that ends with them

        def __post_init__(self) -> None:
            known = (self.weights is None) != (self.trial is None)
            self.require(known, "weights", "their SHA-256, or null if `trial` is a fingerprint")

        def open(self, key: str = KEY) -> "Origin":
            """Read the weights. Raises ConfigError at `key` if they are gone, not final, or others than they were."""
            folder = Path(self.run)
            if self.trial is not None and finished(folder) is None:
                raise ConfigError(key, self.run, "a trial that has finished")
            try:
                origin = read_origin(folder, self.step)
            except (ValueError, OSError) as error:
                raise ConfigError(key, self.run, f"a run whose weights can be read. {error}") from None
            if self.weights not in (None, origin.hash):
                valid = f"the run whose weights have the SHA-256 {self.weights}; those there now have {origin.hash}"
                raise ConfigError(key, self.run, valid)
            return origin

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the weights."""
        return hash_of({**self.weights, **self.others})

    @property
    def config(self) -> "Origin.Config":
        """What identifies the weights by their hash."""
        return Origin.Config(run=str(self.folder.absolute()), step=self.step, weights=self.hash)

    def record(self) -> dict[str, Any]:
        """Return what the new run stores about its origin, JSON-ready."""
        return {
            "run": str(self.folder.absolute()),
            "fingerprint": _fingerprint(self.folder),
            "step": self.step,
            "weights": self.hash,
            "tokenizer": None if self.tokenizer is None else self.tokenizer.hash,
            "data": read_data(self.folder).get("identity", {}),
        }

    def require_fits(self, model: Transformer.Config) -> None:
        """Raise ConfigError for the first weight that is not as the model has it."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.weights.items()}
        require_shapes(shapes, model.shapes(), str(self.folder))


def read_origin(folder: Path, step: int | None = None) -> Origin:
    """Read the weights of a run, by default the newest, and its tokenizer. Raises ValueError."""
    require_own_files(folder)
    require_unchanged(folder, (CONFIG, DATA, TOKENIZER, TOKENIZER_SETTINGS))
    require_own_tokenizer(folder)
    weights = read_weights(folder, step)
    vocab_size = _stored(folder)["model"].get("vocab_size")
    return Origin(folder, weights.step, weights.tensors, load_tokenizer(folder, vocab_size), weights.others)


def require_shapes(there: Mapping[str, tuple[int, ...]], here: Mapping[str, tuple[int, ...]], run: str) -> None:
    """Raise ConfigError for the first weight of `run` (there) that differs in shape from that of a model (here)."""
    for name in {**here, **there}:
        if there.get(name) != here.get(name):
            has, wants = (list(shapes[name]) if name in shapes else "missing" for shapes in (there, here))
            valid = f"a run whose weights have the shapes of this model; {name} is {has} there and {wants} here"
            raise ConfigError(KEY, run, valid)


def reaching(words: Sequence[str]) -> list[str]:
    """Return overrides by which Hydra sets the keys of the run that `init_from` names, also those it has not composed.

    Raises ConfigError if there is no such run.
    """
    if (name := _named(words)) is None:
        return list(words)
    from hydra.core.override_parser.types import OverrideType

    stored, parsed = _stored(_located(name)[0]), checked(words)
    chosen = _chosen(parsed)
    return [
        f"++{word}" if override.type == OverrideType.CHANGE and _within(stored, override, chosen) else word
        for word, override in zip(words, parsed, strict=True)
    ]


def adopt(
    values: Mapping[str, Any], words: Sequence[str], settings: Mapping[str, Collection[str]]
) -> tuple[dict[str, Any], Origin]:
    """Return composed values with those of the run that `init_from` names, where the overrides `words` say nothing.

    `settings` lists the keys of each part that never come from there. A group that is chosen in `words` is as composed,
    as is the model if they set a key of `model.shape`. Raises ConfigError if there is no such run, or for another
    vocabulary.
    """
    name, parsed = _named(words), checked(words)
    assert name is not None
    origin = _opened(name)
    folder = origin.folder
    stored, adopted = _stored(folder), dict(values) | {KEY: plain(origin.config)}
    paths, chosen = list(map(_path, parsed)), _chosen(parsed)
    if "recipe" in chosen:
        raise ConfigError("recipe", "given", f"not beside {KEY}: the recipe is that of {folder}; set its keys")
    for part in [part for part in ADOPTED if part in stored and part not in chosen]:
        below = [path[1:] for path in paths if path[0] == part] + [(key,) for key in settings.get(part, ())]
        # What is no mapping was tampered with, and is refused by the config.
        adopted[part] = (
            _overridden(stored[part], values[part], below) if isinstance(stored[part], dict) else stored[part]
        )
    vocab_size = stored["data"]["vocab_size"] if "data" in stored else _vocab_size(origin)
    if ("data", "vocab_size") in paths and adopted["data"]["vocab_size"] != vocab_size:
        valid = f"{vocab_size}, as in {folder}, from whose weights the run starts"
        raise ConfigError("data.vocab_size", adopted["data"]["vocab_size"], valid)
    adopted["data"] = adopted["data"] | {"vocab_size": vocab_size}
    return adopted, origin


def locate(text: str) -> tuple[Path, int | None]:
    """Return the run directory and the step of `RUN` or `RUN:STEP`. Raises ValueError if there is no such run."""
    run, colon, step = text.rpartition(":")
    if colon and step.isdecimal() and not Path(text).is_dir():
        return find_run(run), int(step)
    return find_run(text), None


def _named(words: Sequence[str]) -> str | None:
    """Return the run that `init_from` names, as text whatever else it could be read as; None without one."""
    names = [word.partition("=")[2] for word in words if word.lstrip("+").startswith(f"{KEY}=")]
    return None if not names or names[-1] == "null" or names[-1].startswith("{") else as_text(names[-1])


def _located(name: str, key: str = KEY) -> tuple[Path, int | None]:
    """Return the run directory and the step. Raises ConfigError at `key` unless there is a run with a config."""
    try:
        folder, step = locate(name)
        _stored(folder)
    except (ValueError, OSError) as error:
        raise ConfigError(key, name, f"RUN or RUN:STEP. {error}") from None
    return folder, step


def _opened(name: str, key: str = KEY) -> Origin:
    """Read the run that `RUN` or `RUN:STEP` names. Raises ConfigError at `key` if there is none."""
    folder, step = _located(name, key)
    try:
        return read_origin(folder, step)
    except (ValueError, OSError) as error:
        raise ConfigError(key, name, f"RUN or RUN:STEP. {error}") from None


def with_reward_models(values: dict[str, Any]) -> dict[str, Any]:
    """Return composed values in which what names a reward model by `RUN` or `RUN:STEP` says whose weights it is.

    Raises ConfigError if there is no such run.
    """
    objective = values.get("objective")
    models = objective.get("reward_models") if isinstance(objective, Mapping) else None
    if not isinstance(objective, Mapping) or not isinstance(models, Mapping):
        return values
    named = {name: run for name, run in models.items() if name != "_target_" and isinstance(run, str)}
    known = {name: plain(_opened(run, f"objective.reward_models.{name}").config) for name, run in named.items()}
    return values | {"objective": {**objective, "reward_models": {**models, **known}}}


def _path(override: "Override") -> tuple[str, ...]:
    return tuple(re.split(r"[./]", override.key_or_group))


def _chosen(parsed: "Sequence[Override]") -> set[str]:
    """Return the parts of the config of which the overrides choose the group, or sizes of the preset."""
    return {path[0] for path in map(_path, parsed) if len(path) == 1 or path[:2] == ("model", "shape")}


def _within(stored: Any, override: "Override", chosen: Collection[str]) -> bool:
    """Whether an override sets a key of a part that is taken from stored values."""
    first, *rest = _path(override)
    if "/" in override.key_or_group or first not in ADOPTED or first in chosen:
        return False
    for key in (first, *rest):
        if not isinstance(stored, dict) or key not in stored:
            return False
        stored = stored[key]
    return True


def _stored(folder: Path) -> dict[str, Any]:
    """Return the values of a run's config. Raises ValueError for a directory without one."""
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder}: not a run directory, it has no {CONFIG}")
    values = read_yaml(folder / CONFIG)
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        raise ValueError(f"{folder / CONFIG}: has no model")
    data = values.get("data", {"vocab_size": 1})  # an imported model has none
    if not isinstance(data, dict) or type(data.get("vocab_size")) is not int:
        raise ValueError(f"{folder / CONFIG}: its data have no vocab_size")
    return values


def _vocab_size(origin: Origin) -> int:
    if origin.tokenizer is None:
        raise ConfigError(KEY, str(origin.folder), f"a run with a tokenizer; copy its {TOKENIZER} there")
    return origin.tokenizer.vocab_size


def _fingerprint(folder: Path) -> str | None:
    """Return the fingerprint under which a run was trained; None for an imported model."""
    name = read_result(folder).get("fingerprint", folder.resolve().name)
    return name if isinstance(name, str) and FINGERPRINT.fullmatch(name) else None


def _overridden(stored: Any, composed: Any, paths: Sequence[tuple[str, ...]]) -> Any:
    """Return stored values with those at the paths replaced by composed ones."""
    if () in paths or not isinstance(stored, dict) or not isinstance(composed, dict):
        return composed if paths else stored
    merged = dict(stored)
    for key in dict.fromkeys(path[0] for path in paths):
        if key in composed:
            below = [path[1:] for path in paths if path[0] == key]
            merged[key] = _overridden(stored.get(key), composed[key], below)
        else:
            merged.pop(key, None)
    return merged
