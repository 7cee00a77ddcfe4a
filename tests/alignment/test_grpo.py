"""GRPO as a kind of run: the same step as by loops, whatever its parts, and exactly resumed."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dsv2
from dsv2.alignment import draws as drawing
from dsv2.alignment.grpo import GRPOModule
from dsv2.alignment.rollout import Answers, Rows
from dsv2.config import ConfigError
from dsv2.evaluation.sandbox import SandboxBroken
from dsv2.evaluation.verifiers import Judge, Verdict
from dsv2.storage import checkpoints
from dsv2.training import fit
from dsv2.training.callbacks.recorder import Recorder
from dsv2.training.saved import open_run
from tests.references import grpo as loops
from tests.references.runs import rows

MEASURES = {"reward", "reward_correct", "reward_stopped", "zero_variance", "length", "capped", "unjudged", "pass_at_4"}
MEASURES |= {"loss", "kl", "clipped", "shift", "staleness"}


def optimiser(words: list[str], step: int = 0) -> GRPOModule:
    """A module that has drawn the answers of the first steps."""
    run = dsv2.load(words)
    assert run.objective is not None
    module = run.objective.module(run)
    assert isinstance(module, GRPOModule)
    source = run.data.open(sequence_length=64, seed=0, validation_tokens=256)
    module.begin(source, resumed=False)
    module.draw(step)
    return module


def gradient(module: GRPOModule) -> Tensor:
    return torch.cat(
        [torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten() for w in module.parameters()]
    )


def whole(module: GRPOModule) -> tuple[Answers, list[Rows]]:
    """The answers of the first step, and its rows one by one."""
    assert module.answers is not None
    answers = module.answers.part(0, 8)
    return answers, Rows.of(answers, length=64, pad_id=module.tokenizer.end_id)


# ---- one step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_step_is_that_of_loops_over_answers(grpo: list[str], temperature: float) -> None:
    """Loss and gradient, with each answer by itself, without packing, and the policy moved away from the old one."""
    words = [*grpo, "objective.penalty.beta=0.2", f"objective.temperature={temperature}", "loss.expert=0"]
    module = optimiser([*words, "loss.device=0", "loss.communication=0"])
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=draw)
    answers, every = whole(module)
    part = module.part(answers, Rows.joined(every))
    part.losses.total.backward()
    mine = gradient(module)

    ids, lengths = module.tokenizer.ids, answers.lengths.tolist()
    now = []
    for tokens, asked in zip(answers.ids.split(lengths), answers.asked.tolist(), strict=True):
        logits = module.model(tokens[None]).logits[0, asked - 1 : -1]
        unused = torch.ones(logits.shape[-1], dtype=torch.bool)
        unused[torch.from_numpy(ids)] = False
        logs = (logits.masked_fill(unused, -torch.inf) / temperature).log_softmax(-1)
        now.append(logs.gather(-1, tokens[asked:, None])[:, 0].double())
    assert answers.reference is not None
    old, reference = (each.double().split(answers.answered.tolist()) for each in (answers.old, answers.reference))
    expected = -loops.objective(now, old, reference, answers.advantages.tolist(), epsilon=0.2, beta=0.2)
    assert part.losses.total.item() == pytest.approx(expected.item(), rel=1e-4)
    module.zero_grad()
    expected.backward()
    torch.testing.assert_close(mine, gradient(module), rtol=1e-3, atol=1e-5 * float(mine.abs().max()))
    assert mine.abs().max() > 0


@pytest.mark.parametrize("average", ["SequenceMean.Config", "TokenMean.Config", "ConstantDivisor.Config"])
def test_pitfall_5_every_split_of_a_step_gives_one_gradient(grpo: list[str], average: str) -> None:
    """Balance losses included, in micro-batches of 1, 2, 3 and all sequences, and over two ranks that average."""
    divisor = ["+objective.average.divisor=6"] if "Constant" in average else []
    module = optimiser([*grpo, f"objective.average._target_=dsv2.alignment.policy.{average}", *divisor])
    answers, _ = whole(module)
    every = Rows.of(answers, length=int(answers.lengths.max()), pad_id=0)
    assert len(every) > 3
    gradients = []
    for size in (len(every), 1, 2, 3):
        module.zero_grad()
        for first in range(0, len(every), size):
            some = Rows.joined(every[first : first + size])
            module.part(answers, some, len(some.batch.inputs) / len(every)).losses.total.backward()
        gradients.append(gradient(module))
    module.zero_grad()
    for rank in (0, 1):
        some = Rows.joined(every[rank::2])
        (2 * module.part(answers, some, len(some.batch.inputs) / len(every)).losses.total / 2).backward()
    gradients.append(gradient(module))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-3, atol=2e-6)


def test_pitfall_6_the_first_ratio_is_1_for_every_token(grpo: list[str]) -> None:
    """The engine's log-probabilities, the training's and the reference's agree at any temperature."""
    for temperature in (0.5, 1.0, 1.7):
        module = optimiser([*grpo, f"objective.temperature={temperature}"])
        answers, every = whole(module)
        with torch.no_grad():
            now, _ = module._log_probabilities(module.model, Rows.joined(every))
        order = Rows.joined(every).order
        torch.testing.assert_close(now, answers.old[order], rtol=0, atol=2e-5)
        assert answers.reference is not None
        torch.testing.assert_close(now, answers.reference[order], rtol=0, atol=2e-5)


