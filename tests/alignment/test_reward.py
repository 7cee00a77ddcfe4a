"""Reward models as a kind of run: they learn preferences, resume exactly and reward the answers of other runs."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

import dsv2
from dsv2.alignment.reward import RewardModule
from dsv2.alignment.reward_model import RewardModel
from dsv2.config import ConfigError
from dsv2.data.chats import Chats
from dsv2.storage.weights import read_weights
from dsv2.training import fit
from dsv2.training.origin import read_origin
from dsv2.training.run import Run
from dsv2.training.saved import open_run
from tests.references.runs import rows


@pytest.fixture
def reward(grpo: list[str]) -> list[str]:
    """Overrides of a reward model that prefers answers which end themselves."""
    kept = [word for word in grpo if not word.startswith("objective")]
    settings = ["objective=reward", "objective.group_size=4", "objective.max_new_tokens=6", "objective.prompts=20"]
    settings += ["objective.held_out=10", "objective.rewards.correct=0", "objective.rewards.stopped=1"]
    return [*kept, *settings]


@pytest.mark.parametrize("loss", ["pairwise", "pointwise"])
def test_it_learns_what_is_preferred(reward: list[str], tmp_path: Path, loss: str) -> None:
    words = [*reward, f"objective/loss={loss}", "optim.lr=1e-2"]
    result = fit.fit(dsv2.load([*words, f"trainer.tokens={24 * 8 * 64}"]), tmp_path / "run")
    logged = rows(tmp_path / "run")
    assert result["metrics"]["rm/accuracy"] > 0.9
    assert {"rm/calibration", "rm/accuracy_in_training", "train/balance_expert"} <= result["metrics"].keys()
    assert logged[-1]["train/ce"] < logged[0]["train/ce"]
    assert result["metrics"]["val/loss"] < 0.69


def test_its_head_is_kept_and_its_trunk_opened_as_any_model(reward: list[str], tmp_path: Path) -> None:
    fit.fit(dsv2.load(reward), tmp_path / "run")
    weights = read_weights(tmp_path / "run")
    assert set(weights.others) == {"score_head", "score_mean", "score_std"}
    assert weights.others["score_head"].abs().max() > 0
    assert weights.others["score_std"] > 1e-3
    opened = open_run(tmp_path / "run")
    assert weights.tensors.keys() == opened.model.state_dict().keys()
    origin = read_origin(tmp_path / "run")
    changed = {**weights.others, "score_head": weights.others["score_head"] + 1}
    assert type(origin)(origin.folder, origin.step, origin.weights, None, changed).hash != origin.hash


@pytest.mark.parametrize("crash_at", [3, 9])
def test_a_crash_changes_nothing(
    reward: list[str], tmp_path: Path, crashing: Callable[[int], AbstractContextManager[None]], crash_at: int
) -> None:
    run = dsv2.load(reward)
    fit.fit(run, tmp_path / "whole")
    with crashing(crash_at):
        fit.fit(run, tmp_path / "killed")
    fit.fit(run, tmp_path / "killed")
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    one, other = (read_weights(tmp_path / name) for name in ("whole", "killed"))
    for kind in ("tensors", "others"):
        assert all(torch.equal(weight, getattr(other, kind)[name]) for name, weight in getattr(one, kind).items())


def test_it_rewards_the_answers_of_another_run(reward: list[str], grpo: list[str], tmp_path: Path) -> None:
    """Drawn by other weights: each answer gets the scaled score that the reward model gives it alone."""
    fit.fit(dsv2.load(reward), tmp_path / "judge")
    named = f"objective.reward_models.helpful={tmp_path / 'judge'}"
    run = dsv2.load([*grpo, named, "objective.rewards.helpful=2", "objective.rewards.stopped=0", "seed=3"])
    module = run.objective.module(run)  # type: ignore[union-attr]
    source = run.data.open(sequence_length=64, seed=3, validation_tokens=256)
    module.begin(source, resumed=False)
    module.draw(0)
    assert module.answers is not None
    origin = read_origin(tmp_path / "judge").config
    judge = RewardModel.open("x", origin, open_run(tmp_path / "judge").tokenizer)
    texts = [ids.tolist() for ids in module.answers.ids.split(module.answers.lengths.tolist())]
    alone = torch.cat([judge.rewards([text], pad_id=0) for text in texts])
    assert module.drawn["grpo/reward_helpful"].item() == pytest.approx(alone.mean().item(), rel=1e-3)
    expected = module.drawn["grpo/reward_correct"] + 2 * module.drawn["grpo/reward_helpful"]
    assert module.drawn["grpo/reward"].item() == pytest.approx(expected.item(), rel=1e-4)
    result = fit.fit(run, tmp_path / "run")
    assert result["status"] == "finished"
    assert "grpo/reward_helpful" in rows(tmp_path / "run")[0]


def test_the_weights_that_reward_are_part_of_the_fingerprint(
    reward: list[str], grpo: list[str], tmp_path: Path
) -> None:
    runs: list[Run.Config] = []
    for number in range(2):
        folder = tmp_path / f"judge{number}"
        fit.fit(dsv2.load([*reward, f"seed={number}", "trainer.tokens=1024"]), folder)
        runs.append(dsv2.load([*grpo, f"objective.reward_models.helpful={folder}"]))
    assert len({run.fingerprint() for run in [*runs, dsv2.load(grpo)]}) == 3
    moved = tmp_path / "moved"
    (tmp_path / "judge0").rename(moved)
    assert dsv2.load([*grpo, f"objective.reward_models.helpful={moved}"]).fingerprint() == runs[0].fingerprint()


def test_prompts_without_a_better_answer_are_refused(
    reward: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Chats, "stop_ids", frozenset(range(300)))
    run = dsv2.load(reward)
    module = run.objective.module(run)  # type: ignore[union-attr]
    assert isinstance(module, RewardModule)
    module.begin(run.data.open(sequence_length=64, seed=0, validation_tokens=256), resumed=False)
    with pytest.raises(ConfigError, match="data='instructions' is not valid: prompts of which the model's answers get"):
        module.preferences()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.batch.size=7"], "trainer.batch.size=7 is not valid: even: answers are trained in pairs"),
        (["benchmarks=following"], "benchmarks='following' is not valid: none, since a reward model does not reply"),
        (["objective.group_size=1"], "objective.group_size=1 is not valid: at least 2, which are compared"),
        (["+objective.rewards.helpful=1"], "objective.rewards.helpful=1.* is not valid: 0, since no reward model is"),
        (["objective.max_new_tokens=64"], "objective.max_new_tokens=64 is not valid: less than trainer.sequence_len"),
    ],
)
def test_what_cannot_be_is_refused(reward: list[str], words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dsv2.load([*reward, *words])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "objective.rewards.helpful=1",
            "objective.rewards.helpful=1.0 is not valid: 0 without objective.reward_models",
        ),
        ("objective.reward_models.helpful=nowhere", "objective.reward_models.helpful='nowhere' is not valid: RUN or"),
    ],
)
def test_what_no_reward_model_gives_is_refused(grpo: list[str], word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dsv2.load([*grpo, word])
