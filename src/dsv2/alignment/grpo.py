"""Group relative policy optimisation (section 4.2, Eq. 32 to 34) as an objective of runs.

n answers, of P prompts with G answers each; M tokens of answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dsv2.alignment.difficulty import TEACHES, difficulty, in_words
from dsv2.alignment.draws import Draws, Numbers, draw_groups, prompts_of
from dsv2.alignment.policy import (
    K3,
    Centred,
    ConstantDivisor,
    EveryGroup,
    Policy,
    SequenceMean,
    Standardised,
    TokenMean,
    Tokens,
    VariedGroups,
    WeightedK3,
    has_variance,
    policy_loss,
)
from dsv2.alignment.reward_model import RewardModel
from dsv2.alignment.rewards import RewardModels, Rewards
from dsv2.alignment.rollout import Answers, Rows, log_probabilities
from dsv2.config import ConfigError, added, setting
from dsv2.data.chats import Chats
from dsv2.data.packing import in_epochs
from dsv2.data.source import Source
from dsv2.evaluation.following import Verified, pass_at
from dsv2.evaluation.verifiers import Judge
from dsv2.models.moe.router import Routing
from dsv2.models.transformer import Transformer
from dsv2.printing import complain, warn
from dsv2.routing.measures import without_padding
from dsv2.training.losses import Losses, training_loss
from dsv2.training.module import Module, detached
from dsv2.training.run import Run

MOST_IDLE = 0.6  # share of groups without variance above which too little is learned


class GRPO:
    """Answers to prompts are drawn in groups, rewarded, and made more or less likely by their advantage in the group.

    A step trains on `trainer.batch.size` answers, each once. They are drawn by the weights of the first of
    `steps_per_rollout` steps, so that those of the last are that many steps less one older than what is trained: 1 is
    online, null is offline, with all answers drawn by the weights that the run starts with.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Draws.Config):
        domains: tuple[str, ...] | None = added(None)  # of the prompts that are answered; None: all
        steps_per_rollout: int | None = 1  # optimiser steps on answers of one policy; None: all
        temperature: float = 1.0  # at which answers are drawn, and in the loss
        clip: float = 0.2  # epsilon
        penalty: K3.Config | WeightedK3.Config | None = field(default_factory=K3.Config)
        advantage: Standardised.Config | Centred.Config = field(default_factory=Standardised.Config)
        average: SequenceMean.Config | TokenMean.Config | ConstantDivisor.Config = field(
            default_factory=SequenceMean.Config
        )
        groups: EveryGroup.Config | VariedGroups.Config = field(default_factory=EveryGroup.Config)
        rewards: Rewards.Config = field(default_factory=Rewards.Config)
        reward_models: RewardModels.Config = field(default_factory=RewardModels.Config)
        micro_batch: int | None = setting(None)  # sequences at a time, which saves memory; None: all of a step

        def __post_init__(self) -> None:
            super().__post_init__()
            self.require(self.steps_per_rollout is None or self.steps_per_rollout > 0, "steps_per_rollout", "positive")
            self.require(0 < self.clip < 1, "clip", "between 0 and 1")
            self.require(self.micro_batch is None or self.micro_batch > 0, "micro_batch", "positive, or null for all")

        def require_fits(self, run: Run.Config) -> None:
            super().require_fits(run)
            for size in run.trainer.batches().sizes:
                if size % self.group_size:
                    valid = f"a multiple of objective.group_size={self.group_size}; one step has {size} answers"
                    raise ConfigError("trainer.batch.size", run.trainer.batch.size, valid)
            self.rewards.require_models(self.reward_models)
            for axis in ("dp", "ep", "pp"):
                if (size := getattr(run.mesh, axis)) > 1:
                    raise ConfigError(f"mesh.{axis}", size, "1 with objective=grpo")
            if self.micro_batch is not None and run.model.moe is not None and run.model.moe.couples_sequences:
                valid = "null, since this FFN drops tokens over the capacity of a whole batch"
                raise ConfigError("objective.micro_batch", self.micro_batch, valid)

        def module(self, run: Run.Config) -> "GRPOModule":
            return GRPOModule(run, self)


