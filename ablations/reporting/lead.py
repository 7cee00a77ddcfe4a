"""The first screen of a study's report, from its findings: what came out, how sure, and what it cost."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ablations.reporting.amounts import duration, large
from ablations.reporting.findings import Findings
from ablations.reporting.summary import level, summary
from ablations.reporting.words import number
from dsv2.metrics import quantity
from dsv2.report.lead import Cell, Column, Lead, Matrix, Row, Tone
from dsv2.statistics.verdicts import Effect, decide, difference_text

if TYPE_CHECKING:
    import pandas as pd

MET = {"better": ("better",), "worse": ("worse",), "equivalent": ("equivalent", "identical")}  # predicted -> verdicts


def lead_of(findings: Findings) -> Lead:
    """Build the first screen; without verdicts it says why there are none."""
    held, told = outcome(findings)
    study = findings.study
    return Lead(study.question, study.prediction, held, told, _matrix(findings), _cost(findings))


def outcome(findings: Findings) -> tuple[str, str]:
    """Say whether the study's prediction held, in a word or two and in a sentence."""
    if not findings.verdicts:
        return "", summary(findings)[0]
    predicted = {contrast[:3]: contrast.predicted for contrast in findings.study.contrasts if contrast.predicted}
    judged = [(effect, predicted[effect[:3]]) for effect in findings.verdicts if effect[:3] in predicted]
    every = f"Every interval is at {level(findings)}, so that all of them hold together."
    if not judged:
        counts = ", ".join(f"{_phrase(words)} {word}" for word, words in _by_word(findings.verdicts).items())
        return "", f"Of {_contrasts(len(findings.verdicts))}: {counts}. {every}"
    met = [effect for effect, word in judged if effect.word in MET[word]]
    unsettled = [effect for effect, word in judged if effect.word in ("undecided", "none")]
    against = [(effect, word) for effect, word in judged if effect not in met and effect not in unsettled]
    held = "Did not hold." if against else "Not decided." if not met else "Held in part." if unsettled else "Held."
    parts = [f"{len(met)} of {_contrasts(len(judged))} came out as predicted"]
    parts += [f"{_name(effect)} was predicted {word} and is {effect.word}" for effect, word in against]
    parts += [f"undecided: {_phrase(unsettled)}"] if unsettled else []
    return held, f"{'; '.join(parts)}. {every}"


def _by_word(effects: Sequence[Effect]) -> dict[str, list[Effect]]:
    words = dict.fromkeys(effect.word for effect in effects)
    return {word: [effect for effect in effects if effect.word == word] for word in words}


def _contrasts(count: int) -> str:
    return f"{count} contrast{'s' if count > 1 else ''}"


def _phrase(effects: Sequence[Effect]) -> str:
    names = [_name(effect) for effect in effects]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _name(effect: Effect) -> str:
    return f"{quantity(effect.metric).name} of {effect.arm}"


# ---- the matrix ------------------------------------------------------------------------------------------------------


def _matrix(findings: Findings) -> Matrix | None:
    """Lay out arms by metrics; None if no trial has finished."""
    study, judged = findings.study, [m for m in findings.study.metrics if f"{m} mean" in findings.by_arm]
    if not judged or findings.finished.empty:
        return None
    baselines = study.families()
    effects = {effect[:3]: effect for effect in (*findings.effects, *findings.verdicts)}
    decided = {effect[:3] for effect in findings.verdicts}
    pairs = dict.fromkeys((arm, study.baseline_of(arm)) for arm in study.arms)  # and contrasts against other arms
    pairs |= dict.fromkeys(effect[:2] for effect in findings.verdicts)
    columns = [
        Column(quantity(m).brief, ", ".join(filter(None, [quantity(m).unit, f"{study.metrics[m]} is better"])))
        for m in judged
    ]
    rows = []
    for arm, own in pairs:
        plain = len(baselines) == 1 and own in baselines
        name = f"{arm} (baseline)" if own == arm else arm if plain else f"{arm} - {own}"
        cells = [
            _cell(findings, arm, metric, effects.get((arm, own, metric)), (arm, own, metric) in decided)
            if own == study.baseline_of(arm) or (arm, own, metric) in effects
            else Cell()
            for metric in judged
        ]
        rows.append(Row(name, study.arms[arm], cells))
    reference = next(iter(baselines)) if len(baselines) == 1 else "its baseline"
    note = f"Baselines: mean ± standard deviation over {len(study.seeds)} seeds."
    if effects:
        note = (
            f"Rows: arm minus {reference} with its interval, of which the baseline has mean ± standard deviation over "
            f"{len(study.seeds)} seeds. Framed: declared before the study was run, at {level(findings)} each; "
            "▲ better, ▼ worse, ≈ equivalent within the margin, ? undecided. Pale, △ and ▽: exploratory, a plain 95% "
            "interval of one comparison that excludes 0."
        )
    return Matrix(columns, rows, note)


