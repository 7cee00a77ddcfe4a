"""The looks at a study: every set of seeds whose verdicts were shown, and what each of them may spend.

`looks.json` in a study's folder is written whenever a report, the closing table or a notebook shows verdicts. The same
seeds again are the same look. Trials with other settings, as under an override, are looks of their own, and counted
separately.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ablations.trials.trials import Study
from dsv2.config import digest, plain
from dsv2.printing import complain
from dsv2.statistics.spending import error_of_interval
from dsv2.storage.locks import hold_when_free
from dsv2.storage.sealed import SEAL, Damaged, read_object, read_sealed, write_sealed

LOOKS, LOCK = "looks.json", "looks.lock"  # in a study's folder
FIELDS = {"settings", "declared", "decided_at", "seeds", "date", "words"}


class Past(NamedTuple):
    """A look at a study with the same settings."""

    seeds: tuple[int, ...]
    date: str
    error: float  # two-sided, of all contrasts together
    words: Mapping[str, str]  # contrast -> the word it was given


class Look(NamedTuple):
    """The look that a report is: what it may spend, and what was seen before."""

    number: int  # 1 for the first
    error: float  # two-sided, of each interval
    next_error: float  # of a further look, at one seed more or at `decided_at`
    decided_at: int  # number of seeds at which the study was to be decided, as of the first look
    past: tuple[Past, ...] = ()  # all looks in order, this one included
    elsewhere: int = 0  # looks at this study with other settings
    refused: str = ""  # why there are no verdicts; "" if there are


def first_look(seeds: Sequence[int], decided_at: int, family: int) -> Look:
    """Return the look at a study that was never looked at before."""
    return Look(1, *_errors([frozenset(seeds)], 0, decided_at, family), decided_at)


def look_at(study: Study) -> Look:
    """Return what a look at the study's seeds is, without recording it."""
    try:
        records = _read(study)
    except Damaged as error:
        refused = f"{error}; restore it from a copy, or delete it and say how often the study was looked at before"
        return first_look(study.seeds, study.decided_at, 1)._replace(number=0, refused=refused)
    new = _record(study, {})
    same = [record for record in records if record["settings"] == new["settings"]]
    elsewhere = len(records) - len(same)
    if not any(_same_look(record, new) for record in same):
        same.append(new)
    index = next(i for i, record in enumerate(same) if _same_look(record, new))
    decided_at, family = same[0]["decided_at"], max(len(same[0]["declared"]), 1)
    sets = [frozenset(record["seeds"]) for record in same]
    together = [_errors(sets, k, decided_at, family)[0] * family for k in range(len(sets))]
    past = tuple(
        Past(tuple(record["seeds"]), record["date"], error, record["words"])
        for record, error in zip(same, together, strict=True)
    )
    refused = _changes(same[0]["declared"], new["declared"])
    return Look(index + 1, *_errors(sets, index, decided_at, family), decided_at, past, elsewhere, refused)


def _errors(looks: Sequence[frozenset[int]], index: int, decided_at: int, family: int) -> tuple[float, float]:
    """Return the error of each interval at one of the looks, and at a further look with more seeds than all of them."""
    everything = frozenset().union(*looks)
    more = everything | {-1 - i for i in range(max(decided_at - len(everything), 1))}
    further = error_of_interval([*looks, more], decided_at, family)
    return error_of_interval(looks[: index + 1], decided_at, family), further


def record_look(study: Study, words: Mapping[str, str]) -> None:
    """Record that verdicts on these seeds are shown, with their words, unless they have been before.

    Raises Busy if another process has stopped while it did so.
    """
    study.folder.mkdir(parents=True, exist_ok=True)
    with hold_when_free(study.folder / LOCK, "the list of looks", complain):
        records = _read(study)
        new = _record(study, words)
        if not any(_same_look(record, new) for record in records):
            write_sealed(study.folder / LOOKS, {"looks": [*records, new]})


def _same_look(record: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return bool(record["settings"] == other["settings"] and set(record["seeds"]) == set(other["seeds"]))


def _record(study: Study, words: Mapping[str, str]) -> dict[str, Any]:
    return {
        "settings": _settings(study),
        "declared": _declared(study),
        "decided_at": study.decided_at,
        "seeds": list(study.seeds),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "words": dict(words),
    }


def _read(study: Study) -> list[dict[str, Any]]:
    """Read the recorded looks. Raises Damaged unless the file is whole and has its seal."""
    path = study.folder / LOOKS
    if not path.exists():
        return []
    if SEAL not in read_object(path):
        raise Damaged(f"{path}: damaged, it has no checksum")
    records = read_sealed(path).get("looks")
    if not isinstance(records, list) or not all(isinstance(r, dict) and set(r) == FIELDS for r in records):
        raise Damaged(f"{path}: damaged, not a list of looks")
    return records


def _settings(study: Study) -> str:
    return _digest(study, study.file.baseline)


def _declared(study: Study) -> list[list[Any]]:
    """Return the contrasts with what their arms are, in an order of their own."""
    rows = [
        [arm, _digest(study, arm), baseline, _digest(study, baseline), metric, None if math.isnan(margin) else margin]
        for arm, baseline, metric, margin, _ in study.contrasts
    ]
    return sorted(rows, key=str)


def _digest(study: Study, arm: str) -> str:
    """Return a hash of an arm's settings, without its seed."""
    run = replace(study.configs[arm], seed=study.arms[arm].seed_offset)
    return digest(plain(run, identity=True))


def _changes(then: Sequence[Sequence[Any]], now: Sequence[Sequence[Any]]) -> str:
    """Say how the declared contrasts differ from those of the first look; "" if they do not."""
    if list(map(list, then)) == list(map(list, now)):
        return ""
    old, new = _by_contrast(then), _by_contrast(now)
    parts = [f"{name} was added" for name in new if name not in old]
    parts += [f"{name} was removed" for name in old if name not in new]
    for name in old.keys() & new.keys():
        if old[name][5] != new[name][5]:
            parts.append(f"the margin of {name} was {old[name][5]} and is {new[name][5]}")
        elif old[name] != new[name]:
            parts.append(f"the settings of {name} were changed")
    return f"the contrasts changed after the first look: {', '.join(sorted(parts))}"


def _by_contrast(declared: Iterable[Sequence[Any]]) -> dict[str, Sequence[Any]]:
    return {f"{row[0]} against {row[2]} in {row[4]}": row for row in declared}
