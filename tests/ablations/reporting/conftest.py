"""Findings out of made-up tables."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from ablations.reporting.findings import Findings
from ablations.reporting.words import StudyText
from dsv2.statistics.verdicts import Contrast
from tests.references.tables import Tables, fake

METRICS = {"val/loss": "lower", "routing/max_violation": "lower", "routing/entropy": "higher"}
PROVENANCE = {"git": {"commit": "abc123", "dirty": True}, "versions": {"torch": "2.11"}, "command": "python -m x"}


@pytest.fixture(scope="session")
def six_arms() -> Tables:
    return fake(seeds=3, steps=6)


@pytest.fixture(scope="session")
def study_text() -> Callable[..., StudyText]:
    """Returns the words of the study that `tables` are of: all arms in the loss are its contrasts."""

    def study_text(tables: Tables, metrics: Mapping[str, str] = METRICS, seeds: int = 3, **changes: Any) -> StudyText:
        arms = list(tables.accounting["arm"])
        words: dict[str, Any] = {
            "name": "balance",
            "scale": "smoke",
            "question": "What does <each> loss move?",
            "prediction": "Its own | imbalance.",
            "metric": list(metrics)[-1],
            "metrics": metrics,
            "equal": ["total_params", "tokens"],
            "decided_at": seeds,
            "baseline": arms[0],
            "arms": {arm: f"about {arm}" for arm in arms},
            "seeds": range(seeds),
            "published": "No ablation is published.",
            "shows_at": "From 100 steps and 3 seeds.",
        }
        words |= changes
        of = {arm: words.get("baselines", {}).get(arm, words["baseline"]) for arm in words["arms"]}
        judged = "val/loss" if "val/loss" in metrics else next(iter(metrics))
        contrasts = [Contrast(arm, other, judged, 0.02) for arm, other in of.items() if arm != other]
        return StudyText(**{"contrasts": contrasts} | words)

    return study_text


@pytest.fixture(scope="session")
def findings_of(study_text: Callable[..., StudyText]) -> Callable[..., Findings]:
    """Returns what `study`, by default that of `study_text`, found in `tables`."""

    def findings_of(tables: Tables, study: StudyText | None = None, *, routing: bool = True) -> Findings:
        return Findings(
            study=study or study_text(tables),
            results=tables.results,
            metrics=tables.metrics,
            routing=tables.routing if routing else None,
            accounting=tables.accounting,
            provenance=PROVENANCE,
            step_floor={"routing/max_violation": 0.1},
            final_floor={"routing/max_violation": 0.05},
        )

    return findings_of
