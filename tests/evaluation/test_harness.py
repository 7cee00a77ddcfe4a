"""The harness' three kinds of requests, against plain loops over our model."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import dsv2
from dsv2.data.packing import PackedText
from dsv2.data.source import NOT_SCORED, Batch
from dsv2.data.tokenizer import END_ID
from dsv2.evaluation.harness import Harness
from dsv2.evaluation.validation import evaluate
from dsv2.inference.reader import Reader
from tests.references.likelihood import looped
from tests.references.stubs import knowing
from tests.references.tolerances import FLOAT32_MODULE

LENGTH = 32


@pytest.fixture
def source(quick: list[str]) -> PackedText:
    opened = dsv2.load(quick).data.open(sequence_length=LENGTH, seed=0, validation_tokens=512)
    assert isinstance(opened, PackedText)
    return opened


@pytest.fixture
def harness(quick: list[str], source: PackedText) -> Harness:
    model = dsv2.load([*quick, "model.init_std=0.3"]).model.build()
    return Harness(Reader(model, source.store.tokenizer, LENGTH), batch_size=3)


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=given) for given in arguments]


def test_loglikelihood_is_that_of_a_loop(harness: Harness, capsys: pytest.CaptureFixture[str]) -> None:
    encode = harness.reader.tokenizer.encode
    pairs = [("Ban ben", " bin bon"), ("Fun", " gar"), ("", "Lor kar"), ("Dist dust den", " mor")]
    long = ("Ban ben bin bon bun " * 10 + "end", " fen fin")
    results = harness.loglikelihood(requests(*pairs, long), disable_tqdm=True)
    for (context, continuation), (nats, greedy) in zip([*pairs, long], results, strict=True):
        ids = encode(continuation)
        kept = (encode(context) or [END_ID])[-(LENGTH + 1 - len(ids)) :]
        expected = looped(harness.reader.model, kept, ids)
        assert nats == pytest.approx(expected[0], rel=FLOAT32_MODULE)
        assert greedy == expected[1]
    assert "truncated on the left to the 32 tokens of training" in capsys.readouterr().err


def test_greedy_is_told_from_not_greedy(source: PackedText) -> None:
    """A model that knows one text finds it greedy, and no other, not even one that differs in its last token."""
    tokenizer = source.store.tokenizer
    read, other = tokenizer.encode("Ban ben bin"), tokenizer.encode("Ban ben bon")
    model = knowing([read], tokenizer.vocab_size)
    harness = Harness(Reader(model, tokenizer, LENGTH), batch_size=1)
    results = harness.loglikelihood(requests(("Ban", " ben bin"), ("Ban", " ben bon")), disable_tqdm=True)
    assert [greedy for _, greedy in results] == [True, False]
    assert read != other


def test_rolling_is_the_validation_loss_of_the_same_text(harness: Harness, source: PackedText) -> None:
    """A held-out document as one long text: the same nats as `evaluate` over its windows."""
    first, second = source.store.val.starts[:2].tolist()
    ids = source.store.val.tokens[first : second - 1].tolist()
    text = source.store.tokenizer.decode(ids)
    assert len(ids) > 3 * LENGTH
    assert len(ids) % LENGTH != 0
    rows = -(-len(ids) // LENGTH)
    read = torch.zeros(rows * LENGTH, dtype=torch.long)
    wanted = torch.full((rows * LENGTH,), NOT_SCORED)
    read[: len(ids)], wanted[: len(ids)] = torch.tensor([END_ID, *ids[:-1]]), torch.tensor(ids)
    batch = Batch(read.view(rows, LENGTH), wanted.view(rows, LENGTH), None)
    loss = evaluate(harness.reader.model, batch, batch_size=2, token_bytes=None)["val/loss"]
    short = source.store.tokenizer.decode(ids[:5])
    results = harness.loglikelihood_rolling(requests((text,), (short,)))
    assert results[0] == pytest.approx(-loss * len(ids), rel=FLOAT32_MODULE)
    assert results[1] == pytest.approx(looped(harness.reader.model, [END_ID], ids[:5])[0], rel=FLOAT32_MODULE)


def test_a_continuation_longer_than_training_is_scored_in_windows(harness: Harness) -> None:
    ids = harness.reader.tokenizer.encode(" ban ben" * 20)
    assert len(ids) > LENGTH
    ((nats, _),) = harness._loglikelihood_tokens([(("", ""), [5, 7], ids)])
    expected = looped(harness.reader.model, [7], ids[:LENGTH])[0]
    for start in range(LENGTH, len(ids), LENGTH):
        expected += looped(harness.reader.model, [ids[start - 1]], ids[start : start + LENGTH])[0]
    assert nats == pytest.approx(expected, rel=FLOAT32_MODULE)


def test_generation_is_greedy_and_stops(harness: Harness) -> None:
    """The tokens of `dsv2.generate`, up to the first of the stop strings, even one that spans tokens."""
    model, tokenizer, context = harness.reader.model, harness.reader.tokenizer, "Ban ben"
    ids = tokenizer.encode(context)
    continued = dsv2.generate(model, torch.tensor([ids]), max_new_tokens=12)[0, len(ids) :].tolist()
    assert END_ID not in continued
    text = tokenizer.decode(continued)
    stop = text[4:7]
    settings = [{"until": [], "max_gen_toks": 12}, {"until": ["zzzz", stop], "max_gen_toks": 12}, {"until": "zzzz"}]
    whole, stopped, most = harness.generate_until(requests(*((context, setting) for setting in settings)))
    assert whole == text
    assert stopped == text[: text.index(stop)] != text
    assert most.startswith(text)
    with pytest.raises(ValueError, match="do_sample=True: only greedy"):
        harness.generate_until(requests((context, {"do_sample": True, "temperature": 1.0})))


def test_generation_stops_at_the_end_of_the_text(source: PackedText) -> None:
    tokenizer = source.store.tokenizer
    ids = tokenizer.encode("Ban ben bin")

    class Fixed(torch.nn.Module):
        """Goes through a text whose places its caches count, then ends it."""

        def __init__(self) -> None:
            super().__init__()
            config = dsv2.load(["model=tiny", f"data.vocab_size={tokenizer.vocab_size}"]).model
            self.inner, self.config = config.build(), config
            self.embedding, self.layers, self.place = self.inner.embedding, self.inner.layers, 0

        def forward(self, tokens: torch.Tensor, **_: Any) -> Any:
            self.place += tokens.shape[1]
            logits = torch.zeros(1, tokens.shape[1], tokenizer.vocab_size)
            logits[0, -1, [*ids, END_ID][self.place]] = 1
            return SimpleNamespace(logits=logits)

    harness = Harness(Reader(Fixed(), tokenizer, LENGTH), batch_size=1)
    assert harness.generate_until(requests((tokenizer.decode(ids[:2]), {"max_gen_toks": 20}))) == [
        tokenizer.decode(ids[2:])
    ]


@pytest.mark.slow
def test_the_example_task_is_what_its_maker_makes() -> None:
    import runpy

    folder = Path(__file__).parents[2] / "docs" / "eval"
    made = runpy.run_path(str(folder / "make.py"))["lines"]()
    assert (folder / "speeches_cloze.jsonl").read_text(encoding="utf-8").splitlines() == made
    assert {json.loads(line)["answer"] for line in made} == {0, 1, 2, 3}