def test_pitfall_8_the_stop_token_is_learned_and_capped_answers_get_none(grpo: list[str]) -> None:
    module = optimiser(grpo)
    assert module.answers is not None
    stops, kinds = module.source.stop_ids, set()
    for ids, asked in zip(
        module.answers.ids.split(module.answers.lengths.tolist()), module.answers.asked.tolist(), strict=True
    ):
        answer = ids[asked:].tolist()
        assert not stops & set(answer[:-1])
        kinds.add(answer[-1] in stops)
        assert answer[-1] in stops or len(answer) == 6
    assert kinds == {True, False}
    share = module.drawn["grpo/capped"].item()
    ends = [ids[-1].item() in stops for ids in module.answers.ids.split(module.answers.lengths.tolist())]
    assert share == pytest.approx(1 - sum(ends) / len(ends))
    assert module.drawn["grpo/reward_stopped"].item() == pytest.approx(1 - share)


def test_answers_are_of_the_prompts_of_the_data(grpo: list[str]) -> None:
    module = optimiser([*grpo, "objective.steps_per_rollout=3"])
    assert module.answers is not None
    assert len(module.answers) == 24
    prompts = {tuple(prompt.ids) for prompt in module.source.prompts}
    asked = [
        tuple(ids[:count].tolist())
        for ids, count in zip(
            module.answers.ids.split(module.answers.lengths.tolist()), module.answers.asked.tolist(), strict=True
        )
    ]
    assert set(asked) <= prompts
    assert all(len(set(asked[first : first + 4])) == 1 for first in range(0, 24, 4)), "groups of one prompt"
    assert len(set(asked)) == 6


