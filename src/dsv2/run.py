"""The typed configuration of one training run, and the one door to it: `load(overrides)`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dsv2.composition import compose
from dsv2.config import ConfigBase, ConfigError, digest, plain, setting, structure
from dsv2.data.corpora import Text
from dsv2.data.source import Source
from dsv2.evaluation.benchmarks import TextBenchmarks
from dsv2.models.moe.layer import MoE
from dsv2.models.transformer import Transformer
from dsv2.training.loggers import Logging
from dsv2.training.losses import BalanceLoss
from dsv2.training.optim import AdamW
from dsv2.training.settings import Training

FORMAT = 1  # raise it when the same config means another computation, so that old results are not taken for new ones


class Run:
    """One model trained once on one corpus from one seed."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        seed: int
        model: Transformer.Config
        data: Source.Config
        optim: AdamW.Config
        loss: BalanceLoss.Config
        trainer: Training.Config
        logger: Logging.Config
        benchmarks: TextBenchmarks.Config | None = None  # computed at the last step
        study: str | None = setting(None)  # which study, scale, arm and probe this run is of: names, not computation
        scale: str | None = setting(None)
        arm: str | None = setting(None)
        probe: str | None = setting(None)

        def __post_init__(self) -> None:
            self.require(self.seed >= 0, "seed", "0 or more")
            fits = self.model.vocab_size >= self.data.vocab_size
            self.require(fits, "model.vocab_size", f"at least data.vocab_size={self.data.vocab_size}")
            for step in ("validate_every", "checkpoint_every"):
                every = self.trainer.log_every
                good = getattr(self.trainer, step) % every == 0
                self.require(good, f"trainer.{step}", f"a multiple of trainer.log_every={every}")
            if self.benchmarks is not None:
                if not isinstance(self.data, Text.Config):
                    raise ConfigError("benchmarks", "text", "none for data without text, as these synthetic sequences")
                length = self.trainer.sequence_length
                for name, tokens in self.benchmarks.lengths().items():
                    fits = tokens <= length
                    valid = f"{tokens} tokens a question, at most trainer.sequence_length={length}"
                    self.require(fits, f"benchmarks.{name}", valid)

        @property
        def balanced(self) -> bool:
            """True where balance losses have experts to act on."""
            return isinstance(self.model.ffn, MoE.Config)

        def fingerprint(self) -> str:
            """16 hex digits that name the computation: typed config, corpus and tokenizer, nothing of where or how."""
            return digest(FORMAT, plain(self, identity=True), self.data.identity())


def load(overrides: Sequence[str] = ()) -> Run.Config:
    """Turn Hydra overrides into the typed, frozen config of a run.

    Raises ConfigError (a ValueError) that names the full key, the value and what would be valid.
    """
    return from_plain(compose(list(overrides)))


def from_plain(values: dict[str, Any]) -> Run.Config:
    """The typed config of composed or stored values."""
    if not isinstance(values, dict):
        raise ConfigError("config", values, "a mapping")
    run = structure(values, Run.Config)
    assert isinstance(run, Run.Config)
    return run
