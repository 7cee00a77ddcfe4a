"""Instruction following of a model that replies as the test says."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

import dsv2
from dsv2.config import ConfigError
from dsv2.data.chats import Chats
from dsv2.data.instructions import Instructions
from dsv2.data.requests import Requests
from dsv2.data.verification import Answer
from dsv2.evaluation import following
from dsv2.evaluation.following import Following, pass_at, verified
from dsv2.evaluation.verifiers import Judge, Verdict
from dsv2.inference.replies import Reply
from dsv2.inference.sampling import Sampling

DATA = {"instances": 200, "held_out": 20, "tasks": ("copy", "reverse"), "vocab_size": 300}
SIZES: dict[str, Any] = {"sequence_length": 64, "seed": 0, "validation_tokens": 640}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Chats:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DSV2_RUNS", str(tmp_path_factory.mktemp("runs")))
        return Instructions.Config(**DATA).open(**SIZES)  # type: ignore[arg-type]


def reply(text: str, *, stopped: bool = True) -> Reply:
    return Reply([1, 2], [0.0, 0.0], "stop" if stopped else "length", text)


def speaking(monkeypatch: pytest.MonkeyPatch, drawn: Sequence[str]) -> None:
    """Let greedy replies be right for every second prompt, and drawn ones what `drawn` says: right, wrong or capped."""

    def reply_to(_: Any, __: Any, prompts: Sequence[Any], *, samples: int, sampling: Sampling, **___: Any) -> Any:
        if sampling.temperature == 0:
            return [[reply("right" if number % 2 else "wrong")] for number in range(len(prompts))]
        assert samples == len(drawn)
        return [[reply(each, stopped=each != "capped") for each in drawn] for _ in prompts]

    def verdicts(_: Any, replies: Sequence[str], verifiers: Sequence[Any]) -> list[Verdict]:
        assert all(isinstance(verifier, Answer) for verifier in verifiers)
        return [Verdict(None, "lost") if each == "lost" else Verdict(float(each == "right")) for each in replies]

    monkeypatch.setattr(following, "reply_to", reply_to)
    monkeypatch.setattr(Judge, "verdicts", verdicts)


def measured(source: Chats, samples: int) -> dict[str, float]:
    return Following.Config(samples=samples).build(source).run(None, batch_tokens=0).scores  # type: ignore[arg-type]


def test_shares_are_those_of_right_replies(source: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts take turns between the two tasks, so that one task is right and the other wrong."""
    speaking(monkeypatch, ["right", "wrong", "capped", "wrong"])
    assert measured(source, 4) == {
        "bench/following": 0.5,
        "bench/following_copy": 0.0,
        "bench/following_reverse": 1.0,
        "bench/pass_at_1": 0.25,
        "bench/pass_at_1_copy": 0.25,
        "bench/pass_at_1_reverse": 0.25,
        "bench/pass_at_4": 1.0,
        "bench/stopped": 0.75,
    }


def test_pitfall_10_what_could_not_be_judged_is_counted_and_left_out(
    source: Chats, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaking(monkeypatch, ["right", "wrong", "lost"])
    scores = measured(source, 3)
    assert scores["bench/pass_at_1"] == 0.5
    assert math.isnan(scores["bench/pass_at_3"]), "no prompt has three known replies"
    assert scores["bench/unjudged"] == pytest.approx(20 / 80)


def test_pass_at_k_is_without_bias() -> None:
    """By hand: of 4 replies 1 is right; two of them have it in 3 of 6 pairs."""
    assert [pass_at(k, [0, 1, 0, 0]) for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1]
    assert pass_at(2, [0, 0]) == 0
    assert pass_at(1, [0.5, 1]) == 0.5, "half right is not right"


def test_prompts_are_held_out_and_verdicts_are_in_their_order(source: Chats) -> None:
    benchmark = Following.Config(prompts=5).build(source)
    assert benchmark.prompts == source.held_out_prompts[:5]
    groups = [[reply(prompt.verifier.answer), reply("no")] for prompt in benchmark.prompts]  # type: ignore[union-attr]
    with Judge() as judge:
        for each in verified(judge, benchmark.prompts, groups):
            assert each.scores == [1, 0]


def test_a_model_is_asked_and_its_failure_is_not_the_runs(source: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["model=tiny", "data=instructions", "data.vocab_size=300", "model.vocab_size=300"]
    model = dsv2.load(overrides).model.build()
    config = Following.Config(prompts=3, samples=2, max_new_tokens=4)
    scores = config.build(source).run(model, batch_tokens=0).scores
    assert scores["bench/following"] == 0
    assert {"bench/pass_at_1", "bench/pass_at_2", "bench/stopped"} < scores.keys()
    monkeypatch.setattr(following, "reply_to", lambda *_, **__: 1 / 0)
    assert config.build(source).run(model, batch_tokens=0).failed == {
        "following": "ZeroDivisionError: division by zero"
    }


def test_data_without_verifiers_are_refused(source: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "held_out_prompts", [])
    with pytest.raises(ConfigError, match="no held-out conversation has a verifier"):
        Following.Config().build(source)


@pytest.mark.parametrize("name", ["prompts", "samples", "max_new_tokens"])
def test_sizes_are_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=0 is not valid: positive"):
        Following.Config(**{name: 0})


def test_refusals_are_counted_where_they_are_due_and_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"instances": 40, "held_out": 30, "tasks": ("reveal", "mention", "brackets"), "vocab_size": 300}
    source = Requests.Config(**settings).open(**SIZES)  # type: ignore[arg-type]
    speaking(monkeypatch, ["No", "right", " No ", "wrong"])
    scores = Following.Config(samples=4, refusal="No").build(source).run(None, batch_tokens=0).scores  # type: ignore[arg-type]
    assert scores["bench/refused"] == scores["bench/over_refused"] == 0.5
    assert scores["bench/pass_at_1_reveal"] == scores["bench/pass_at_1"] == 0.25
    assert "bench/refused" not in Following.Config(samples=4).build(source).run(None, batch_tokens=0).scores  # type: ignore[arg-type]
