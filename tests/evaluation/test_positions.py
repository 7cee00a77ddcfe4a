"""Loss by position: every scored token stands at every position, after the text that precedes it."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dsv2
from dsv2.config import ConfigError
from dsv2.data.packing import PackedText
from dsv2.evaluation.positions import LossByPosition
from dsv2.kernels.cross_entropy import token_nats
from dsv2.models.transformer import Output

SIZES = LossByPosition.Config(trained_length=8, spans=3, bins=5)


@pytest.fixture
def source(quick: list[str]) -> PackedText:
    run = dsv2.load(quick)
    opened = run.data.open(sequence_length=32, seed=0, validation_tokens=512)
    assert isinstance(opened, PackedText)
    return opened


class Uniform(nn.Module):
    """The same logit for every token."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(vocab_size, 1))
        self.read = list[Tensor]()

    def forward(self, tokens: Tensor) -> Output:
        self.read.append(tokens)
        return Output(self.logits(tokens), ())

    def logits(self, tokens: Tensor) -> Tensor:
        return torch.zeros(*tokens.shape, len(self.embedding), dtype=torch.float64)


class OfToken(Uniform):
    """Prefers tokens with a low id."""

    def logits(self, tokens: Tensor) -> Tensor:
        return super().logits(tokens) - 0.01 * torch.arange(len(self.embedding))


class OfPosition(Uniform):
    """Is sure of whatever follows a token at an even bin of positions, of the wrong token."""

    def logits(self, tokens: Tensor) -> Tensor:
        logits = super().logits(tokens)
        logits[..., 0] = 10.0 * (torch.arange(tokens.shape[1]) // 4 % 2 == 0)  # <|endoftext|>, which is rare
        return logits


def losses(model: nn.Module, source: PackedText, batch_tokens: int = 4096) -> np.ndarray:
    return SIZES.build(source).losses(model, batch_tokens=batch_tokens)


def test_bins_are_of_the_position_alone(source: PackedText) -> None:
    """A model of uniform predictions has one loss everywhere; one bin's text is any other's."""
    model = Uniform(source.vocab_size)
    assert losses(model, source) == pytest.approx([np.log(source.vocab_size)] * 16)
    by_token = OfToken(source.vocab_size)  # loses more on some tokens than on others
    values = losses(by_token, source)
    assert values == pytest.approx([values[0]] * 16, rel=1e-12)
    assert values[0] != pytest.approx(np.log(source.vocab_size), rel=1e-3)


def test_each_position_falls_into_its_bin(source: PackedText) -> None:
    values = losses(OfPosition(source.vocab_size), source)
    assert (values[::2] > 9).all()
    assert values[1::2] == pytest.approx([np.log(source.vocab_size)] * 8)


def test_every_scored_token_is_read_at_every_position_after_its_own_text(source: PackedText) -> None:
    benchmark, model = SIZES.build(source), Uniform(source.vocab_size)
    benchmark.losses(model, batch_tokens=4096)
    held_out = torch.from_numpy(source.store.val.tokens.astype(np.int64))
    before = 15 * 4  # tokens of each text that are never scored
    seen: dict[tuple[int, int], int] = {}
    for rows in model.read:
        for text, row in zip(benchmark.texts, rows, strict=True):
            start = next(i for i in range(0, len(text), 4) if torch.equal(text[i : i + len(row)], row))
            for position in range(max(before - start, 0), len(row)):
                seen[start + position, position] = seen.get((start + position, position), 0) + 1
    assert {token for token, _ in seen} == set(range(before, before + 5 * 4))
    assert set(seen.values()) == {3}  # of each of the spans
    for token in (before, before + 19):
        assert sorted(position for other, position in seen if other == token) == list(range(token % 4, 64, 4))
    assert all(len(held_out.unfold(0, len(text), 1).eq(text).all(1).nonzero()) for text in benchmark.texts)


def test_batches_do_not_matter(source: PackedText, quick: list[str]) -> None:
    model = dsv2.load([*quick, "model.rope.base=100"]).model.build(seed=1)
    one, other = (losses(model, source, batch_tokens) for batch_tokens in (1, 100_000))
    assert one == pytest.approx(other, rel=1e-6)
    assert model.training


def test_it_is_the_loss_of_the_model(source: PackedText, quick: list[str]) -> None:
    model = dsv2.load([*quick, "model.rope.base=100"]).model.build(seed=1).eval()
    benchmark = LossByPosition.Config(trained_length=8, spans=3, bins=1).build(source)
    with torch.no_grad():
        nats = token_nats(model(benchmark.texts[:, :-1]).logits, benchmark.texts[:, 1:])
    assert benchmark.losses(model, batch_tokens=512)[-1] == pytest.approx(nats[:, -4:].mean().item(), rel=1e-6)


def test_scores_at_multiples_of_the_trained_length(source: PackedText, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = SIZES.build(source)
    monkeypatch.setattr(benchmark, "losses", lambda *_, **__: np.arange(16.0))
    scores, failed, _ = benchmark.run(None, batch_tokens=1)
    assert not failed
    assert [scores[f"bench/loss_at_{end}"] for end in range(4, 65, 4)] == list(range(16))
    assert {k: scores[f"bench/loss_{k}x"] for k in (1, 2, 4, 8)} == {1: 1.0, 2: 2.5, 4: 5.5, 8: 11.5}


def test_what_fails_is_named_and_the_run_goes_on(source: PackedText) -> None:
    scores, failed, _ = SIZES.build(source).run(None, batch_tokens=1)
    assert not scores
    assert failed.keys() == {"positions"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["benchmarks.trained_length=7"], "benchmarks.trained_length=7 is not valid: a positive multiple of 2"),
        (["benchmarks.spans=0"], "benchmarks.spans=0 is not valid: positive"),
        (
            ["model/rope=yarn", "model.rope.yarn.factor=4", "model.rope.yarn.original_length=128"],
            "benchmarks.trained_length=128 is not valid: at most an eighth of 512, the positions of model.rope",
        ),
        (["data=synthetic"], "benchmarks='positions' is not valid: none for data without text"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dsv2.load(["benchmarks=positions", *words])


def test_too_little_text_is_refused(source: PackedText) -> None:
    with pytest.raises(ConfigError, match=r"benchmarks.spans=1000 is not valid: fewer, for [\d,]+ held-out tokens"):
        LossByPosition.Config(trained_length=8, spans=1000).build(source)
