"""Answers as sequences of a batch, and their log-probabilities on the side of training."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import dsv2
from dsv2.alignment.rollout import Answers, Rows, log_probabilities
from dsv2.data.source import NOT_SCORED, Batch
from dsv2.inference.sampling import Chooser, Sampling
from dsv2.kernels.cross_entropy import token_nats
from dsv2.models.transformer import Transformer

LENGTHS, ASKED = [5, 9, 4, 7, 6, 3], [2, 4, 3, 1, 4, 1]


@pytest.fixture
def answers() -> Answers:
    draw = torch.Generator().manual_seed(0)
    answered = sum(LENGTHS) - sum(ASKED)
    return Answers(
        ids=torch.randint(1, 60, (sum(LENGTHS),), generator=draw),
        lengths=torch.tensor(LENGTHS),
        asked=torch.tensor(ASKED),
        old=torch.arange(answered, dtype=torch.float32),
        reference=None,
        advantages=torch.arange(6.0),
        kept=torch.tensor([True, False] * 3),
    )


@pytest.fixture(scope="module")
def model() -> Transformer:
    overrides = ["model=tiny", "data=synthetic", "model.vocab_size=64", "model.init_std=0.3"]
    return dsv2.load(overrides).model.build(seed=2)


def numbers_of(rows: list[Rows]) -> list[int]:
    return [number for row in rows for number in row.order.tolist()]


# ---- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [9, 12, 40])
def test_every_answer_is_once_in_the_rows_and_its_tokens_are_scored(answers: Answers, length: int) -> None:
    rows = Rows.of(answers, length=length, pad_id=0)
    assert sorted(numbers_of(rows)) == list(range(len(answers.old)))
    expected = torch.cat([ids[asked:] for ids, asked in zip(answers.ids.split(LENGTHS), ASKED, strict=True)])
    for row in rows:
        targets = row.batch.targets
        assert torch.equal(targets[targets != NOT_SCORED], expected[row.order])
        assert row.batch.inputs.shape == (1, length)
    joined = Rows.joined(rows)
    assert joined.order.tolist() == numbers_of(rows)
    assert joined.batch.positions is not None
    assert (joined.batch.positions[:, -1] >= 0).any(), "no column is padding alone"
    assert (joined.batch.positions >= 0).sum() == sum(LENGTHS)


def test_the_first_token_of_an_answer_is_predicted_from_the_prompt(answers: Answers) -> None:
    (row,) = Rows.of(answers.part(0, 1), length=6, pad_id=0)
    none, ids = NOT_SCORED, answers.ids[:5].tolist()
    assert row.batch.targets.tolist() == [[none, ids[2], ids[3], ids[4], none, none]]


def test_parts_are_the_answers_that_they_name(answers: Answers) -> None:
    part = answers.part(2, 3)
    assert part.lengths.tolist() == LENGTHS[2:5]
    assert torch.equal(part.ids, answers.ids[14:31])
    assert part.old.tolist() == [8.0, *range(9, 15), 15.0, 16.0]
    assert part.advantages.tolist() == [2, 3, 4]
    assert len(answers.part(0, 6).ids) == sum(LENGTHS)
    assert len(answers.part(3, 0).ids) == 0


def test_answers_survive_a_checkpoint(answers: Answers, tmp_path: Any) -> None:
    torch.save({"answers": answers.state()}, tmp_path / "x")
    loaded = Answers.from_state(torch.load(tmp_path / "x", weights_only=True)["answers"])
    for name, value in answers.state().items():
        other = loaded.state()[name]
        assert (value is None and other is None) or torch.equal(value, other), name


# ---- log-probabilities -----------------------------------------------------------------------------------------------


class Two:
    """A model whose logits are 2 and 0, wherever and whatever is asked."""

    embedding = torch.zeros(2, 2)
    head_weight = torch.eye(2)
    ops = SimpleNamespace(linear=torch.nn.functional.linear)

    def hidden(self, tokens: Tensor, **_: Any) -> tuple[Tensor, tuple[()]]:
        return torch.tensor([2.0, 0.0]).expand(*tokens.shape, 2), ()


def test_pitfall_6_the_temperature_is_on_both_sides() -> None:
    """Logits 2 and 0, temperature 0.5, token 1: -4.0181."""
    batch = Batch(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([[1, NOT_SCORED]]), None, torch.tensor([[0, 1]]))
    rows = Rows(batch=batch, order=torch.zeros(1, dtype=torch.int64))
    trained, _ = log_probabilities(Two(), rows, temperature=0.5, ids=None)  # type: ignore[arg-type]
    chooser = Chooser([Sampling(temperature=0.5)], [0], torch.device("cpu"))
    drawn = chooser.log_probabilities(torch.tensor([[2.0, 0.0]]))[0, 1]
    assert trained.item() == pytest.approx(-4.0181, abs=1e-4)
    assert drawn.item() == pytest.approx(-4.0181, abs=1e-4)


def test_tokens_that_cannot_be_drawn_have_no_share() -> None:
    batch = Batch(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([[0, NOT_SCORED]]), None, torch.tensor([[0, 1]]))
    rows = Rows(batch=batch, order=torch.zeros(1, dtype=torch.int64))
    logs, _ = log_probabilities(Two(), rows, temperature=1.0, ids=[0])  # type: ignore[arg-type]
    assert logs.tolist() == [0.0]


@pytest.mark.parametrize("length", [9, 13, 40])
def test_pitfall_7_an_answer_has_the_same_log_probabilities_alone_and_beside_others(
    model: Transformer, answers: Answers, length: int
) -> None:
    rows = Rows.of(answers, length=length, pad_id=0)
    logs = torch.zeros_like(answers.old)
    with torch.no_grad():
        whole, _ = log_probabilities(model, Rows.joined(rows), temperature=0.7, ids=None)
        logs[Rows.joined(rows).order] = whole
        each = list[Tensor]()
        for ids, asked in zip(answers.ids.split(LENGTHS), ASKED, strict=True):
            logits = model(ids[None]).logits[0, asked - 1 : -1] / 0.7
            each.append(-token_nats(logits, ids[asked:]))
    torch.testing.assert_close(logs, torch.cat(each), rtol=1e-4, atol=1e-5)
    other = Rows.joined(Rows.of(answers, length=length, pad_id=7))
    with torch.no_grad():
        torch.testing.assert_close(log_probabilities(model, other, temperature=0.7, ids=None)[0], whole)
