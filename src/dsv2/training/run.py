"""The typed configuration of one training run, loaded with `load(overrides)`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from dsv2.composition import compose, require_overrides
from dsv2.config import (
    ConfigBase,
    ConfigError,
    Naming,
    added,
    class_name,
    digest,
    former_name,
    plain,
    setting,
    settings_of,
    structure,
)
from dsv2.data.chats import Chats
from dsv2.data.corpora import Text
from dsv2.data.source import Source
from dsv2.distributed.mesh import Mesh
from dsv2.evaluation.benchmarks import TextBenchmarks
from dsv2.evaluation.exams import Exams
from dsv2.evaluation.following import Following
from dsv2.evaluation.needle import NeedleGrid
from dsv2.evaluation.positions import LossByPosition
from dsv2.inference.deployed import Deployed
from dsv2.models.transformer import Transformer
from dsv2.training.losses import BalanceLoss
from dsv2.training.objective import Objective
from dsv2.training.optim import AdamW
from dsv2.training.origin import Origin, adopt, reaching, with_reward_models
from dsv2.training.schedule import BatchRamp

BENCHMARKS = {
    TextBenchmarks.Config: "text",
    LossByPosition.Config: "positions",
    NeedleGrid.Config: "needle",
    Following.Config: "following",
    Exams.Config: "exams",
}
FORMAT = 1  # increment when the same config comes to mean another computation, so that old results are not reused


class Training:
    """Token budget, batch, and the intervals of validation, logging and checkpoints."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        tokens: int  # budget, rounded down to whole steps
        sequence_length: int
        batch: BatchRamp.Config
        validation_tokens: int
        validate_every: int  # in steps; also at the end
        log_every: int  # in steps
        precision: Literal["fp32", "bf16"] = "fp32"
        checkpoint_every: int = setting(50)  # in steps, a multiple of log_every; also at the end
        accelerator: Literal["auto", "cpu", "gpu"] = setting("auto")
        recompute_layers: int = setting(0)  # first layers whose activations backward computes again
        kernels: Literal["torch", "cpu", "triton", "auto"] = setting("auto")
        progress: bool = setting(True)

        def __post_init__(self) -> None:
            for name in ("sequence_length", "validate_every", "log_every", "checkpoint_every"):
                self.require(getattr(self, name) > 0, name, "positive")
            self.require(self.recompute_layers >= 0, "recompute_layers", "0 or more")
            least = self.sequence_length * (self.batch.start or self.batch.size)
            enough = self.tokens >= least or self.tokens == 0  # 0: evaluate only, from the weights of another run
            self.require(enough, "tokens", f"at least one step, {least} tokens")
            enough = self.validation_tokens >= self.sequence_length
            self.require(enough, "validation_tokens", f"at least one sequence, {self.sequence_length}")

        def batches(self) -> BatchRamp:
            return self.batch.build(self.tokens, self.sequence_length)


