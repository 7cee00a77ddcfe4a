"""Instruction following: replies to held-out prompts, verified.

n replies to a prompt, c of them right.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dsv2.config import ConfigBase, ConfigError, added
from dsv2.data.chats import Chats, Prompt
from dsv2.data.verification import Answer, Verifier
from dsv2.evaluation.benchmarks import Measured
from dsv2.evaluation.verifiers import Judge, Verdict
from dsv2.inference.replies import Reply, reply_to
from dsv2.inference.sampling import Sampling
from dsv2.models.transformer import Transformer
from dsv2.printing import described


class Verified(NamedTuple):
    """A prompt with its replies and the verdicts on them."""

    prompt: Prompt
    replies: list[Reply]
    verdicts: list[Verdict]

    @property
    def scores(self) -> list[float]:
        """The scores of the replies that could be judged."""
        return [verdict.score for verdict in self.verdicts if verdict.score is not None]


def verified(judge: Judge, prompts: Sequence[Prompt], replies: Sequence[list[Reply]]) -> list[Verified]:
    """Judge the replies to each prompt by its verifier, all of them together."""
    verifiers = [_verifier(prompt) for prompt, group in zip(prompts, replies, strict=True) for _ in group]
    verdicts = iter(judge.verdicts([reply.text for group in replies for reply in group], verifiers))
    return [
        Verified(prompt, group, [next(verdicts) for _ in group]) for prompt, group in zip(prompts, replies, strict=True)
    ]


def _verifier(prompt: Prompt) -> Verifier:
    assert prompt.verifier is not None
    return prompt.verifier


def pass_at(k: int, scores: Sequence[float]) -> float:
    """Return the probability that at least one of k replies is right, without bias from n >= k replies.

    1 - C(n - c, k) / C(n, k), where a score of 1 is right (Chen et al., arXiv 2107.03374).
    """
    n, c = len(scores), sum(score == 1 for score in scores)
    assert 1 <= k <= n
    return 1 - math.comb(n - c, k) / math.comb(n, k)


class Following:
    """Questions are the first held-out prompts of the data, the same for all arms and seeds."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        prompts: int = 200  # the first so many that have a verifier, or all that there are
        samples: int = 8  # replies per prompt, drawn at temperature 1; with one more that is greedy
        max_new_tokens: int = 32
        refusal: str | None = added(None)  # the reply that refuses, to count such; None: they are not told apart

        def __post_init__(self) -> None:
            for name in ("prompts", "samples", "max_new_tokens"):
                self.require(getattr(self, name) > 0, name, "positive")

        def build(self, source: Chats) -> "Following":
            """Take the prompts. Raises ConfigError if no held-out conversation has a verifier."""
            if not source.held_out_prompts:
                raise ConfigError("benchmarks", "following", "none, since no held-out conversation has a verifier")
            return Following(self, source)

    def __init__(self, config: Config, source: Chats) -> None:
        self.config, self.source = config, source
        self.prompts = source.held_out_prompts[: config.prompts]

    def run(self, model: Transformer, *, batch_tokens: int) -> Measured:
        """Return the scores of `measure`; rows of the engine's cache take the place of `batch_tokens`."""
        try:
            with Judge() as judge:
                return Measured(self.measure(model, judge), {})
        except Exception as error:  # the training does not depend on it
            return Measured({}, {"following": described(error)})

    def measure(self, model: Transformer, judge: Judge) -> dict[str, float]:
        """Return shares of right replies; a reply that could not be judged is left out.

        `bench/following` of greedy replies and `bench/pass_at_1` of drawn ones, both also by domain;
        `bench/pass_at_<n>` of prompts with a right one among n; `bench/stopped`, the share of drawn replies that end
        themselves; and `bench/unjudged`, that of the replies that were left out, if there are any. With a refusal,
        `bench/refused` is the share of drawn replies that refuse what is to be refused, and `bench/over_refused` of
        those that refuse what is not.
        """
        greedy = self.replies(model, judge, samples=1, temperature=0.0)
        drawn = self.replies(model, judge, samples=self.config.samples, temperature=1.0)
        every = [each.scores for each in drawn]
        most = self.config.samples
        verdicts = [verdict for each in (*greedy, *drawn) for verdict in each.verdicts]
        scores = self._shares("bench/following", greedy) | self._shares("bench/pass_at_1", drawn)
        if most > 1:
            scores[f"bench/pass_at_{most}"] = _mean([pass_at(most, group) for group in every if len(group) == most])
        scores["bench/stopped"] = _mean([float(reply.stopped) for each in drawn for reply in each.replies])
        if self.config.refusal is not None:
            scores |= _refusals(drawn, self.config.refusal)
        if unknown := sum(verdict.score is None for verdict in verdicts):
            scores["bench/unjudged"] = unknown / len(verdicts)
        return scores

    def _shares(self, metric: str, groups: Sequence[Verified]) -> dict[str, float]:
        """Return the mean score of replies, and that of each domain if there are several."""
        by_domain: dict[str, list[float]] = {}
        for each in groups:
            by_domain.setdefault(self.source.domains[each.prompt.domain], []).extend(each.scores)
        shares = {metric: _mean([score for domain in by_domain.values() for score in domain])}
        parts = {f"{metric}_{name}": _mean(by_domain[name]) for name in sorted(by_domain)}
        return shares | (parts if len(parts) > 1 else {})

    def replies(self, model: Transformer, judge: Judge, *, samples: int, temperature: float) -> list[Verified]:
        """Let the model reply to every prompt, and judge what it says."""
        tokenizer = self.source.store.tokenizer
        groups = reply_to(
            model,
            tokenizer,
            [prompt.ids for prompt in self.prompts],
            samples=samples,
            sampling=Sampling(temperature=temperature),
            max_new_tokens=self.config.max_new_tokens,
            stop_ids=self.source.stop_ids,
        )
        return verified(judge, self.prompts, groups)


def _refusals(groups: Sequence[Verified], refusal: str) -> dict[str, float]:
    """Return the shares of replies that refuse, to prompts of which that is the right reply and to all others."""
    counted: dict[bool, list[float]] = {True: [], False: []}
    for each in groups:
        verifier = each.prompt.verifier
        due = isinstance(verifier, Answer) and verifier.answer.strip() == refusal
        counted[due] += [float(reply.text.strip() == refusal) for reply in each.replies]
    names = {True: "bench/refused", False: "bench/over_refused"}
    return {names[due]: _mean(refusals) for due, refusals in counted.items() if refusals}


def _mean(values: Sequence[float]) -> float:
    """Return the mean; NaN of none, as when nothing could be judged."""
    return sum(values) / len(values) if values else math.nan
