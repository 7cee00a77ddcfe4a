"""How a run starts: with random weights, or with those of another run and what goes along with them.

The weights are read once. What a resumed run needs of its origin is in its own directory, in `origin.json` and its
tokenizer, so that the origin may be gone by then.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from dsv2.config import ConfigError
from dsv2.data.corpora import Text
from dsv2.data.source import Source
from dsv2.data.tokenizer import Tokenizer, load_tokenizer
from dsv2.storage.files import write_json
from dsv2.storage.rundir import ORIGIN
from dsv2.storage.sealed import read_object
from dsv2.training.origin import KEY
from dsv2.training.run import Run

SAID = ("run", "fingerprint", "step", "weights")  # of an origin, in the provenance of a result


class Start(NamedTuple):
    """What a run that starts from another's weights keeps of it."""

    origin: dict[str, Any]  # contents of `origin.json`, see `Origin.record`
    tokenizer: Tokenizer | None

    def provenance(self) -> dict[str, Any]:
        return {"origin": {name: self.origin[name] for name in SAID}}


def begin(run: Run.Config, model: nn.Module, folder: Path, resumed: Path | None) -> Start | None:
    """Load the weights that `init_from` names into `model`, and keep what goes along in `folder`.

    A run that is resumed from the directory `resumed` gets its weights elsewhere, and reads what was kept there.
    Returns None without `init_from`. Raises ConfigError if the origin cannot be used.
    """
    if run.init_from is None:
        return None
    if resumed is not None:
        return Start(read_object(resumed / ORIGIN), load_tokenizer(resumed, run.model.vocab_size))
    origin = run.init_from.open()
    origin.require_fits(run.model)
    model.load_state_dict(dict(origin.weights))
    start = Start(origin.record(), origin.tokenizer)
    if origin.tokenizer is not None:
        origin.tokenizer.write_to(folder)
    write_json(folder / ORIGIN, start.origin)
    return start


def can_resume(run: Run.Config, folder: Path) -> bool:
    """Whether a run directory has what was kept of its origin. Raises OSError or ValueError for a damaged file."""
    return run.init_from is None or set(SAID) <= read_object(folder / ORIGIN).keys()


def open_data(run: Run.Config, start: Start | None) -> Source:
    """Open the data of a run, with its origin's tokenizer if there is one. Raises ConfigError if they do not fit."""
    config, trainer = run.data, run.trainer
    sizes: Any = {"sequence_length": trainer.sequence_length, "validation_tokens": trainer.validation_tokens}
    if start is None:
        return config.open(seed=run.seed, **sizes)
    then, now = start.origin["data"], config.identity()
    same = all(then.get(key) == value for key, value in now.items())
    if not isinstance(config, Text.Config):
        if start.tokenizer is not None:
            raise ConfigError("data", config.label, f"text, like the data of {start.origin['run']}")
        return config.open(seed=run.seed, **sizes)
    if start.tokenizer is None:
        if then and not same:
            valid = f"the data of {start.origin['run']}, which has no tokenizer for others"
            raise ConfigError("data", config.label, valid)
        return config.open(seed=run.seed, **sizes)  # the run predates stored tokenizers
    source = config.open(seed=run.seed, tokenizer=None if same else start.tokenizer, **sizes)
    if source.tokenizer is not None and source.tokenizer.hash != start.origin["tokenizer"]:
        valid = f"a run with the tokenizer of these data, which has the SHA-256 {source.tokenizer.hash}"
        raise ConfigError(KEY, start.origin["run"], f"{valid}, not {start.origin['tokenizer']}")
    return source


def anchored(run: Run.Config) -> Run.Config:
    """Make the paths in a run's config absolute, so that they hold in any working directory."""
    origin = run.init_from
    moved = None if origin is None else replace(origin, run=str(Path(origin.run).absolute()))
    return replace(run, data=run.data.anchored(), init_from=moved)
