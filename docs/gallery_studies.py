"""Figures of the gallery about verdicts: baselines, factors, ladders, calibration, and those copied of reports."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from gallery_runs import Drawn, ran, some

from ablations.reporting.findings import Findings
from ablations.reporting.ladder import LOSS, runs_of
from ablations.reporting.words import text_of
from ablations.trials.results import Results
from ablations.trials.trials import Study
from dsv2 import plots
from dsv2.metrics import quantity
from dsv2.plots.balance import CONTROLLED
from dsv2.statistics.calibration import NOISE, Rate
from dsv2.statistics.paired import ALPHA, POWER, detectable_in_sd
from dsv2.statistics.spending import error_of_interval
from dsv2.statistics.trends import climb, trends
from dsv2.statistics.verdicts import difference_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
CALIBRATION = ROOT / "benchmarks" / "results" / "verdicts.json"

LADDER = "python -m ablations.run sweep=balance_losses 'scale=[smoke,tiny]'"
GRID = "python -m ablations.run sweep=balance_grid scale=smoke"
BASELINES = "python -m ablations.run sweep=moe_baselines scale=tiny"
BITS = "python -m ablations.run sweep=kv_bits scale=smoke"
EXTENSION = "python -m ablations.run sweep=context_extension scale=smoke"
NEEDLE = "python -m ablations.run sweep=needle scale=smoke"
AA = "python -m ablations.run sweep=aa scale=tiny"
SIMULATED = "python -m benchmarks.verdicts"


# ---- studies and ladders ---------------------------------------------------------------------------------------------


def loss_over_active() -> Drawn:
    study, results = ran("moe_baselines", "tiny", BASELINES)
    accounting = study.accounting()
    means, active = results.groupby("arm")[LOSS].mean(), accounting.set_index("arm")["active_params"]
    best, worst = str(means.idxmin()), str(means.idxmax())
    title = (
        f"Lowest: {best}, {means[best]:.3f} nats with {active[best] / 1e6:.2f}M active parameters; "
        f"highest: {worst}, {means[worst]:.3f} with {active[worst] / 1e6:.2f}M"
    )
    return Drawn(
        plots.loss_over_active(results, accounting, arms=list(study.arms), title=title),
        "As the report's Figure 1: mean and range over seeds.",
    )


def grid() -> tuple[Study, Results]:
    return ran("balance_grid", "smoke", GRID)


def factorial_forest() -> Drawn:
    study, results = grid()
    terms = Findings(study=text_of(study), results=results).terms
    own = {metric: loss.partition("-")[0].removesuffix(" loss") for metric, loss in CONTROLLED.items()}
    mains = [t for t in terms if t.order == 1 and t.term.startswith(own.get(t.metric, "none"))]
    effects = ", ".join(f"{t.term.partition('=')[0]} {t.effect:+.2f}" for t in some(mains, "main effects"))
    title = f"Main effect of each loss on its own target: {effects}"
    return Drawn(
        plots.factorial_forest(terms, directions=study.file.judged, title=title),
        "Main effects and, below the line, interactions, with 95% intervals of one term each; exploratory.",
    )


def interaction() -> Drawn:
    study, results = grid()
    metric, findings = "routing/device_max_violation", Findings(study=text_of(study), results=results)
    (term,) = (
        t for t in findings.terms if (t.metric, t.order) == (metric, 2) and "expert" in t.term and "device" in t.term
    )
    title = (
        "Expert-level and device-level loss together, beyond the sum of what they do apart: "
        f"{difference_text(term.effect, term.low, term.high)}, exploratory"
    )
    return Drawn(
        plots.interaction(results, metric, findings.study.design(), "expert", "device", seeds=study.seeds, title=title),
        "Parallel lines would be no interaction. Thin: single seeds, averaged over the communication loss.",
    )


def rungs() -> pd.DataFrame:
    """Return a row per trial of the arms shown, at both scales."""
    studies = [ran("balance_losses", scale, LADDER)[0] for scale in ("smoke", "tiny")]
    runs = runs_of(studies)
    return runs[runs["arm"].isin(["none", "expert", "paper"])]


def loss_over_compute(runs_at: Callable[[], pd.DataFrame] = rungs) -> Drawn:
    runs = runs_at()
    low, high = climb(runs, arms=list(dict.fromkeys(runs["arm"])), baseline="none", loss=LOSS)
    means = runs.groupby(["scale", "arm"])[LOSS].mean()
    ends = [f"{means[scale].min():.3f} to {means[scale].max():.3f} nats at {scale}" for scale in (low, high)]
    return Drawn(
        plots.loss_over_compute(runs, None, loss=LOSS, title=f"Mean loss by arm: {', '.join(ends)}"),
        "A point per run. From three rungs on, each arm gets a curve with its band, and the next rung a prediction.",
    )


def difference_over_compute(runs_at: Callable[[], pd.DataFrame] = rungs) -> Drawn:
    runs = runs_at()
    arms = list(dict.fromkeys(runs["arm"]))
    scales = climb(runs, arms=arms, baseline="none", loss=LOSS)
    changes = [
        f"{trend.arm} " + " to ".join(f"{effect.mean:+.3f}" for effect in trend.effects)
        for trend in trends(runs, arms=arms, baseline="none", loss=LOSS)
    ]
    title = f"Against none, {' to '.join(scales)}: {', '.join(changes)}"
    return Drawn(
        plots.difference_over_compute(runs, None, "none", loss=LOSS, title=title),
        "Paired by seed, with 95% t intervals at each rung. From three rungs on, curves are fitted and subtracted.",
    )


# ---- statistics ------------------------------------------------------------------------------------------------------


def simulated(what: str) -> list[Rate]:
    rates = [Rate(**rate) for rate in json.loads(CALIBRATION.read_text())["rates"]]
    return some([rate for rate in rates if rate.what == what], f"rates of {what!r} in {CALIBRATION}")


def power_by_effect() -> Drawn:
    contrasts = 3
    of = simulated("effect found, 1 x that of 80% power")
    rates = [r for r in of if (r.noise, r.contrasts) == ("normal", contrasts) and int(r.seeds) > 2]
    errors = [error_of_interval([frozenset(range(int(rate.seeds)))], int(rate.seeds), contrasts) for rate in rates]
    powers = [(detectable_in_sd(int(r.seeds), error), r) for r, error in zip(rates, errors, strict=True)]
    low, high = min(rate.rate for rate in rates), max(rate.rate for rate in rates)
    title = (
        f"Where {POWER:.0%} is stated, {low:.1%} to {high:.1%} of studies of {contrasts} contrasts with normal noise "
        "find the effect"
    )
    return Drawn(
        plots.power_by_effect(powers, title=title),
        "Lines: power as stated for one contrast; points: simulated, at the effect of 80% power, from 3 seeds on.",
    )


def false_positive_rates() -> Drawn:
    rates = simulated("false verdict, equal arms")
    kept = [rate.rate for rate in rates if rate.low <= ALPHA]
    broken = [rate for rate in rates if rate.low > ALPHA]
    title = f"Of simulated studies of equal arms, {min(kept):.1%} to {max(kept):.1%} say anything false"
    if broken:
        noise = ", ".join(dict.fromkeys(rate.noise for rate in broken))
        title += f", but up to {max(rate.rate for rate in broken):.0%} of those with noise of the kind '{noise}'"
    kinds = [[rate for rate in rates if rate.noise == noise] for noise in dict.fromkeys(rate.noise for rate in rates)]
    shown = [extreme(of_kind, key=lambda rate: rate.rate) for of_kind in kinds for extreme in (min, max)]
    seeds, contrasts = {int(rate.seeds) for rate in rates}, {rate.contrasts for rate in rates}
    return Drawn(
        plots.false_positive_rates(shown, title=title),
        f"By the shape of the noise, where it makes fewest and most verdicts false, of studies with {min(seeds)} to "
        f"{max(seeds)} seeds and {min(contrasts)} to {max(contrasts)} contrasts; rare: {NOISE['rare']}. Filled: the "
        "interval lies above the 5% that are promised.",
    )


# ---- figures of reports ----------------------------------------------------------------------------------------------


def copied(study: str, figure: str, say: Callable[[str, pd.DataFrame], str], scale: str = "tiny") -> Drawn:
    """Copy a figure of the report in results/ with its caption; `say` finds what to say in report.md and table.csv."""
    folder = RESULTS / study / scale
    text, table = (folder / "report.md").read_text(), pd.read_csv(folder / "table.csv", index_col="arm")
    captions = {name: caption for caption, name in re.findall(r"!\[(.*?)\]\(figures/(.*?)\.png\)", text)}
    return Drawn(folder / "figures" / f"{figure}.png", captions[figure], say(text, table))


def ends(metric: str, arms: Sequence[str], form: str = ".3f") -> Callable[[str, pd.DataFrame], str]:
    """Return a function that says the mean of a metric at the end, arm by arm."""
    label = quantity(metric).label

    def say(_: str, table: pd.DataFrame) -> str:
        means = ", ".join(f"{arm} {table[f'{metric} mean'][arm]:{form}}" for arm in arms)
        return f"{label[0].upper()}{label[1:]}: {means}"

    return say


def against_mha(_: str, table: pd.DataFrame) -> str:
    loss = table[f"{LOSS} mean"]
    away = [f"{arm} {loss[arm] - loss['small_mha']:+.3f}" for arm in loss.index if arm.startswith("small_m")][1:]
    return f"Against small_mha at the end ({quantity(LOSS).unit}): {', '.join(some(away, 'arms'))}"


def told_apart(text: str, _: pd.DataFrame) -> str:
    section = text.partition("## False verdicts")[2].partition("\n## ")[0]
    rates = [float(share) for share in re.findall(r"^\|[^|]*\|(?: \d+ \|)? ([\d.]+)% \|", section, flags=re.M)]
    rates = some(rates, "rates of false verdicts in the report of aa")
    return f"Studies of identical trials tell arms apart in {min(rates)}% to {max(rates)}%, by metric"


def per_budget(text: str, _: pd.DataFrame) -> str:
    rows = re.findall(
        r"^\| (\w+) \| (.*?) ± .*? \| (.*?) ± .*? \| (.*?) ± ", text.partition("## Per token")[2], flags=re.M
    )
    losses = {arm: at_equal for arm, *at_equal in rows}
    pairs = zip(("tokens", "FLOPs", "seconds"), losses["small_mha"], losses["small_mla"], strict=True)
    both = "; ".join(f"{budget} {mha} and {mla}" for budget, mha, mla in pairs)
    return f"MHA and MLA, small, at equal {both} (seconds of a machine that ran several trials at once)"
