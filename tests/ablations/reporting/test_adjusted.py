"""What the solver changed is named, from and to, in the report and in a dry run."""

from collections.abc import Callable

import pytest

from ablations.reporting.adjusted import adjusted, change_text
from ablations.reporting.sections import sections_of
from ablations.reporting.words import StudyText, text_of
from ablations.trials.trials import Study
from dsv2.composition import compose
from dsv2.study.files import names, read
from tests.references.tables import Tables


def test_a_change_is_from_and_to() -> None:
    assert change_text(("dense.width", (176, 92))) == "dense.width from 176 to 92 (-48%)"
    assert change_text(("ffn.num_experts", (1000, 1500))) == "ffn.num_experts from 1,000 to 1,500 (+50%)"


def test_a_report_has_a_table_of_them(six_arms: Tables, study_text: Callable, findings_of: Callable) -> None:
    study: StudyText = study_text(six_arms, adjusted={"none": {}, "paper": {"dense.width": (176, 92)}})
    section = adjusted(study)
    assert section is not None
    assert section.tables[0].rows == [["paper", "model.dense.width", "176", "92", "-48%"]]
    assert section in sections_of(findings_of(six_arms, study), [])


def test_without_changes_there_is_no_section(six_arms: Tables, study_text: Callable) -> None:
    assert adjusted(study_text(six_arms)) is None


ADJUSTED = [name for name in names("sweep") if read("sweep", name).get("adjust")]


@pytest.mark.parametrize("name", ADJUSTED)
def test_the_table_is_what_happened_to_the_configs(name: str) -> None:
    """The old values are those that the overrides of an arm give without the solver, the new ones are trained."""
    study = Study(name, "tiny")
    section = adjusted(text_of(study))
    rows = section.tables[0].rows if section else []
    for arm, key, old, new, _ in rows:
        before, after = compose(study.overrides_of(arm)), compose(study.words(arm))
        for part in key.split("."):
            before, after = before[part], after[part]
        assert (f"{before:,}", f"{after:,}") == (old, new)
    untouched = set(study.arms) - {row[0] for row in rows}
    assert all(study.words(arm) == study.overrides_of(arm) for arm in untouched)
    assert rows or name not in ("kv_rank", "rope_dim", "attention_dense")
