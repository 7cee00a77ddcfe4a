"""Judging answers to open questions in pairs, as MT-Bench, AlpacaEval and AlignBench do.

Each pair is shown twice, in both orders, since judges prefer a place: only a preference for the same answer in both
counts as one (Zheng et al., arXiv 2306.05685). n questions.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
from scipy import optimize, special, stats

from dsv2.statistics.paired import ALPHA, Interval, Values, t_interval

Word = Literal["first", "second", "tie"]
RIDGE = 0.01  # of the weights of `length_controlled`
UNKNOWN = float("nan")


class Question(NamedTuple):
    """A prompt, and what is known of the right reply to it."""

    prompt: str
    reference: str | None = None


class Failed(NamedTuple):
    """A judgement that was not given, and why; never the fault of an answer."""

    reason: str


class PairJudge(Protocol):
    """Compares two answers to a question."""

    def compare(self, question: Question, first: str, second: str) -> Word | Failed:
        """Say which answer is better, as they are shown."""


class Judged(NamedTuple):
    """Both judgements of a pair of answers, ours and the other one."""

    ours_first: Word | Failed
    ours_second: Word | Failed

    @property
    def score(self) -> float | None:
        """1 if ours is better in both orders, 0 if the other one is, else a half; None if a judgement is missing."""
        if isinstance(self.ours_first, Failed) or isinstance(self.ours_second, Failed):
            return None
        words = self.ours_first, self.ours_second
        return 1.0 if words == ("first", "second") else 0.0 if words == ("second", "first") else 0.5


def judged(judge: PairJudge, questions: Sequence[Question], ours: Sequence[str], others: Sequence[str]) -> list[Judged]:
    """Have the answers of two models to the same questions compared, each pair in both orders."""
    return [
        Judged(judge.compare(question, own, other), judge.compare(question, other, own))
        for question, own, other in zip(questions, ours, others, strict=True)
    ]


class WinRate(NamedTuple):
    """How often one model's answers are preferred; a tie is half a win."""

    rate: float  # NaN if nothing was judged
    interval: Interval  # 95%, t over questions; NaN without an estimate of the noise
    n: int  # questions judged
    ties: int
    swayed: int  # of these, where the judge preferred a place to an answer
    errors: int  # questions left out, since a judgement is missing


def win_rate(pairs: Sequence[Judged]) -> WinRate:
    """Summarise judgements; a pair of which one is missing is left out and counted."""
    known = [pair for pair in pairs if pair.score is not None]
    scores = np.array([pair.score for pair in known], dtype=float)
    swayed = sum(pair.ours_first == pair.ours_second != "tie" for pair in known)
    rate = float(scores.mean()) if len(scores) else UNKNOWN
    return WinRate(rate, _interval(scores), len(known), int((scores == 0.5).sum()), swayed, len(pairs) - len(known))


def _interval(scores: Values) -> Interval:
    if len(scores) < 2 or np.ptp(scores) == 0:
        return Interval(UNKNOWN, UNKNOWN)
    low, high = t_interval(scores)
    return Interval(max(low, 0.0), min(high, 1.0))


class MeanGrade(NamedTuple):
    """The mean of grades."""

    mean: float  # NaN if there are none
    n: int
    errors: int  # grades that are missing


def mean_grade(grades: Sequence[float | Failed]) -> MeanGrade:
    """Average the grades of single answers; missing ones are left out and counted."""
    known = [grade for grade in grades if not isinstance(grade, Failed)]
    mean = sum(known) / len(known) if known else UNKNOWN
    return MeanGrade(mean, len(known), len(grades) - len(known))


class JudgesAgree(NamedTuple):
    """How often two judges say the same of a pair."""

    share: float  # NaN if there is no pair that both judged
    interval: Interval  # 95%, of Wilson
    n: int  # pairs that both judged
    chance: float  # share expected of independent judges that say each word as often as these


def agreement_of(one: Sequence[Judged], other: Sequence[Judged]) -> JudgesAgree:
    """Compare the judgements of two judges of the same pairs; a tie is a judgement of its own."""
    scores = [(a.score, b.score) for a, b in zip(one, other, strict=True)]
    both = [(a, b) for a, b in scores if a is not None and b is not None]
    n = len(both)
    if not n:
        return JudgesAgree(UNKNOWN, Interval(UNKNOWN, UNKNOWN), 0, UNKNOWN)
    share = sum(a == b for a, b in both) / n
    said = [(sum(a == word for a, _ in both), sum(b == word for _, b in both)) for word in (0.0, 0.5, 1.0)]
    return JudgesAgree(share, wilson(share, n), n, sum(a * b for a, b in said) / n**2)


def wilson(share: float, n: int) -> Interval:
    """Return the 95% interval of Wilson for a share of n independent cases."""
    z = float(stats.norm.ppf(1 - ALPHA / 2))
    centre = share + z**2 / (2 * n)
    half = z * float(np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2))
    return Interval((centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n))


def length_controlled(pairs: Sequence[Judged], ours: Sequence[str], others: Sequence[str]) -> float:
    """Return the win rate that is expected of answers as long as the others'; NaN if nothing was judged.

    It is that of AlpacaEval 2 (Dubois et al., arXiv 2404.04475) for one model: a logistic regression of the scores on
    a constant and on tanh of the difference in length over its standard deviation, evaluated without the latter. The
    difficulty of each question, which that publication estimates from many models, is left out. A small ridge keeps the
    fit finite where lengths separate all wins from all losses.
    """
    rows = [(pair.score, len(own) - len(other)) for pair, own, other in zip(pairs, ours, others, strict=True)]
    known = np.array([row for row in rows if row[0] is not None], dtype=float).reshape(-1, 2)
    if not len(known):
        return UNKNOWN
    scores, lengths = known[:, 0], known[:, 1]
    spread = float(lengths.std())
    scaled = np.tanh(lengths / spread) if spread > 0 else np.zeros_like(lengths)
    design = np.stack([np.ones_like(scaled), scaled], axis=1)

    def loss(weights: Values) -> tuple[float, Values]:
        logits = design @ weights
        nats = np.logaddexp(0, logits) - scores * logits
        gradient = design.T @ (special.expit(logits) - scores) + RIDGE * weights
        return float(nats.sum() + RIDGE * weights @ weights / 2), gradient

    return float(special.expit(optimize.minimize(loss, np.zeros(2), jac=True, method="BFGS").x[0]))
