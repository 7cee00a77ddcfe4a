"""`open_run(RUN)` opens a run directory, of a trained run or of an imported model."""

import textwrap
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from dsv2.composition import compose
from dsv2.config import ConfigError, structure
from dsv2.data.chat import ChatTemplate
from dsv2.data.corpora import GIVEN, Text
from dsv2.data.source import Batch, Source
from dsv2.data.store import find_store
from dsv2.data.tokenizer import Tokenizer, load_tokenizer
from dsv2.inference.deployed import Deployed
from dsv2.inference.reader import Reader
from dsv2.models.transformer import Transformer
from dsv2.printing import described, warn_once
from dsv2.storage import checkpoints
from dsv2.storage.paths import require_own_files
from dsv2.storage.rundir import (
    CHECKPOINTS,
    CONFIG,
    DATA,
    TOKENIZER,
    TOKENIZER_SETTINGS,
    WEIGHTS,
    read_data,
    read_result,
    require_own_tokenizer,
    require_unchanged,
    runs_root,
)
from dsv2.storage.runs import find_run
from dsv2.storage.values import read_yaml
from dsv2.storage.weights import read_weights
from dsv2.training.run import Run, from_plain

LONGEST = 4096  # context length of an imported model whose config states none, in tokens
SHOWN_LENGTH, SHOWN_TOKENS = 512, 16_384  # validation text of an imported model: tokens per sequence, and in total


def open_run(
    run: str | Path,
    *,
    step: int | None = None,
    device: str | torch.device | None = None,
    text: Sequence[str] = (),
    deployment: Deployed.Config | None = None,
) -> "SavedRun":
    """Open a run by its path or name (see `storage.runs.find_run`). Its contents are read lazily.

    `step` selects the checkpoint to load instead of the newest, `device` is where the model is placed (default: CPU),
    `text` holds overrides that select other data than the run's own, as in `["data=mixture"]`, and `deployment` says
    how the model is deployed (default: as it was trained). Raises ValueError if there is no such run.
    """
    return SavedRun(find_run(run), step=step, device=device, text=text, deployment=deployment)


