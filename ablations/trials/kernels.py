"""One choice of kernels for all trials of a study: their rounding is enough to move the loss of a finished run."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ablations.trials.trials import Study, Trial
from dsv2.config import ConfigError
from dsv2.kernels.choice import KERNELS
from dsv2.training.run import with_kernels

MIXED = "mixed_kernels=true"  # the word that allows verdicts on trials of several kernels
AND = " and "  # between the kernels of an arm's trials with one seed, on the study's own data and on probes


def like_finished(study: Study, todo: list[Trial], results: Iterable[Mapping[str, Any]]) -> list[Trial]:
    """Return the trials of a study that are left, with the kernels of its finished ones where they say `auto`.

    `results` are those of the finished ones. Raises ConfigError if other kernels are asked for, unless the study has
    `mixed_kernels`.
    """
    used = Counter(map(kernels_of, results))
    if study.mixed_kernels or not used:
        return todo
    for trial in todo:
        if (asked := trial.run.trainer.kernels) not in ("auto", *used):
            valid = f"auto, or as in the study's finished trials, {said(used)}; {MIXED} computes the others anyway"
            raise ConfigError("trainer.kernels", asked, valid)
    (kernels, _), *others = used.most_common()
    return [
        replace(trial, run=with_kernels(trial.run, kernels))
        if trial.run.trainer.kernels == "auto" and not others
        else trial
        for trial in todo
    ]


def kernels_of(result: Mapping[str, Any]) -> str:
    """Return the kernels of a result; those from before there was a choice are of plain torch."""
    recorded = result.get("provenance", {}).get("kernels")
    return recorded if recorded in KERNELS else "torch"


def said(used: Counter[str]) -> str:
    """Say how many trials used which kernels."""
    return ", ".join(f"{kernels} ({number})" for kernels, number in sorted(used.items()))
