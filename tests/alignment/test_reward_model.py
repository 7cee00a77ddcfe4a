"""Scores are read at the last token of an answer, wherever padding is and whatever its ids."""

from pathlib import Path

import pytest
import torch

import dsv2
from dsv2.alignment.reward_model import READ, RewardModel, Rows, last_places, scores
from dsv2.config import ConfigError
from dsv2.data.tokenizer import Tokenizer
from dsv2.models.transformer import Transformer
from dsv2.training import fit
from dsv2.training.origin import Origin, read_origin
from dsv2.training.saved import open_run

TEXTS = [[9, 2, 8, 7, 2], [5, 6], [4] * 11, [3, 2, 2]]


@pytest.fixture
def model() -> Transformer:
    run = dsv2.load(["model=tiny", "model.vocab_size=300", "data.vocab_size=300", "model.init_std=0.1"])
    return run.model.build(seed=1).eval()


def padded(ids: list[int], mask: str) -> Rows:
    """A row of which only the tokens marked 1 are text."""
    text = torch.tensor([[int(mark) for mark in mask]])
    return Rows(torch.tensor([ids]), torch.where(text > 0, text.cumsum(1) - 1, -1))


@pytest.mark.parametrize(
    ("ids", "mask", "place"), [([9, 2, 8, 7, 2, 2, 2], "1111100", 4), ([2, 2, 9, 2, 8, 7, 2], "0011111", 6)]
)
def test_pitfall_4_the_end_token_pads_too(model: Transformer, ids: list[int], mask: str, place: int) -> None:
    rows, head = padded(ids, mask), torch.randn(64, generator=torch.Generator().manual_seed(0))
    assert last_places(rows.positions).tolist() == [place]
    alone, _ = scores(model, head, Rows.of([[9, 2, 8, 7, 2]], pad_id=2))
    torch.testing.assert_close(scores(model, head, rows)[0], alone, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        states, _ = model.hidden(torch.tensor([[9, 2, 8, 7, 2]]))
    torch.testing.assert_close(alone, states[:, -1] @ head, rtol=1e-4, atol=1e-5)


def test_a_score_is_the_same_alone_and_in_any_batch(model: Transformer) -> None:
    head = torch.randn(64, generator=torch.Generator().manual_seed(0))
    together, _ = scores(model, head, Rows.of(TEXTS, pad_id=2))
    other, _ = scores(model, head, Rows.of(TEXTS[::-1], pad_id=77))
    alone = torch.cat([scores(model, head, Rows.of([text], pad_id=2))[0] for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.flip(0), alone, rtol=1e-4, atol=1e-5)
    assert len(set(alone.tolist())) == len(TEXTS)


def test_rewards_are_scaled_and_read_in_parts(model: Transformer) -> None:
    head = torch.randn(64, generator=torch.Generator().manual_seed(0))
    judge = RewardModel(model, head, torch.tensor(3.0), torch.tensor(2.0))
    texts = [TEXTS[number % 4] for number in range(READ + 5)]
    raw, _ = scores(model, head, Rows.of(texts, pad_id=2))
    torch.testing.assert_close(judge.rewards(texts, pad_id=2), (raw.detach() - 3) / 2, rtol=1e-4, atol=1e-4)


def test_a_run_without_a_reward_model_is_refused(chatty: list[str], tmp_path: Path) -> None:
    fit.fit(dsv2.load([*chatty, "trainer.tokens=2048"]), tmp_path / "run")
    origin: Origin.Config = read_origin(tmp_path / "run").config
    tokenizer: Tokenizer = open_run(tmp_path / "run").tokenizer
    with pytest.raises(ConfigError, match=r"^here=.* is not valid: a run with objective=reward"):
        RewardModel.open("here", origin, tokenizer)
