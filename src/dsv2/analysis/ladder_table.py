"""What a ladder of scales says, in sentences and in the rows of a report's tables."""

import math
from collections.abc import Sequence

from dsv2.analysis.ladder import POWER_LAW, Ladder, Prediction
from dsv2.analysis.statistics import Interval
from dsv2.analysis.trends import Trend

LADDER_RULE = (
    "Curves are least squares of log loss over training compute C (FLOPs per token times tokens), "
    "loss = E + A C^-alpha with E >= 0, or a power law without E where there are two rungs. Intervals are a 95% "
    "bootstrap over seeds, the same seeds for all arms, widened for how few they are; they know the noise of seeds, "
    "not a wrong form. A rung held out of the fit tests what the curves foretell."
)


def ladder_text(found: Sequence[Trend], ladder: Ladder, told: Sequence[Prediction]) -> list[str]:
    """Paragraphs: whether verdicts keep over scale, what form was fitted, and how the predictions did."""
    said = [LADDER_RULE]
    if found:
        said.append(f"Over {', '.join(found[0].scales)}: " + "; ".join(f"{t.arm} {t.text}" for t in found) + ".")
    form = next(iter(ladder.fits.values())).form
    noted = "; ".join(f"{arm}: {fit.note}" for arm, fit in ladder.fits.items() if fit.note)
    few = ", for two rungs cannot hold three numbers" if form == POWER_LAW else ""
    notes = f" Noted: {noted}." if noted and form != POWER_LAW else ""
    said.append(f"Fitted over {', '.join(ladder.scales)}: loss = {form}{few}.{notes}")
    tested = [one for one in told if one.inside is not None]
    if tested:
        misses = ", ".join(_of(one) for one in tested if not one.inside)
        inside = sum(bool(one.inside) for one in tested)
        missed = f"; outside: {misses}" if misses else ""
        said.append(
            f"Held out, {tested[0].scale}: {inside} of {len(tested)} observations inside their interval{missed}."
        )
    return said


def fit_rows(ladder: Ladder) -> tuple[list[str], list[list[str]]]:
    """Header and rows: each arm's curve."""
    rows = [
        [
            arm,
            fit.form,
            "none" if fit.form == POWER_LAW else _shown(fit.e, fit.e_interval),
            _shown(fit.a, fit.a_interval),
            _shown(fit.alpha, fit.alpha_interval),
            fit.note,
        ]
        for arm, fit in ladder.fits.items()
    ]
    return ["arm", "loss =", "E [95%]", "A [95%]", "alpha [95%]", "note"], rows


def prediction_rows(told: Sequence[Prediction]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: what each rung should be, and was."""
    rows = [
        [
            _of(one),
            one.scale,
            f"{one.flops:.2g}",
            str(one.seeds),
            _shown(one.predicted, Interval(one.low, one.high)),
            "not run" if math.isnan(one.observed) else f"{one.observed:.4g}",
            {True: "inside", False: "outside", None: ""}[one.inside],
        ]
        for one in told
    ]
    return ["of", "rung", "FLOPs", "seeds", "predicted [95%]", "observed", "the observation is"], rows


def _of(one: Prediction) -> str:
    return f"{one.arm} - {one.minus}" if one.minus else one.arm


def _shown(value: float, interval: Interval) -> str:
    return f"{value:.4g}" + ("" if math.isnan(interval.low) else f" [{interval.low:.4g}, {interval.high:.4g}]")