def test_advantages_are_of_groups_and_groups_without_variance_teach_nothing(
    grpo: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first group is right twice, the second never; a judge that fails once leaves that answer out."""

    def verdicts(_: Any, replies: list[str], __: Any) -> list[Verdict]:
        scores = [1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, None]
        return [Verdict(score) for score in scores]

    monkeypatch.setattr(Judge, "verdicts", verdicts)
    module = optimiser([*grpo, "objective.rewards.stopped=0"])
    answers, _ = whole(module)
    assert answers.advantages.tolist() == [1, -1, 1, -1, 0, 0, 0, 0]
    assert answers.kept.tolist() == [True] * 7 + [False]
    assert module.drawn["grpo/zero_variance"].item() == 0.5
    assert module.drawn["grpo/unjudged"].item() == 0.125
    assert module.drawn["grpo/reward_correct"].item() == pytest.approx(2 / 7)
    varied = optimiser(
        [*grpo, "objective.rewards.stopped=0", "objective.groups._target_=dsv2.alignment.policy.VariedGroups.Config"]
    )
    assert varied.answers is not None
    assert varied.answers.kept.tolist() == [True] * 4 + [False] * 4


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_logs_what_it_promises_and_leaves_the_same_files(grpo: list[str], tmp_path: Path) -> None:
    words = [
        *grpo,
        "benchmarks=following",
        "benchmarks.prompts=6",
        "benchmarks.samples=2",
        "benchmarks.max_new_tokens=6",
    ]
    result = fit.fit(dsv2.load(words), tmp_path / "run")
    assert result["status"] == "finished"
    logged = rows(tmp_path / "run")
    assert [row["step"] for row in logged] == [2, 4, 6, 8, 10, 12]
    for row in logged:
        assert {f"grpo/{name}" for name in MEASURES} <= row.keys()
        assert row["grpo/staleness"] == 0
        assert row["grpo/shift"] < 2e-5, "online, the ratio is 1"
        assert row["grpo/clipped"] == 0
        assert row["train/ce"] > 0
        balance = row["train/balance_expert"] + row["train/balance_device"] + row["train/balance_comm"]
        assert row["train/loss"] == pytest.approx(row["grpo/loss"] + balance, rel=1e-4, abs=1e-6)
    assert logged[0]["grpo/kl"] < logged[-1]["grpo/kl"]
    assert {"bench/following", "bench/pass_at_1", "bench/pass_at_2"} <= result["metrics"].keys()
    assert {"config.yaml", "routing.parquet", "tokenizer.json", "data.json"} <= {
        p.name for p in (tmp_path / "run").iterdir()
    }
    opened = open_run(tmp_path / "run")
    assert opened.config.objective == dsv2.load(words).objective
    assert opened.model.config == dsv2.load(words).model


@pytest.mark.parametrize(("every", "draws", "stale"), [("1", 12, 0), ("3", 4, 2), ("5", 3, 4), ("null", 1, 11)])
def test_staleness_is_an_axis(
    grpo: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: str, draws: int, stale: int
) -> None:
    """Equal answers and equal steps, whenever the answers are drawn."""
    counts = []
    inner = drawing.reply_to

    def counted(*arguments: Any, **settings: Any) -> Any:
        counts.append(len(arguments[2]) * settings["samples"])
        return inner(*arguments, **settings)

    monkeypatch.setattr(drawing, "reply_to", counted)
    fit.fit(dsv2.load([*grpo, f"objective.steps_per_rollout={every}", "trainer.log_every=1"]), tmp_path / "run")
    logged = rows(tmp_path / "run")
    assert len(counts) == draws
    assert sum(counts) == 12 * 8
    assert max(row["grpo/staleness"] for row in logged) == stale
    assert sum("grpo/reward" in row for row in logged) == draws
    assert all(row["grpo/shift"] < 2e-5 for row in logged if row["grpo/staleness"] == 0)
    assert all(row["grpo/shift"] > 2e-5 for row in logged if row["grpo/staleness"] > 0)


@contextmanager
def lost_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    inner = Recorder.on_train_batch_end

    def crash(self: Recorder, trainer: Any, *arguments: Any) -> None:
        inner(self, trainer, *arguments)
        if trainer.global_step == step:
            raise OSError("the machine went away")

    with monkeypatch.context() as broken:
        broken.setattr(Recorder, "on_train_batch_end", crash)
        with pytest.raises(OSError, match="the machine went away"):
            yield


@pytest.mark.parametrize("every", ["1", "3", "5", "null"])
def test_a_crash_in_the_middle_of_an_iteration_changes_nothing(
    grpo: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: str
) -> None:
    """Saved at steps 4 and 8, within the answers of one policy; bit-identical weights, moments and logs."""
    run = dsv2.load([*grpo, f"objective.steps_per_rollout={every}"])
    fit.fit(run, tmp_path / "whole")
    with lost_at(7, monkeypatch):
        fit.fit(run, tmp_path / "killed")
    torch.rand(1)
    with lost_at(11, monkeypatch):
        fit.fit(run, tmp_path / "killed")
    fit.fit(run, tmp_path / "killed")
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    states = [checkpoints.load(checkpoints.latest(tmp_path / name / "checkpoints")) for name in ("whole", "killed")]
    for name, weight in states[0]["state_dict"].items():
        assert torch.equal(weight, states[1]["state_dict"][name]), name
    moments = [state["optimizer_states"][0]["state"] for state in states]
    for index, moment in moments[0].items():
        assert all(torch.equal(moment[key], moments[1][index][key]) for key in moment)


def test_weights_of_a_run_are_the_policys_and_not_the_references(grpo: list[str], tmp_path: Path) -> None:
    run = dsv2.load(grpo)
    fit.fit(run, tmp_path / "run")
    state = checkpoints.load(checkpoints.latest(tmp_path / "run" / "checkpoints"))
    assert set(state["state_dict"]) == {f"model.{name}" for name in run.model.shapes()}
    first = run.model.build(seed=run.seed).state_dict()
    assert all(torch.equal(weight, first[name]) for name, weight in state["grpo"]["reference"].items())
    assert any(
        not torch.equal(weight, first[name]) for name, weight in open_run(tmp_path / "run").model.state_dict().items()
    )


def test_without_a_penalty_there_is_no_reference(grpo: list[str], tmp_path: Path) -> None:
    fit.fit(dsv2.load([*grpo, "objective.penalty=null", "trainer.tokens=1024"]), tmp_path / "run")
    state = checkpoints.load(checkpoints.latest(tmp_path / "run" / "checkpoints"))
    assert state["grpo"]["reference"] == {}
    assert {row["grpo/kl"] for row in rows(tmp_path / "run")} == {0}


def test_micro_batches_change_nothing_but_rounding(grpo: list[str], tmp_path: Path) -> None:
    words = [*grpo, f"trainer.tokens={4 * 8 * 64}"]
    runs = [dsv2.load([*words, f"objective.micro_batch={size}"]) for size in ("null", "1")]
    assert runs[0].fingerprint() == runs[1].fingerprint()
    logged = []
    for number, run in enumerate(runs):
        fit.fit(run, tmp_path / str(number))
        logged.append(rows(tmp_path / str(number)))
    for one, other in zip(*logged, strict=True):
        for name in ("train/loss", "train/ce", "train/grad_norm", "grpo/kl", "grpo/reward", "routing/max_violation"):
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-5), name


def test_what_is_rewarded_becomes_likely(grpo: list[str], tmp_path: Path) -> None:
    """From random weights: answers that end themselves, which every fifth or so does at first."""
    words = [*grpo, "objective.rewards.correct=0", "objective.rewards.stopped=1", "objective.penalty=null"]
    words += ["trainer.batch.size=32", f"trainer.tokens={30 * 32 * 64}", "optim.lr=1e-2", "optim.schedule.decay=1.0"]
    fit.fit(dsv2.load([*words, "trainer.validate_every=30", "trainer.checkpoint_every=30"]), tmp_path / "run")
    logged = rows(tmp_path / "run")
    assert logged[0]["grpo/reward_stopped"] < 0.5
    assert logged[-1]["grpo/reward_stopped"] > 0.9
    assert logged[-1]["grpo/length"] < logged[0]["grpo/length"]


def test_a_run_starts_from_another_and_its_reference_is_that(
    chatty: list[str], grpo: list[str], tmp_path: Path, runs: Path
) -> None:
    first = dsv2.load([*chatty, "model.init_std=0.15"])
    fit.fit(first, runs / "train" / first.fingerprint())
    own = [word for word in grpo if word.startswith(("objective", "optim"))]
    run = dsv2.load([f"init_from={first.fingerprint()}", *own, "logger.wandb.mode=disabled", "trainer.progress=false"])
    assert run.data == first.data
    fit.fit(run, tmp_path / "run")
    state = checkpoints.load(checkpoints.latest(tmp_path / "run" / "checkpoints"))
    weights = open_run(runs / "train" / first.fingerprint()).model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in state["grpo"]["reference"].items())
    onward = dsv2.load([f"init_from={tmp_path / 'run'}", "objective.penalty.beta=0.1"])
    assert onward.objective is not None, "the objective is taken over like the rest"


def test_a_broken_sandbox_stops_nothing(grpo: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise SandboxBroken("no more processes")

    monkeypatch.setattr("dsv2.evaluation.verifiers.Sandbox", broken)
    fit.fit(dsv2.load([*grpo, "trainer.tokens=1024", "data.tasks=[python]"]), tmp_path / "run")
    assert [row["grpo/unjudged"] for row in rows(tmp_path / "run")] == [1.0]


# ---- what is refused -------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "other data": (
        lambda words: [*(word for word in words if not word.startswith("data")), "data=english"],
        "data='english' is not valid: conversations with prompts",
    ),
    "groups that do not fit": (
        lambda words: [*words, "objective.group_size=3"],
        r"trainer.batch.size=8 is not valid: a multiple of objective.group_size=3; one step has 8 answers",
    ),
    "one answer": (lambda words: [*words, "objective.group_size=1"], "objective.group_size=1 is not valid: at least 2"),
    "long answers": (
        lambda words: [*words, "objective.max_new_tokens=64"],
        "objective.max_new_tokens=64 is not valid: less than trainer.sequence_length=64",
    ),
    "processes": (lambda words: [*words, "mesh.dp=2"], "mesh.dp=2 is not valid: 1 with objective=grpo"),
    "no steps": (lambda words: [*words, "objective.steps_per_rollout=0"], "steps_per_rollout=0 is not valid: positive"),
    "a clip": (lambda words: [*words, "objective.clip=1.0"], "objective.clip=1.0 is not valid: between 0 and 1"),
    "greedy answers": (lambda words: [*words, "objective.temperature=0.0"], "temperature=0.0 is not valid: positive"),
    "capacity": (
        lambda words: [*words, "model/ffn/dropping=device", "objective.micro_batch=1"],
        "objective.micro_batch=1 is not valid: null, since this FFN drops tokens",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(grpo: list[str], name: str) -> None:
    change, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        dsv2.load(change(grpo))


def test_data_that_do_not_fit_are_refused_before_training(grpo: list[str], tmp_path: Path) -> None:
    long = dsv2.load([*grpo, "trainer.sequence_length=40", "trainer.tokens=960", "objective.max_new_tokens=39"])
    with pytest.raises(
        ConfigError, match=r"objective.max_new_tokens=39 is not valid: at most \d+, what the longest prompt"
    ):
        fit.fit(long, tmp_path / "long")
    replies = [[{"role": "user", "content": "x"}, {"role": "assistant", "content": str(n)}] for n in range(20)]
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps({"messages": messages}) for messages in replies))
    kept = [word for word in grpo if not word.startswith("data")]
    unverified = dsv2.load([*kept, "data=chats", f"data.path={tmp_path}/chats.jsonl", "data.vocab_size=300"])
    with pytest.raises(ConfigError, match="conversations with a verifier, which none of them has"):
        fit.fit(unverified, tmp_path / "unverified")