class Wandb:
    """Weights & Biases; offline by default, so no key is needed and nothing waits for the network."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        mode: Literal["offline", "online", "disabled"] = setting("offline")
        project: str = setting("dsv2")

        def __post_init__(self) -> None:
            valid = r"1 to 128 characters, without / \ # ? % :"  # W&B's rule
            self.require(re.fullmatch(r"[^/\\#?%:]{1,128}", self.project) is not None, "project", valid)


class Logging:
    """Loggers besides `metrics.jsonl`; built by `dsv2.training.sinks`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        wandb: Wandb.Config = field(default_factory=Wandb.Config, metadata={"fingerprint": False})


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
        # Computed at the last step.
        benchmarks: (
            TextBenchmarks.Config | LossByPosition.Config | NeedleGrid.Config | Following.Config | Exams.Config | None
        ) = None
        deployment: Deployed.Config | None = added(None)  # how the model is evaluated; None: as it is trained
        init_from: Origin.Config | None = added(None)  # the run whose weights this one starts from; None: random ones
        objective: Objective.Config | None = added(None)  # None: the cross-entropy of the data
        mesh: Mesh.Config = field(default_factory=Mesh.Config, metadata={"fingerprint": False})  # processes
        study: str | None = setting(None)  # labels of a study's trial; they do not affect the computation
        scale: str | None = setting(None)
        arm: str | None = setting(None)
        probe: str | None = setting(None)

        def __post_init__(self) -> None:
            self.require(0 <= self.seed < 2**63, "seed", "0 or more and less than 2**63")
            valid = "at least one step; 0, to evaluate only, needs init_from"
            self.require(self.trainer.tokens > 0 or self.init_from is not None, "trainer.tokens", valid)
            fits = self.model.vocab_size >= self.data.vocab_size
            self.require(fits, "model.vocab_size", f"at least data.vocab_size={self.data.vocab_size}")
            limit, length = self.model.rope.limit, self.trainer.sequence_length
            valid = f"at most {limit}, factor x original_length of model.rope"
            self.require(limit is None or length <= limit, "trainer.sequence_length", valid)
            for step in ("validate_every", "checkpoint_every"):
                every = self.trainer.log_every
                good = getattr(self.trainer, step) % every == 0
                self.require(good, f"trainer.{step}", f"a multiple of trainer.log_every={every}")
            layers = self.trainer.recompute_layers
            valid = f"0 to model.num_layers={self.model.num_layers}"
            self.require(layers <= self.model.num_layers, "trainer.recompute_layers", valid)
            if self.mesh.size > 1:
                self._require_mesh_fits()
            if self.deployment is not None:
                self.deployment.require_fits(self.model.attention)
            if self.benchmarks is not None:
                self._require_benchmarks_fit(BENCHMARKS[type(self.benchmarks)])
            if isinstance(self.benchmarks, LossByPosition.Config):
                valid = f"at most an eighth of {limit}, the positions of model.rope"
                fits = limit is None or self.benchmarks.longest <= limit
                self.require(fits, "benchmarks.trained_length", valid)
            if isinstance(self.benchmarks, NeedleGrid.Config):
                valid = f"multiples of {self.benchmarks.trained_length} up to {limit}, the positions of model.rope"
                self.require(limit is None or self.benchmarks.longest <= limit, "benchmarks.multiples", valid)
            if isinstance(self.benchmarks, TextBenchmarks.Config):
                for name, tokens in self.benchmarks.lengths().items():
                    fits = tokens <= length
                    valid = f"{tokens} tokens per question, at most trainer.sequence_length={length}"
                    self.require(fits, f"benchmarks.{name}", valid)

            if isinstance(self.data, Chats.Config) and self.deployment is not None:
                whole = "null, since several conversations in a sequence cannot share a cache"
                self.require(self.deployment.kv is None, "deployment.kv", whole)
            if self.objective is not None:
                self.objective.require_fits(self)

        def _require_mesh_fits(self) -> None:
            """Raise ConfigError, naming the axis, for a run that the processes of `mesh` cannot share."""
            axis = self.mesh.axis
            self.require(self.trainer.tokens > 0, axis, "1 with trainer.tokens=0, which is to evaluate only")
            shares = self.mesh.num_shares
            for size in self.trainer.batches().sizes:
                valid = f"such that mesh.dp x mesh.ep divides every batch size; one step has {size} sequences"
                self.require(size % shares == 0, axis, valid)
            moe = self.model.moe
            coupled = moe is not None and moe.couples_sequences and moe.dropping is None
            self.require(not coupled, axis, "1, since this FFN drops tokens over the capacity of a whole batch")
            if self.mesh.ep > 1:
                self.require(moe is not None, "mesh.ep", "1 for a dense model, which has no experts to share")
                if moe is not None:
                    valid = f"a divisor of the number of routed experts, {moe.num_experts}"
                    self.require(moe.num_experts % self.mesh.ep == 0, "mesh.ep", valid)
                none = self.deployment is None
                self.require(none, "mesh.ep", "1 with a deployment, whose copy of the model needs all experts")

        def _require_benchmarks_fit(self, name: str) -> None:
            chats = isinstance(self.data, Chats.Config)
            if not isinstance(self.data, Text.Config):
                raise ConfigError("benchmarks", name, "none for data without text, such as synthetic sequences")
            if chats != isinstance(self.benchmarks, Following.Config):
                valid = "following or none for conversations" if chats else "one of text, following is of conversations"
                raise ConfigError("benchmarks", name, valid)

        def fingerprint(self, naming: Naming = class_name) -> str:
            """Return 16 hex digits that identify the computation: a hash of typed config, corpus and tokenizer.

            Settings that say where or how a run happens are left out.
            """
            return digest(FORMAT, plain(self, identity=True, naming=naming), self.data.identity(naming))


def load(overrides: Sequence[str] = ()) -> Run.Config:
    """Turn Hydra overrides into the typed, frozen config of a run.

    Raises ConfigError (a ValueError) that names the full key, the value and what would be valid.
    """
    require_overrides(overrides)
    words = reaching(overrides)
    return loaded(compose(words), words)


def loaded(values: dict[str, Any], words: Sequence[str]) -> Run.Config:
    """Build the typed config from values composed with the overrides `words`.

    If they name a run with `init_from`, whatever they do not override is as in that run, except for the seed and for
    where and how it ran. Raises ConfigError.
    """
    values = with_reward_models(values)
    name = values.get("init_from")
    if name is None or isinstance(name, dict):
        return from_plain(values)
    adopted, origin = adopt(values, words, {"trainer": settings_of(Training.Config)})
    run = from_plain(adopted)
    origin.require_fits(run.model)
    return run


def from_plain(values: dict[str, Any]) -> Run.Config:
    """Build the typed config from composed or stored values."""
    if not isinstance(values, dict):
        raise ConfigError("config", values, "a mapping")
    run = structure(values, Run.Config)
    assert isinstance(run, Run.Config)
    return run


def with_kernels(run: Run.Config, kernels: str) -> Run.Config:
    """Return the run with other `trainer.kernels`."""
    return replace(run, trainer=replace(run.trainer, kernels=cast(Any, kernels)))


def folder_of(run: Run.Config, root: Path) -> Path:
    """Return this run's directory under `root`: named by its fingerprint or, in an older store, by its former one."""
    folder = root / run.fingerprint()
    former = root / run.fingerprint(former_name)
    return former if former.is_dir() and not folder.is_dir() else folder


def stored_name(run: Run.Config, folder: Path) -> str:
    """Return the fingerprint under which the run in `folder` was started."""
    former = run.fingerprint(former_name)
    return former if folder.name == former else run.fingerprint()
