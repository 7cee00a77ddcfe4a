"""All benchmarks of a run together: their numbers, their names and chances, and what a config may ask for."""

import random

import numpy as np
import pytest
import torch

import dsv2
from dsv2.config import ConfigError
from dsv2.data.packing import PackedText
from dsv2.data.source import Source
from dsv2.evaluation.benchmarks import TextBenchmarks
from dsv2.evaluation.choice import CHOICES
from dsv2.metrics import METRICS, chance, quantity
from tests.references.stubs import uniform
from tests.references.tolerances import FLOAT32

VOCAB = 300
SIZES = TextBenchmarks.Config(
    cloze_questions=40, cloze_context=12, cloze_continuation=4, copying_strings=6, copying_length=16, exercises=8
)


def run(source: Source, model: torch.nn.Module, batch_tokens: int) -> dict[str, float]:
    assert isinstance(source, PackedText)
    scores, failed, _ = SIZES.build(source).run(model, batch_tokens=batch_tokens)
    assert not failed
    return scores


def test_metrics_do_not_depend_on_the_batch_nor_on_chance(two_domains: PackedText) -> None:
    model = dsv2.load(["model=tiny", "model.dim=16", f"data.vocab_size={VOCAB}"]).model.build().train()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    scores = run(two_domains, model, 512)
    assert model.training
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]  # noqa: NPY002
    assert scores.keys() == {
        "bench/cloze",
        "bench/cloze_margin",
        "bench/cloze_context",
        "bench/cloze_maths",
        "bench/cloze_words",
        "bench/copying",
        "bench/copying_gain",
        "bench/arithmetic",
    }
    assert scores["bench/cloze"] == pytest.approx((scores["bench/cloze_maths"] + scores["bench/cloze_words"]) / 2)
    torch.rand(3)
    assert run(two_domains, model, 512) == scores
    for batch_tokens in (1, 4096):
        other = run(two_domains, model, batch_tokens)
        for name, value in scores.items():
            assert other[name] == pytest.approx(value, rel=FLOAT32, abs=FLOAT32), name


def test_one_domain_without_maths_has_fewer(source: PackedText) -> None:
    assert run(source, uniform(VOCAB), 512).keys() == {
        "bench/cloze",
        "bench/cloze_margin",
        "bench/cloze_context",
        "bench/copying",
        "bench/copying_gain",
    }


def test_every_metric_has_a_name_and_tasks_a_chance() -> None:
    for name in ("cloze", "cloze_margin", "cloze_context", "copying", "copying_gain", "arithmetic"):
        assert f"bench/{name}" in METRICS
    assert quantity("bench/cloze_code").label == "cloze, code (share correct)"
    assert quantity("val/bpb_maths").label == "validation bits per byte, maths"
    assert (
        chance("bench/cloze")
        == chance("bench/cloze_code")
        == chance("bench/cloze_context")
        == chance("bench/arithmetic")
        == 1 / CHOICES
    )
    assert chance("bench/cloze_margin") is None
    assert chance("val/loss") is None


# ---- in a run's config ----


def test_benchmarks_are_part_of_a_run() -> None:
    none, text = dsv2.load([]), dsv2.load(["benchmarks=text"])
    assert none.benchmarks is None
    assert dsv2.load(["benchmarks=none"]) == none
    assert text.benchmarks == TextBenchmarks.Config()  # the YAML says what the defaults are
    assert none.fingerprint() != text.fingerprint()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=synthetic"], "benchmarks='text' is not valid: none for data without text"),
        (["trainer.sequence_length=40"], "benchmarks.cloze_context=32 is not valid: 48 tokens per question"),
        (["benchmarks.copying_length=1"], "benchmarks.copying_length=1 is not valid: 2 to 64"),
        (["benchmarks.exercises=0"], "benchmarks.exercises=0 is not valid: positive"),
    ],
)
def test_impossible_benchmarks_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dsv2.load(["benchmarks=text", *overrides])
