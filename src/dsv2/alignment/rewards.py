"""What answers are rewarded for: verdicts, rules and learned rewards, each a term that is logged by itself.

G answers to a prompt.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dsv2.config import ConfigBase, ConfigError, added
from dsv2.data.verification import Answer
from dsv2.evaluation.following import Verified
from dsv2.inference.replies import Reply
from dsv2.training.origin import Origin

LEARNED = ("reasoning", "helpful", "safety")  # terms that reward models give


class RewardModels:
    """The runs of `objective=reward` that give the learned terms, by their term."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        reasoning: Origin.Config | None = None
        helpful: Origin.Config | None = None
        safety: Origin.Config | None = None

        def given(self) -> dict[str, Origin.Config]:
            """Return those that there are, by their term."""
            runs = {name: getattr(self, name) for name in LEARNED}
            return {name: run for name, run in runs.items() if run is not None}


class Rewards:
    """r = sum of a coefficient times a term, over the terms of which each is logged without its coefficient."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        correct: float = 1.0  # of an answer that its verifier calls right
        stopped: float = 0.0  # of one that ends itself
        safe: float = added(0.0)  # of one that refuses, if that is what is right, and of any other if it is not
        rule: float = added(0.0)  # of one that ends itself, within one line that is not empty
        reasoning: float = added(0.0)  # of the reward model of reasoning (stage 1)
        helpful: float = added(0.0)  # c1, of the reward model of helpfulness (stage 2)
        safety: float = added(0.0)  # c2, of the reward model of safety (stage 2)
        refusal: str = added("No")  # the reply that refuses

        def require_models(self, models: RewardModels.Config) -> None:
            """Raise ConfigError for a learned term that counts without a model that gives it."""
            for name in LEARNED:
                if getattr(self, name) and name not in models.given():
                    valid = f"0 without objective.reward_models.{name}, the run of a reward model"
                    raise ConfigError(f"objective.rewards.{name}", getattr(self, name), valid)

        def terms(self, each: Verified, learned: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
            """Return each term of the rewards of a prompt's answers, (G,) float64; NaN where nothing is known.

            `learned` are the terms that reward models give, (G,) each.
            """
            scores = [float("nan") if verdict.score is None else verdict.score for verdict in each.verdicts]
            asked = each.prompt.verifier
            refuse = isinstance(asked, Answer) and asked.answer.strip() == self.refusal
            terms = {
                "correct": scores,
                "stopped": [reply.stopped for reply in each.replies],
                "safe": [(reply.text.strip() == self.refusal) == refuse for reply in each.replies],
                "rule": [_obeys(reply) for reply in each.replies],
            }
            of_verdicts = {name: torch.tensor(values, dtype=torch.float64) for name, values in terms.items()}
            return of_verdicts | {name: values.double() for name, values in (learned or {}).items()}

        def of(self, terms: Mapping[str, Tensor]) -> Tensor:
            """Return the rewards, (G,) float64; a term without a coefficient does not matter, known or not."""
            weighted = [weight * term for name, term in terms.items() if (weight := getattr(self, name))]
            return sum(weighted, torch.zeros_like(next(iter(terms.values()))))


def _obeys(reply: Reply) -> bool:
    text = reply.text.strip()
    return reply.stopped and bool(text) and "\n" not in text
