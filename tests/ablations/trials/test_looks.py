"""Looks at a study are recorded once each, spend what they may, and are not trusted where their record is damaged."""

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ablations import study
from ablations.report import main
from ablations.studies import StudyHandle
from ablations.trials.looks import LOOKS, first_look, look_at, record_look
from dsv2.storage.sealed import SEAL, write_sealed

VERDICT = re.compile(r"\| (better|worse|equivalent|undecided) \||[▲▼≈?] [-+]")  # in a table, or in the matrix


@pytest.fixture
def stored(mine: dict[str, Any], fill: Callable[..., StudyHandle]) -> Callable[..., StudyHandle]:
    """Returns the study `mine` with a store of made-up results for some seeds."""

    def stored(*seeds: int, **changes: Any) -> StudyHandle:
        planned = study(mine | changes, "smoke", seeds)
        for trial in planned.trials:
            if trial.folder.exists():
                for path in trial.folder.iterdir():
                    path.unlink()
                trial.folder.rmdir()
        return fill(mine | changes, seeds=seeds)

    return stored


def test_the_same_seeds_are_the_same_look(stored) -> None:
    three = stored(0, 1, 2)
    assert look_at(three) == look_at(three)
    for _ in range(3):
        record_look(three, {"expert, val/loss": "better"})
    assert len(json.loads((three.folder / LOOKS).read_text())["looks"]) == 1
    look = look_at(stored(2, 1, 0))
    assert (look.number, look.error, look.refused) == (1, pytest.approx(0.04), "")
    assert [(past.seeds, past.words) for past in look.past] == [((0, 1, 2), {"expert, val/loss": "better"})]


def test_more_seeds_are_a_further_look_which_spends_less(stored) -> None:
    for count, error in ((3, 0.04), (6, 0.005), (9, 0.0025)):
        planned = stored(*range(count))
        assert look_at(planned).error == pytest.approx(error)
        record_look(planned, {})
    look = look_at(stored(*range(6)))  # once more
    assert (look.number, look.error, len(look.past)) == (2, pytest.approx(0.005), 3)


def test_an_early_look_leaves_the_planned_one_nearly_all(stored) -> None:
    early = stored(0, 1)
    assert look_at(early).error < 0.01
    record_look(early, {})
    look = look_at(stored(0, 1, 2))
    assert look.number == 2
    assert 0.037 < look.error < 0.04


def test_planned_looks_set_when_a_study_is_decided(stored) -> None:
    planned = stored(0, 1, 2, looks=[3, 8])
    look = look_at(planned)
    assert look.decided_at == 8
    assert look.error < 0.005
    record_look(planned, {})
    assert look_at(stored(*range(8), looks=[3, 8])).error == pytest.approx(0.04, abs=0.001)
    later = look_at(stored(*range(8), looks=[3, 20]))  # a plan that is changed after a look counts for nothing
    assert later.decided_at == 8


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"margin": {"val/loss": 0.5}}, "the margin of expert against none in val/loss was None and is 0.5"),
        (
            {"contrasts": [{"arm": "expert", "metric": "routing/max_violation", "margin": 0.1}]},
            "expert against none in routing/max_violation was added, expert against none in val/loss was removed",
        ),
    ],
)
def test_contrasts_that_changed_after_a_look_leave_no_verdict(stored, capsys, changes, said) -> None:
    record_look(stored(0, 1, 2), {})
    changed = stored(0, 1, 2, **changes)
    assert look_at(changed).refused == f"the contrasts changed after the first look: {said}"
    assert main(["sweep=mine"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"No verdict, all of it is exploratory: the contrasts changed after the first look: {said}." in printed
    report = (changed.folder / "report" / "report.md").read_text()
    assert not VERDICT.search(report)
    assert "## Exploratory: other differences" in report
    assert changed.verdict().startswith("No verdict, all of it is exploratory")
    assert "better" in stored(0, 1, 2).verdict()  # as it was declared before the look


def test_an_arm_that_changed_after_a_look_is_another_contrast(stored, mine) -> None:
    record_look(stored(0, 1, 2), {})
    mine["arms"]["expert"]["overrides"] = ["loss.expert=0.02"]
    look = look_at(stored(0, 1, 2))
    assert look.refused.endswith("the settings of expert against none in val/loss were changed")


def test_other_settings_are_counted_beside(mine, stored) -> None:
    record_look(stored(0, 1, 2), {})
    other = look_at(study(mine, seeds=[0, 1, 2], overrides=["optim.lr=1e-4"]))
    assert (other.number, other.elsewhere, other.error, other.refused) == (1, 1, pytest.approx(0.04), "")


@pytest.mark.parametrize("damage", ["{", "[]", '{"looks": []}', "flip", "unsealed", "other"])
def test_a_damaged_record_gives_no_verdict_and_says_what_to_do(stored, capsys, damage) -> None:
    planned = stored(0, 1, 2)
    record_look(planned, {})
    path = planned.folder / LOOKS
    text = path.read_text()
    if damage == "flip":
        text = text.replace('"seeds": [\n        0', '"seeds": [\n        7')
    elif damage == "unsealed":
        text = json.dumps({key: value for key, value in json.loads(text).items() if key != SEAL})
    else:
        text = damage
    path.write_text(text)
    if damage == "other":
        write_sealed(path, {"looks": [{"seeds": [0]}]})
    assert main(["sweep=mine"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"No verdict, all of it is exploratory: {path}: damaged" in printed
    assert "restore it from a copy, or delete it and say how often the study was looked at before" in printed
    assert not VERDICT.search((planned.folder / "report" / "report.md").read_text())
    assert path.read_text() == (text if damage != "other" else path.read_text())


def test_every_flipped_bit_of_the_record_is_noticed(stored) -> None:
    planned = stored(0, 1, 2)
    record_look(planned, {})
    path, rng = planned.folder / LOOKS, np.random.default_rng(0)
    whole = path.read_bytes()
    for at in rng.integers(0, len(whole), 60):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << int(rng.integers(8))]) + whole[at + 1 :])
        look = look_at(planned)
        assert look.refused or json.loads(path.read_text()) == json.loads(whole)


def test_the_first_look_of_a_study_without_a_store() -> None:
    look = first_look([0, 1, 2, 3], 4, 2)
    assert (look.number, look.error, look.next_error) == (1, pytest.approx(0.02), pytest.approx(0.0025))
    early = first_look([0, 1], 4, 2)
    assert early.error < 0.005
    assert early.next_error == pytest.approx(0.02, abs=1e-3)
