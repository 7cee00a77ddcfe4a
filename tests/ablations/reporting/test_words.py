"""What a report says of a study, and how it writes numbers."""

import math
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest

from ablations.reporting.words import StudyText, number, spread, text_of
from ablations.trials.trials import Study


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (math.nan, ""),
        ("mha", "mha"),
        (0, "0"),
        (0.0, "0"),
        (651_264, "651,264"),
        (1e6, "1,000,000"),
        (-2.0, "-2"),
        (0.5, "0.500"),
        (0.0012345, "0.001"),
        (0.00012345, "0.000123"),
        (1234.5, "1.23e+03"),
        (-0.25, "-0.250"),
        (np.int64(7), "7"),
        (np.float64(0.25), "0.250"),
        (np.float64("nan"), ""),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


def test_a_mean_and_its_deviation_as_far_as_there_are_any():
    assert spread(5.0, 0.25) == "5.000 ± 0.250"
    assert spread(5.0, math.nan) == "5.000"
    assert spread(math.nan, math.nan) == ""


def test_arms_are_compared_within_their_family(six_arms, study_text):
    study = study_text(six_arms)
    assert study.families() == {"none": list(study.arms)}
    two = study_text(six_arms, baselines={"paper": "device", "device": "device"})
    assert two.families() == {
        "none": ["none", "expert", "communication", "paper_dropping"],
        "device": ["device", "paper"],
    }


def test_the_words_of_a_study_are_those_of_its_file():
    planned = Study("attention_moe", seeds=[0, 1])
    text = text_of(planned)
    assert (text.name, text.scale, text.seeds) == ("attention_moe", "smoke", (0, 1))
    assert (text.question, text.metrics, text.metric) == (planned.file.question, planned.file.judged, "val/loss")
    assert text.families() == {
        "small_mha": ["small_mha", "small_mla", "small_mha_partial_rope", "small_mha_key_norm"],
        "large_mha": ["large_mha", "large_mla"],
    }
    assert text.arms["small_mla"] == "MLA, small model"
    assert text.published is not None
    assert (text.identical, text.levels) == ([], {})
    assert text_of(Study("aa")).identical == ["a", "b", "c", "d"]  # and not the twin
    assert text.contrasts == planned.contrasts
    assert text.contrasts[3] == ("large_mla", "large_mha", "val/loss", 0.02, "better")
    assert text.decided_at == 5  # the seeds that the study plans, whatever was asked
    grid = text_of(Study("balance_grid"))
    assert grid.levels["expert0.003_device0.0_communication0.02"] == {
        "loss.expert": 0.003,
        "loss.device": 0.0,
        "loss.communication": 0.02,
    }
    assert set(grid.levels) == set(grid.arms)
    assert {field.name for field in fields(StudyText)} == set(vars(text))


def test_words_need_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, ablations.reporting.words; print({'torch', 'lightning', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
