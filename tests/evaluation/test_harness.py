"""The harness' three kinds of requests, against plain loops over our model."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval.api.model import TemplateLM
from transformers import DeepseekV2ForCausalLM, PreTrainedTokenizerFast

import dsv2
from dsv2.data.packing import PackedText
from dsv2.data.source import NOT_SCORED, Batch
from dsv2.data.tokenizer import END_ID, Tokenizer
from dsv2.evaluation.harness import Harness
from dsv2.evaluation.validation import evaluate
from dsv2.inference.cache import ModelCache
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

    model = dsv2.load(["model=tiny", f"data.vocab_size={tokenizer.vocab_size}"]).model.build()
    script = torch.tensor([*ids, END_ID])

    def hidden(tokens: torch.Tensor, *, caches: ModelCache, positions: torch.Tensor | None = None) -> Any:
        """Goes through the text, whose places its caches count, then ends it."""
        places = caches.places(tokens.shape[1], positions)
        caches.advance(places)
        following = script[places.positions + 1].expand(len(tokens), -1)
        return torch.nn.functional.one_hot(following, tokenizer.vocab_size).float(), ()

    model.hidden, model.head = hidden, torch.nn.Parameter(torch.eye(tokenizer.vocab_size))
    harness = Harness(Reader(model, tokenizer, LENGTH), batch_size=1)
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


# ---- questions that the harness itself cannot score, or only just ----------------------------------------------------

PAIRS = [
    ("Ban ben", " bin bon"),
    ("Ban ben ", "bin"),  # the space belongs to the continuation
    ("Ban ben  \n", "  bin"),
    ("Ba", "n ben"),  # the boundary is inside a token
    ("", "Ban ben"),
    ("naïve 学习", " 🙂"),
]


class Theirs(TemplateLM):
    """The harness's own encoding, with an exported model and tokenizer in transformers, one question at a time."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.model = DeepseekV2ForCausalLM.from_pretrained(folder)
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|endoftext|>"
        )

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens is not False)

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        results = []
        for _strings, context, continuation in requests:
            logits = self.model(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1].double()
            target = torch.tensor(continuation)
            nats = logits.log_softmax(-1).gather(-1, target[:, None]).sum()
            results.append((float(nats), bool((logits.argmax(-1) == target).all())))
        return results

    loglikelihood_rolling = generate_until = None


def test_scores_are_those_of_the_harness_on_the_exported_model(harness: Harness, tmp_path: Path) -> None:
    dsv2.to_hf(harness.reader.model, tmp_path / "hf")
    harness.reader.tokenizer.save(tmp_path / "hf" / "tokenizer.json")
    expected = Theirs(tmp_path / "hf").loglikelihood(requests(*PAIRS), disable_tqdm=True)
    results = harness.loglikelihood(requests(*PAIRS), disable_tqdm=True)
    assert [nats for nats, _ in results] == pytest.approx([nats for nats, _ in expected], rel=FLOAT32_MODULE)
    assert [greedy for _, greedy in results] == [greedy for _, greedy in expected]


def test_a_bad_question_does_not_end_the_run(harness: Harness, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing to score is certain; without a context, or with one of spaces, a text begins."""
    model, tokenizer = harness.reader.model, harness.reader.tokenizer
    ids = tokenizer.encode("   bin")
    for context, continuation, read, scored in (
        ("Ban", "", [], []),
        ("", "", [], []),
        ("   ", "", [END_ID], tokenizer.encode("   ")),
        ("   ", "bin", [END_ID], ids),
        ("", "   bin", [END_ID], ids),
        ("Ban", "\ud800", tokenizer.encode("Ban"), tokenizer.encode("?")),
    ):
        good, bad = harness.loglikelihood(requests(("Fun", " gar"), (context, continuation)), disable_tqdm=True)
        assert good[0] < 0
        expected = looped(model, read, scored) if scored else (0.0, True)
        assert bad == (pytest.approx(expected[0], rel=FLOAT32_MODULE), expected[1]), (context, continuation)
    assert capsys.readouterr().err.count("some continuations are empty") == 1
    assert harness.loglikelihood_rolling(requests(("",), ("\ud800",)))[0] == 0.0
    (answer,) = harness.generate_until(requests(("\ud800", {"max_gen_toks": 2})))
    assert isinstance(answer, str)


def test_a_continuation_that_melts_into_its_context_has_no_tokens_left(quick: list[str]) -> None:
    """The text has no more tokens than its context: nothing is left, as in the harness."""
    tokenizer = Tokenizer.train(["banana"] * 9, vocab_size=300)
    model = dsv2.load([*quick, "model.vocab_size=300"]).model.build()
    harness = Harness(Reader(model, tokenizer, LENGTH), batch_size=1)
    assert len(tokenizer.encode("banana")) < len(tokenizer.encode("banan"))
    results = harness.loglikelihood(requests(("banan", "a"), ("banan", "e")), disable_tqdm=True)
    assert results[0] == (0.0, True)
    assert results[1][0] < 0


def test_a_prefix_begins_texts_once(harness: Harness) -> None:
    """As in the harness, where a tokenizer adds its BOS: not to the continuation of an empty context, nor twice."""
    tokenizer = harness.reader.tokenizer
    ids = tokenizer.encode("Ban")
    tokenizer.prefix = tuple(ids)
    assert harness.tok_encode(" ben") == [*ids, *tokenizer.encode(" ben")]
    assert harness.tok_encode(" ben", add_special_tokens=False) == tokenizer.encode(" ben")
    assert harness.tok_encode("Ban ben") == tokenizer.encode("Ban ben")
    (spaces,) = harness.loglikelihood(requests(("  ", " ben")), disable_tqdm=True)
    assert spaces[0] == pytest.approx(looped(harness.reader.model, ids, tokenizer.encode("   ben"))[0])


def test_ids_without_a_token_are_neither_generated_nor_scored(quick: list[str], source: PackedText) -> None:
    """A model that prefers ids beyond the tokenizer writes and scores text as if it had only those with a token."""
    tokenizer = source.store.tokenizer
    size = tokenizer.vocab_size
    model = dsv2.load([*quick, f"model.vocab_size={size + 40}", "model.init_std=0.3"]).model.build()
    small = dsv2.load([*quick, f"model.vocab_size={size}", "model.init_std=0.3"]).model.build()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight[: len(small.get_parameter(name))] = small.get_parameter(name)
        model.head[size:] *= 100
    ours, alone = (Harness(Reader(each, tokenizer, LENGTH), batch_size=2) for each in (model, small))
    asked = requests(*PAIRS)
    for (nats, greedy), expected in zip(ours.loglikelihood(asked), alone.loglikelihood(asked), strict=True):
        assert (nats, greedy) == (pytest.approx(expected[0], rel=FLOAT32_MODULE), expected[1])
    settings = requests(("Ban", {"max_gen_toks": 12}), ("", {"max_gen_toks": 12}))
    assert ours.generate_until(settings) == alone.generate_until(settings)