class GRPOModule(Module):
    """Draws answers and trains on them. Its checkpoints hold those under way, and the reference's weights."""

    def __init__(self, run: Run.Config, settings: GRPO.Config) -> None:
        super().__init__(run)
        self.settings = settings
        self.judge = Judge()
        self.answers: Answers | None = None  # of the steps from `drawn_at` on
        self.drawn_at = 0
        self.reference: dict[str, Tensor] = {}  # weights of the reference; empty without a penalty
        self.reward_models: dict[str, RewardModel] = {}
        self.drawn: dict[str, Tensor] = {}  # measures of answers that were drawn in this step

    # ---- state of a resumed run ----

    def begin(self, source: Source, *, resumed: bool) -> None:
        assert isinstance(source, Chats)  # the config refuses others
        self.source, self.tokenizer, settings = source, source.store.tokenizer, self.settings
        self.prompts = prompts_of(self.config, source, settings.domains, settings.max_new_tokens)
        self.reward_models = {
            name: RewardModel.open(f"objective.reward_models.{name}", run, self.tokenizer)
            for name, run in settings.reward_models.given().items()
        }
        if settings.penalty is not None and not resumed:
            self.reference = {name: weight.detach().cpu().clone() for name, weight in self.model.state_dict().items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        left = None if self.answers is None or self._is_due(self.global_step) else self.answers.state()
        checkpoint["grpo"] = {"answers": left, "drawn_at": self.drawn_at, "reference": self.reference}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["grpo"]
        self.answers = None if state["answers"] is None else Answers.from_state(state["answers"])
        self.drawn_at, self.reference = state["drawn_at"], state["reference"]

    def stream(self, source: Source) -> Numbers:
        return Numbers(self.batches.num_steps)

    # ---- drawing answers ----

    def _is_due(self, step: int) -> bool:
        """Whether a step needs new answers."""
        steps = self.settings.steps_per_rollout
        return self.answers is None or (steps is not None and step - self.drawn_at >= steps)

    def draw(self, step: int) -> None:
        """Draw the answers of the steps from this one on, by the weights as they are."""
        run, settings, last = self.config, self.settings, self.batches.num_steps
        if settings.steps_per_rollout is not None:
            last = min(step + settings.steps_per_rollout, last)
        first, end = self.batches.first_sequence(step), self.batches.first_sequence(last)
        size = settings.group_size
        numbers = in_epochs(run.seed, len(self.prompts), first // size, (end - first) // size)
        groups = draw_groups(
            self.model,
            self.source,
            [self.prompts[number] for number in numbers],
            self.judge,
            group_size=size,
            temperature=settings.temperature,
            max_new_tokens=settings.max_new_tokens,
            seed=run.seed,
            first=first,
            progress=run.trainer.progress and end - first > run.trainer.batch.size,
        )
        if step == 0:
            table = difficulty(groups, self.source.domains)
            complain(f"grpo: before training, {in_words(table)}")
            if (idle := float(table["zero_variance"].iloc[-1])) > MOST_IDLE:
                low, high = TEACHES
                warn(f"{idle:.0%} of the groups teach nothing; choose tasks of which p@1 is from {low} to {high}")
        learned = self._learned(groups)
        terms = [
            settings.rewards.terms(group, {name: values[number] for name, values in learned.items()})
            for number, group in enumerate(groups)
        ]
        rewards = torch.stack([settings.rewards.of(each) for each in terms])  # (P, G)
        self.answers, self.drawn_at = self._answers(groups, rewards), step
        self.drawn = {f"grpo/reward_{name}": torch.cat([each[name] for each in terms]) for name in terms[0]}
        self.drawn |= {"grpo/reward": rewards.flatten()}
        self.drawn = {name: values.nanmean().float() for name, values in self.drawn.items()} | measured(groups, rewards)

    def _learned(self, groups: Sequence[Verified]) -> dict[str, Tensor]:
        """Return what the reward models give the answers, (P, G) float32 each."""
        texts = [[*group.prompt.ids, *reply.tokens] for group in groups for reply in group.replies]
        return {
            name: model.to(self.device).rewards(texts, pad_id=self.tokenizer.end_id).reshape(len(groups), -1)
            for name, model in self.reward_models.items()
        }

    def _answers(self, groups: Sequence[Verified], rewards: Tensor) -> Answers:
        flat = [(group.prompt, reply) for group in groups for reply in group.replies]
        kept = self.settings.groups.kept(has_variance(rewards))[:, None] & ~rewards.isnan()
        answers = Answers(
            ids=torch.tensor([token for prompt, reply in flat for token in (*prompt.ids, *reply.tokens)]),
            lengths=torch.tensor([len(prompt.ids) + len(reply.tokens) for prompt, reply in flat]),
            asked=torch.tensor([len(prompt.ids) for prompt, _ in flat]),
            old=torch.tensor([log for _, reply in flat for log in reply.log_probabilities]),
            reference=None,
            advantages=self.settings.advantage.advantages(rewards).flatten(),
            kept=kept.flatten(),
        )
        return replace(answers, reference=self._by_reference(answers)) if self.reference else answers

    @torch.no_grad()
    def _by_reference(self, answers: Answers) -> Tensor:
        """Return the log-probabilities of the answers' tokens by the reference, (M,) float32."""
        with torch.device("meta"):
            model = self.model.config.build(ops=self.model.ops).eval()
        weights = {name: weight.to(self.device) for name, weight in self.reference.items()}
        model.load_state_dict(weights, assign=True)
        logs = torch.zeros_like(answers.old)
        for rows in self._rows(answers):
            logs[rows.order] = self._log_probabilities(model, rows)[0].cpu()
        return logs

    # ---- training on them ----

    def _rows(self, answers: Answers) -> list[Rows]:
        """Return the answers as batches of `micro_batch` sequences, or of as many as a step has at most."""
        every = Rows.of(answers, length=self.config.trainer.sequence_length, pad_id=self.tokenizer.end_id)
        most = self.settings.micro_batch or self.config.trainer.batch.size
        return [Rows.joined(every[first : first + most]) for first in range(0, len(every), most)]

    def _log_probabilities(self, model: Transformer, rows: Rows, **settings: Any) -> tuple[Tensor, tuple[Routing, ...]]:
        temperature = self.settings.temperature
        return log_probabilities(model, rows, temperature=temperature, ids=self.tokenizer.ids, **settings)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        step = self.global_step
        if self._is_due(step):
            self.draw(step)
        assert self.answers is not None
        first, last = self.batches.first_sequence(self.drawn_at), self.batches.first_sequence(step)
        answers = self.answers.part(last - first, self.batches.batch_size(step))
        drawn, self.drawn = self.drawn, {}
        self.zero_grad()  # here, since all parts but the last go backward within this step
        parts, batches = list[Part](), self._rows(answers)
        sequences, tokens = sum(len(rows.batch.inputs) for rows in batches), sum(map(_num_tokens, batches))
        for rows in batches:
            if parts:
                parts[-1].losses.total.backward()
                parts[-1] = parts[-1].freed()
            parts.append(self.part(answers, rows, len(rows.batch.inputs) / sequences, _num_tokens(rows) / tokens))
        whole = Part.summed(parts)
        answered = whole.policy.tokens.clamp(min=1)
        measures = {
            "grpo/loss": whole.policy.loss.detach(),
            "grpo/kl": whole.policy.penalty / answered,
            "grpo/clipped": whole.policy.clipped / answered,
            "grpo/shift": whole.policy.shift / answered,
            "grpo/staleness": torch.tensor(float(step - self.drawn_at)),
        }
        losses = whole.losses._replace(ce=whole.policy.nats / answered)
        return self.stepped(losses, whole.routings, int(answers.lengths.sum()), drawn | measures)

    def optimizer_zero_grad(self, *_: Any, **__: Any) -> None:
        """Do nothing: Lightning would call it after `training_step`, which has begun to sum gradients."""

    def part(self, answers: Answers, rows: Rows, sequences: float = 1.0, tokens: float = 1.0) -> "Part":
        """Return what the answers in some rows contribute to the loss of a step, which has all of `answers`.

        The shares are those of the step's sequences, over which balance losses are averaged, and of its tokens, over
        which the z-loss is.
        """
        exempt = self._exempt(len(rows.batch.inputs))
        logits: list[Tensor] | None = [] if self.config.loss.z else None
        now, routings = self._log_probabilities(
            self.model, rows, exempt=exempt, seed=self._step_seed, router_logits=logits
        )
        policy = policy_loss(
            now, self._tokens(answers, rows.order), clip=self.settings.clip, penalty=self.settings.penalty
        )
        own = training_loss(now.new_zeros(()), routings, self.moe, self.config.loss, logits or (), rows.batch.positions)
        losses = Losses(*(sequences * loss for loss in own))._replace(z=tokens * own.z)
        total = policy.loss + losses.expert + losses.device + losses.communication + losses.z
        return Part(losses._replace(total=total), policy, without_padding(detached(routings), rows.batch.positions))

    def _tokens(self, answers: Answers, order: Tensor) -> Tokens:
        """Return what is known of some of a step's tokens."""
        weights = torch.zeros(len(answers))
        weights[answers.kept] = self.settings.average.weights(answers.answered[answers.kept])
        of_answers = [
            column.repeat_interleave(answers.answered)[order].to(self.device)
            for column in (answers.advantages, weights)
        ]
        reference = None if answers.reference is None else answers.reference[order].to(self.device)
        return Tokens(answers.old[order].to(self.device), reference, *of_answers)


def _num_tokens(rows: Rows) -> int:
    """Return how many tokens there are besides padding."""
    assert rows.batch.positions is not None, "rows of answers have positions"
    return int((rows.batch.positions >= 0).sum())


class Part(NamedTuple):
    """What a part of a step's answers contributes; those of all parts are summed."""

    losses: Losses  # `total` with a graph
    policy: Policy
    routings: tuple[Routing, ...]  # without padding

    def freed(self) -> "Part":
        """Return it without its graph, which is not needed after its backward pass."""
        losses, policy = ([value.detach() for value in each] for each in self[:2])
        return Part(Losses(*losses), Policy(*policy), self.routings)

    @classmethod
    def summed(cls, parts: Sequence["Part"]) -> "Part":
        losses, policies = (
            [torch.stack(values).sum(0) for values in zip(*column, strict=True)]
            for column in ([part.losses for part in parts], [part.policy for part in parts])
        )
        routings = [_joined(layer) for layer in zip(*(part.routings for part in parts), strict=True)]
        return Part(Losses(*losses), Policy(*policies), tuple(routings))


def _joined(routings: Sequence[Routing]) -> Routing:
    """Return the routing of the tokens of several, (1, T, ...) each."""
    first, *others = routings
    for other in others:
        rest = iter(other)
        first = first.map(lambda tensor, rest=rest: torch.cat((tensor, next(rest)), dim=1))  # type: ignore[misc]
    return first


def measured(groups: Sequence[Verified], rewards: Tensor) -> dict[str, Tensor]:
    """Return what is logged of answers that were drawn, besides their rewards (P, G)."""
    replies = [reply for group in groups for reply in group.replies]
    judged = [group.scores for group in groups if len(group.scores) == len(group.replies)]
    values = {
        "grpo/zero_variance": (~has_variance(rewards)).float(),
        "grpo/length": torch.tensor([float(len(reply.tokens)) for reply in replies]),
        "grpo/capped": torch.tensor([float(not reply.stopped) for reply in replies]),
        "grpo/unjudged": rewards.isnan().float(),
        f"grpo/pass_at_{rewards.shape[1]}": torch.tensor([pass_at(len(scores), scores) for scores in judged]),
    }
    return {name: each.mean() for name, each in values.items()}
