"""The loss of group relative policy optimisation (Eq. 32 to 34), as pure functions, and its variants.

n answers of an optimiser's step, P prompts with G answers each, M tokens of answers.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dsv2.config import ConfigBase

# ---- advantages ------------------------------------------------------------------------------------------------------


class Standardised:
    """(34): A = (r - mean) / std over the group, with the standard deviation of these G rewards themselves."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        def advantages(self, rewards: Tensor) -> Tensor:
            """Return the advantages of rewards (P, G), NaN for an answer without one; float32, and 0 for NaN."""
            centred, std = _centred(rewards)
            return torch.where(std > 0, centred / std, 0.0).float()


class Centred:
    """A = r - mean: a group of nearly equal rewards does not count as much as any other (Liu et al., 2503.20783)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        def advantages(self, rewards: Tensor) -> Tensor:
            """Return the advantages of rewards (P, G), NaN for an answer without one; float32, and 0 for NaN."""
            return _centred(rewards)[0].float()


def _centred(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Return float64 rewards less the mean of their group, 0 for NaN, and the group's deviation (P, 1), population."""
    known = ~rewards.isnan()
    count = known.sum(1, keepdim=True).clamp(min=1)
    filled = rewards.double().nan_to_num()
    centred = torch.where(known, filled - filled.sum(1, keepdim=True) / count, 0.0)
    varied = has_variance(rewards)[:, None]  # so that rounding of a mean makes no deviation
    return centred * varied, (centred.square().sum(1, keepdim=True) / count).sqrt() * varied


def has_variance(rewards: Tensor) -> Tensor:
    """Return (P,) bool, whether the known rewards (P, G) of a group differ; the others teach nothing."""
    low, high = rewards.nan_to_num(math.inf).amin(1), rewards.nan_to_num(-math.inf).amax(1)
    return high > low


# ---- averages over tokens --------------------------------------------------------------------------------------------


class SequenceMean:
    """(32): the mean over answers of the mean over their tokens."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        def weights(self, lengths: Tensor) -> Tensor:
            """Return the weight of each token of answers with these lengths (n,), as (n,) float32."""
            return 1 / (lengths * len(lengths)).float()


class TokenMean:
    """The mean over all tokens of the optimiser's step: a long answer counts for more (Yu et al., 2503.14476)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        def weights(self, lengths: Tensor) -> Tensor:
            """Return the weight of each token of answers with these lengths (n,), as (n,) float32."""
            return torch.full_like(lengths, 1, dtype=torch.float32) / lengths.sum()


class ConstantDivisor:
    """The sum over tokens, divided by answers times a constant (Liu et al., 2503.20783)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        divisor: float  # such as the most tokens that an answer may have

        def __post_init__(self) -> None:
            self.require(0 < self.divisor < math.inf, "divisor", "positive and finite")

        def weights(self, lengths: Tensor) -> Tensor:
            """Return the weight of each token of answers with these lengths (n,), as (n,) float32."""
            return torch.full_like(lengths, 1, dtype=torch.float32) / (len(lengths) * self.divisor)


class EveryGroup:
    """Groups whose rewards are all equal count among the answers; they have an advantage of 0, and the penalty."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        def kept(self, varied: Tensor) -> Tensor:
            """Return (P,) bool, which groups are in the loss, given which of them have variance."""
            return torch.ones_like(varied)


class VariedGroups:
    """Groups whose rewards are all equal are left out, of the denominators too."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        def kept(self, varied: Tensor) -> Tensor:
            """Return (P,) bool, which groups are in the loss, given which of them have variance."""
            return varied


# ---- the penalty for leaving the reference ---------------------------------------------------------------------------


class K3:
    """(33): pi_ref / pi - log(pi_ref / pi) - 1, of every token.

    Its value is an unbiased estimate of KL(pi || pi_ref), its gradient that of KL(pi_ref || pi).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        beta: float = 0.04

        def __post_init__(self) -> None:
            self.require(0 < self.beta < math.inf, "beta", "positive and finite; null for no penalty")

        def of(self, now: Tensor, reference: Tensor, ratio: Tensor) -> Tensor:
            """Return the penalty of each token, before beta, from log-probabilities and the ratio to the old policy."""
            return k3(now, reference)


class WeightedK3:
    """K3 times the ratio pi / pi_old, whose gradient is that of KL(pi || pi_ref) without bias."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ConfigBase):
        beta: float = 0.04

        def __post_init__(self) -> None:
            self.require(0 < self.beta < math.inf, "beta", "positive and finite; null for no penalty")

        def of(self, now: Tensor, reference: Tensor, ratio: Tensor) -> Tensor:
            """Return the penalty of each token, before beta, from log-probabilities and the ratio to the old policy."""
            return ratio * k3(now, reference)


def k3(now: Tensor, reference: Tensor) -> Tensor:
    """Return pi_ref / pi - log(pi_ref / pi) - 1 from log-probabilities; 0 or more."""
    difference = reference - now
    return difference.expm1() - difference


# ---- the loss --------------------------------------------------------------------------------------------------------


class Tokens(NamedTuple):
    """What is known of answers' tokens, (M,) float32 each; the parts of a step have such tokens of their own."""

    old: Tensor  # log-probabilities by the policy that drew them
    reference: Tensor | None  # log-probabilities by the reference; None without a penalty
    advantages: Tensor  # of their answers
    weights: Tensor  # in the step's average; 0 where nothing is learned


class Policy(NamedTuple):
    """The loss of tokens, a scalar to be differentiated, and sums over those with a weight, detached."""

    loss: Tensor
    tokens: Tensor  # 1 each
    penalty: Tensor  # K3 to the reference
    clipped: Tensor  # tokens whose gradient is clipped away
    shift: Tensor  # |log pi - log pi_old|
    nats: Tensor  # -log pi


def policy_loss(now: Tensor, tokens: Tokens, *, clip: float, penalty: K3.Config | WeightedK3.Config | None) -> Policy:
    """Return the negative of the objective (32), summed over tokens with their weights.

    Args:
        now: Log-probabilities of the tokens by the policy that is trained, (M,) float32.
        tokens: What else is known of them.
        clip: epsilon of the clipped ratio.
        penalty: The penalty for leaving the reference; None for none.
    """
    counted = tokens.weights > 0  # others would make the gradient NaN where their ratio overflows
    reference = None if tokens.reference is None else tokens.reference[counted]
    now, old, advantages, weights = (column[counted] for column in (now, tokens.old, tokens.advantages, tokens.weights))
    ratio = (now - old).exp()
    free = ratio * advantages
    bounded = ratio.clamp(1 - clip, 1 + clip) * advantages
    gain, left = torch.minimum(free, bounded), now.new_zeros(())
    if penalty is not None:
        assert reference is not None
        gain = gain - penalty.beta * penalty.of(now, reference, ratio)
        left = k3(now.detach(), reference).sum()
    return Policy(
        loss=-(gain * weights).sum(),
        tokens=counted.sum(),
        penalty=left,
        clipped=(bounded < free).sum(),
        shift=(now.detach() - old).abs().sum(),
        nats=-now.detach().sum(),
    )
