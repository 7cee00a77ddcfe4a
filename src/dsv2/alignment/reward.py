"""Training of a reward model as an objective of runs: from a model that answers, by preferences between its answers.

N pairs of answers.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dsv2.alignment.draws import Draws, Numbers, draw_groups, prompts_of, within
from dsv2.alignment.preferences import Pairwise, Pointwise, Preferences, agreement
from dsv2.alignment.reward_model import Rows, scores, scores_of
from dsv2.alignment.rewards import LEARNED, Rewards
from dsv2.config import ConfigError
from dsv2.data.chats import Chats, Prompt
from dsv2.data.packing import in_epochs
from dsv2.data.source import Source
from dsv2.evaluation.verifiers import Judge
from dsv2.models.transformer import evaluating
from dsv2.printing import complain
from dsv2.routing.measures import without_padding
from dsv2.training.losses import training_loss
from dsv2.training.module import Module, detached
from dsv2.training.run import Run


class Reward:
    """A scalar head on the model that a run starts with is trained on preferences between its own answers.

    They are drawn once, before the first step, and rewarded; of two answers to a prompt, the one with the higher reward
    is preferred. A step trains on `trainer.batch.size` answers, in pairs.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Draws.Config):
        prompts: int = 500  # training prompts to which answers are drawn, or all that there are
        held_out: int = 100  # held-out prompts for validation, or all that there are
        loss: Pairwise.Config | Pointwise.Config = field(default_factory=Pairwise.Config)
        rewards: Rewards.Config = field(default_factory=Rewards.Config)  # by which answers are preferred

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("prompts", "held_out"):
                self.require(getattr(self, name) > 0, name, "positive")
            for name in LEARNED:
                self.require(getattr(self.rewards, name) == 0, f"rewards.{name}", "0, since no reward model is learned")

        def require_fits(self, run: Run.Config) -> None:
            super().require_fits(run)
            for size in run.trainer.batches().sizes:
                if size % 2:
                    raise ConfigError(
                        "trainer.batch.size", run.trainer.batch.size, "even: answers are trained in pairs"
                    )
            for axis in ("ep", "dp"):
                if (size := getattr(run.mesh, axis)) > 1:
                    raise ConfigError(f"mesh.{axis}", size, "1 with objective=reward")
            if run.benchmarks is not None:
                raise ConfigError("benchmarks", "following", "none, since a reward model does not reply")

        def module(self, run: Run.Config) -> "RewardModule":
            return RewardModule(run, self)


class RewardModule(Module):
    """Trains model and head. Its checkpoints hold the answers, and its weights the scale of the scores."""

    score_mean: Tensor  # of the held-out answers, at the last validation
    score_std: Tensor

    def __init__(self, run: Run.Config, settings: Reward.Config) -> None:
        super().__init__(run)
        self.settings, self.judge = settings, Judge()
        self.score_head = nn.Parameter(torch.zeros(run.model.dim))
        self.register_buffer("score_mean", torch.zeros(()))
        self.register_buffer("score_std", torch.ones(()))
        self.drawn: dict[str, Preferences] | None = None  # of `training` and `held_out` prompts

    def begin(self, source: Source, *, resumed: bool) -> None:
        assert isinstance(source, Chats)  # the config refuses others
        self.source, self.pad_id = source, source.store.tokenizer.end_id
        settings = self.settings
        self.prompts = prompts_of(self.config, source, settings.domains, settings.max_new_tokens)
        self.held_out = within(source, source.held_out_prompts, settings.domains)[: settings.held_out]
        if not self.held_out:
            raise ConfigError("data", self.config.data.label, "held-out conversations with a verifier too")

    def stream(self, source: Source) -> Numbers:
        return Numbers(self.batches.num_steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        drawn = self.drawn or {}
        checkpoint["reward"] = {name: preferences.state() for name, preferences in drawn.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["reward"]
        self.drawn = {name: Preferences.from_state(values) for name, values in state.items()}

    # ---- preferences ----

    def preferences(self) -> dict[str, Preferences]:
        """Return the preferences, which are drawn when they are first asked for.

        Raises ConfigError if no prompt has both a better and a worse answer.
        """
        if self.drawn is None:
            count = min(self.settings.prompts, len(self.prompts))
            numbers = in_epochs(self.config.seed, len(self.prompts), 0, count)
            self.drawn = {
                "training": self._drawn([self.prompts[number] for number in numbers], "training"),
                "held_out": self._drawn(self.held_out, "held-out"),
            }
        return self.drawn

    def _drawn(self, prompts: list[Prompt], side: str) -> Preferences:
        settings = self.settings
        groups = draw_groups(
            self.model,
            self.source,
            prompts,
            self.judge,
            group_size=settings.group_size,
            temperature=settings.temperature,
            max_new_tokens=settings.max_new_tokens,
            seed=self.config.seed,
            progress=self.config.trainer.progress,
        )
        rewards = torch.stack([settings.rewards.of(settings.rewards.terms(group)) for group in groups])
        preferences = Preferences.of(groups, rewards)
        if not len(preferences.pairs):
            valid = f"prompts of which the model's answers get different rewards, which no {side} prompt does"
            raise ConfigError("data", self.config.data.label, valid)
        complain(f"reward: {len(preferences.pairs):,} pairs of {len(prompts):,} {side} prompts")
        return preferences

    # ---- training on them ----

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        preferences, step = self.preferences()["training"], self.global_step
        first, count = self.batches.first_sequence(step) // 2, self.batches.batch_size(step) // 2
        pairs = preferences.pairs[in_epochs(self.config.seed, len(preferences.pairs), first, count)]
        rows = Rows.of(preferences.texts(pairs.T.flatten()), pad_id=self.pad_id)
        logits: list[Tensor] | None = [] if self.config.loss.z else None
        exempt = self._exempt(2 * count)
        values, routings = scores(
            self.model, self.score_head, rows, exempt=exempt, seed=self._step_seed, router_logits=logits
        )
        better, worse = values.split(count)
        loss = self.settings.loss.loss(better, worse)
        losses = training_loss(loss, routings, self.moe, self.config.loss, logits or (), rows.positions)
        measures = {"rm/accuracy_in_training": torch.tensor(agreement(better.detach(), worse.detach()).accuracy)}
        kept = without_padding(detached(routings), rows.positions)
        return self.stepped(losses, kept, int((rows.positions >= 0).sum()), measures)

    @torch.no_grad()
    def validated(self) -> dict[str, float]:
        """Return how the scores of the held-out answers agree with preferences, and keep their mean and deviation.

        `val/loss` is in nats per pair, whatever the loss in training, so that it compares the two kinds.
        """
        held_out = self.preferences()["held_out"]
        texts = held_out.texts(torch.arange(len(held_out.lengths)))
        with evaluating(self.model):
            values = scores_of(self.model, self.score_head, texts, pad_id=self.pad_id)
        self.score_mean.copy_(values.mean())
        self.score_std.copy_(values.std().clamp(min=1e-6))
        better, worse = values.cpu()[held_out.pairs].unbind(1)
        found = agreement(better, worse)
        return {"val/loss": found.nats, "rm/accuracy": found.accuracy, "rm/calibration": found.calibration}