class SavedRun:
    """An opened run. Its parts are built lazily, once each, with the settings it was trained with.

    An imported model has weights and a tokenizer, but neither a training config nor data of its own: English text is
    used unless `text` selects other data. Every part raises ValueError if the directory lacks what it needs.
    """

    def __init__(
        self,
        folder: Path,
        *,
        step: int | None = None,
        device: str | torch.device | None = None,
        text: Sequence[str] = (),
        deployment: Deployed.Config | None = None,
    ) -> None:
        self.folder, self.step, self.device, self.text = folder, step, _device(device), tuple(text)
        self.deployment = deployment or Deployed.Config()
        if isinstance(text, str):
            raise ConfigError("text", text, 'a list of overrides, as in ["data=mixture"]')
        require_own_files(folder)
        require_unchanged(folder, (CONFIG, DATA, TOKENIZER, TOKENIZER_SETTINGS))
        self.values = _read_config(folder)
        self.imported = (folder / WEIGHTS).is_file() and not (folder / CHECKPOINTS).is_dir()
        if "data" not in self.values and not self.imported:
            raise ValueError(f"{folder / CONFIG}: has no data, which every trained run has; restore the file")

    @cached_property
    def config(self) -> Run.Config:
        """The typed config of a trained run."""
        if self.imported:
            raise ValueError(f"{self.folder}: an imported model; its {CONFIG} names no training")
        return from_plain(self.values)

    @cached_property
    def model_config(self) -> Transformer.Config:
        config: Transformer.Config = structure(self.values["model"], Transformer.Config, "model")
        return config

    @property
    def name(self) -> str:
        """Arm and seed for a study's trial, else the name of the folder."""
        if self.imported or not self.config.arm:
            return self.folder.resolve().name
        return f"{self.config.arm}-s{self.config.seed}"

    @property
    def longest(self) -> int:
        """Sequence length that the model was trained on, in tokens."""
        if not self.imported:
            return self.config.trainer.sequence_length
        length = self.checkpoint.get("max_position_embeddings", LONGEST)
        if type(length) is not int or length < 1:
            raise ConfigError(
                "checkpoint.max_position_embeddings", length, f"a positive integer, in {self.folder / CONFIG}"
            )
        return length

    @property
    def checkpoint(self) -> dict[str, Any]:
        """Keys of the `config.json` of an imported model that are not part of the model."""
        values = self.values.get("checkpoint")
        if not isinstance(values, dict | None):
            raise ConfigError("checkpoint", values, f"a mapping, or null, in {self.folder / CONFIG}")
        return values or {}

    @property
    def batch_size(self) -> int:
        """Sequences per forward pass."""
        return 8 if self.imported else self.config.trainer.batch.size

    @cached_property
    def result(self) -> dict[str, Any]:
        """Contents of `result.json`; empty if there is none."""
        return read_result(self.folder)

    # ---- weights ----

    @cached_property
    def steps(self) -> list[int]:
        """Steps of the valid checkpoints, oldest first; empty for an imported model."""
        return checkpoints.steps(self.folder / CHECKPOINTS)

    @cached_property
    def model(self) -> Transformer:
        """The model as deployed, in evaluation mode, with the newest weights or those of `step`."""
        return self.deployment.of(self.model_at(self.step))

    def model_at(self, step: int | None) -> Transformer:
        """Load a new model in its saved precision, with the weights of a step: None the newest, 0 the initial ones.

        Raises ValueError for the initial weights of a run that started from another's.
        """
        if step == 0 and not self.imported and 0 not in self.steps:
            if self.config.init_from is not None:
                raise ValueError(f"{self.folder}: its initial weights are those of {self.config.init_from.run}")
            return self.model_config.build(seed=self.config.seed).to(self.device).eval()
        with torch.device("meta"):
            model: Transformer = self.model_config.build()
        try:
            model.load_state_dict(read_weights(self.folder, step).tensors, assign=True)
        except RuntimeError as error:
            raise ValueError(f"{self.folder}: {textwrap.shorten(str(error), 500)}") from None
        return model.to(self.device).eval()

    # ---- text ----

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's own tokenizer, read from the run directory. Raises ValueError if it is another one."""
        if not self.imported:
            require_own_tokenizer(self.folder)
        tokenizer = load_tokenizer(self.folder, self.model_config.vocab_size)
        if tokenizer is None and self.imported:
            raise ValueError(f"{self.folder}: an imported model without {TOKENIZER}; copy its tokenizer files there")
        if tokenizer is None:  # the run predates stored tokenizers, or its data are not text
            tokenizer = self._own_source.tokenizer
        if tokenizer is None:
            raise ValueError(f"{self.folder}: its data are not text, so it has no tokenizer")
        return tokenizer

    @cached_property
    def reader(self) -> Reader:
        """Model and tokenizer together, to score and generate text."""
        return Reader(self.model, self.tokenizer, self.longest)

    @cached_property
    def chat(self) -> ChatTemplate:
        """How the run's tokenizer writes conversations. Raises ValueError if it has no chat template."""
        return ChatTemplate(self.tokenizer)

    @cached_property
    def source(self) -> Source:
        """The evaluation data: the run's own held-out documents unless `text` selects other data."""
        if not self.imported and not self.text:
            return self._own_source
        if self.text and not any(word.startswith("data=") for word in self.text):
            raise ConfigError("text", " ".join(self.text), "overrides that select other data, such as data=mixture")
        config = structure(compose([*self.text] or ["data=english"])["data"], Source.Config, "data")
        if not isinstance(config, Text.Config):
            raise ConfigError("data", config.label, "text, such as data=english")
        length = min(self.longest, SHOWN_LENGTH)
        return config.open(
            sequence_length=length, seed=0, validation_tokens=max(SHOWN_TOKENS, length), tokenizer=self.tokenizer
        )

    @cached_property
    def validation(self) -> Batch:
        """All validation sequences of `source`."""
        return self.source.validation()

    @cached_property
    def _own_source(self) -> Source:
        """The training data, checked against the identity stored with the run. Raises ValueError if they differ."""
        config, trainer = self.config.data, self.config.trainer
        sizes: Any = {"sequence_length": trainer.sequence_length, "validation_tokens": trainer.validation_tokens}
        record = read_data(self.folder)
        if not isinstance(config, Text.Config):
            now, then = config.identity()["format"], record.get("identity", {}).get("format")
            if then not in (None, now):
                made = f"its data ({config.label}) are made in format {now}, not {then} as when it was trained"
                raise ValueError(f"{self.folder}: {made}; use the version of dsv2 that trained it")
            return config.open(seed=self.config.seed, **sizes)
        if not record:
            warn_once(f"{self.folder} stores no identity of its corpus; assuming it unchanged")
            return config.open(seed=self.config.seed, **sizes)
        identity = {key: value for key, value in record["identity"].items() if key != "trained_tokenizer"}
        # Of another run or an imported model, from whose weights this one started.
        given = self.tokenizer if identity.get("tokenizer", "").startswith(GIVEN) else None
        prepared = list(Path(record.get("prepared", "")).parents[1:2])
        places = [*prepared, *self.folder.resolve().parents, runs_root()]
        store = find_store(identity, places, config.vocab_size, given)
        if store is not None:
            return config.pack(store, seed=self.config.seed, identity=identity, **sizes)
        self._require(config.identity(), identity, ("corpus", "split", "format"))
        source = config.open(seed=self.config.seed, tokenizer=given, **sizes)
        self._require(source.identity, record["identity"], ("trained_tokenizer",))
        return source

    def _require(self, now: dict[str, str], then: dict[str, str], keys: tuple[str, ...]) -> None:
        for key in keys:
            if now[key] != then.get(key):
                where = getattr(self.config.data, "path", None) or self.config.data.label
                raise ValueError(
                    f"{self.folder}: its data ({where}) have changed since it was trained, in their {key}, and the "
                    "prepared copy is gone; restore the old files or select other data"
                )


def _device(name: str | torch.device | None) -> torch.device:
    """Return a device that this machine has. Raises ValueError."""
    try:
        device = torch.device(name or "cpu")
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError) as error:  # what torch raises depends on how it was built
        raise ValueError(f"device={name!r}: must be one that is here, as cpu or cuda; {described(error)}") from None
    return device


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder}: not a run directory, it has no {CONFIG}")
    try:
        values = read_yaml(path)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    if not isinstance(values, dict) or "model" not in values:
        raise ValueError(f"{path}: has no model")
    return values