def _cell(findings: Findings, arm: str, metric: str, effect: Effect | None, confirmatory: bool) -> Cell:
    values = findings.finished[findings.finished["arm"] == arm].set_index("seed")[metric].dropna()
    seeds = "\n".join(f"seed {seed}: {number(float(value))}" for seed, value in values.items())
    if effect is None or not math.isfinite(effect.mean):
        if values.empty:
            return Cell()
        spread = f"± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
        return Cell(f"{values.mean():.3f}", spread, hint=f"{arm}, {quantity(metric).label}\n{seeds}")
    same = effect.low == effect.high == 0
    text, interval = ("0", "identical") if same else _parts(effect)
    said = f"{effect.word}, margin {effect.margin:g}" if confirmatory else "exploratory"
    hint = f"{arm} - {effect.baseline}, {quantity(metric).label}\n{text} {interval}, {effect.n} seeds, {said}\n{seeds}"
    return Cell(text, interval, _tone(effect, findings.study.metrics[metric], confirmatory), confirmatory, hint)


def _parts(effect: Effect) -> tuple[str, str]:
    text, _, interval = difference_text(effect.mean, effect.low, effect.high).partition(" ")
    return text, interval


def _tone(effect: Effect, direction: str, confirmatory: bool) -> Tone:
    if confirmatory:
        tones: dict[str, Tone] = {"better": "better", "worse": "worse", "equivalent": "equivalent"}
        return "equivalent" if effect.word == "identical" else tones.get(effect.word, "undecided")
    if math.isnan(effect.low):
        return "open"
    word = str(decide(effect.low, effect.high, math.nan, direction))
    return "maybe-better" if word == "better" else "maybe-worse" if word == "worse" else "open"


# ---- the cost --------------------------------------------------------------------------------------------------------


def _cost(findings: Findings) -> list[tuple[str, str]]:
    """Say what the finished trials took."""
    ran, budgets = findings.finished, findings.accounting
    total = len(findings.study.arms) * len(findings.study.seeds)
    cost = [("trials finished", f"{len(ran)} of {total}"), ("seeds", str(len(findings.study.seeds)))]
    if len(ran):
        cost += [("training time, all trials", duration(float(ran["seconds"].sum())))]
        cost += [("tokens trained on", large(float(ran["tokens"].sum())))]
    if len(budgets) and len(ran):
        each = budgets.set_index("arm")
        flops = sum(
            float(tokens) * each["flops_per_token"][arm] for arm, tokens in zip(ran["arm"], ran["tokens"], strict=True)
        )
        cost += [("training FLOPs", f"{flops:.2e}")]
        cost += [(quantity(name).name, _span(each[name])) for name in ("total_params", "active_params")]
    cost += [("device", str(device))] if isinstance(device := findings.provenance.get("device"), str) else []
    cost += [("ended", str(ended)[:10])] if (ended := findings.provenance.get("ended")) else []
    return cost


def _span(values: "pd.Series[float]") -> str:
    low, high = large(float(values.min())), large(float(values.max()))
    return low if low == high else f"{low} to {high}"
