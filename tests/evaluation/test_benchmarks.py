"""Cloze, copying and arithmetic, with models that know the answers, that know nothing, and that know bigrams."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

import dsv2
from dsv2.config import ConfigError
from dsv2.data.maths import worksheets
from dsv2.data.packing import PackedText
from dsv2.data.source import Source
from dsv2.evaluation import cloze, copying, exercises
from dsv2.evaluation.benchmarks import TextBenchmarks
from dsv2.evaluation.choice import CHOICES, Choice, answer, answer_both_ways
from dsv2.metrics import METRICS, chance, quantity
from tests.evaluation.stubs import Stub, knowing, uniform
from tests.tolerances import FLOAT32

VOCAB = 300
SIZES = TextBenchmarks.Config(
    cloze_questions=40, cloze_context=12, cloze_continuation=4, copying_strings=6, copying_length=16, exercises=8
)


@pytest.fixture
def source(corpus: str) -> PackedText:
    opened = dsv2.load(["data=files", f"data.path={corpus}", f"data.vocab_size={VOCAB}"]).data.open(
        sequence_length=32, seed=0, validation_tokens=512
    )
    assert isinstance(opened, PackedText)
    return opened


@pytest.fixture
def two_domains(source: PackedText, tmp_path: Path) -> PackedText:
    """The corpus' words as two domains, one of them generated maths."""
    sheets = list(worksheets(20_000, seed=5))
    words = source.tokenizer.decode(source.store.train.tokens.tolist()).split("<|endoftext|>")[:-1]
    rows = [("maths", text) for text in sheets] + [("words", text) for text in words]
    (tmp_path / "both.jsonl").write_text("\n".join(json.dumps({"domain": d, "text": t}) for d, t in rows))
    opened = dsv2.load(["data=files", f"data.path={tmp_path}/both.jsonl", f"data.vocab_size={VOCAB}"]).data.open(
        sequence_length=128, seed=0, validation_tokens=512
    )
    assert isinstance(opened, PackedText)
    return opened


def held_out(source: PackedText, count: int = 40, context: int = 12, continuation: int = 4) -> list[Choice]:
    return cloze.questions(source.store.val, source.domains, count=count, context=context, continuation=continuation)


# ---- cloze ----


def test_questions_are_cut_from_held_out_text(two_domains: PackedText) -> None:
    """Context and truth follow each other in one held-out document; choices differ and are of the same domain."""
    split = two_domains.store.val
    ends = [*split.starts[1:].tolist(), len(split.tokens)]
    texts = [
        (int(domain), split.tokens[start : end - 1].tolist())
        for start, end, domain in zip(split.starts, ends, split.domains, strict=True)
    ]
    questions = held_out(two_domains)

    def within(domain: int, ids: list[int]) -> bool:
        return any(
            d == domain and ids == text[i : i + len(ids)] for d, text in texts for i in range(len(text) - len(ids) + 1)
        )

    assert [question.domain for question in questions] == [0] * 20 + [1] * 20
    for context, continuations, domain in questions:
        assert within(domain, [*context, *continuations[0]])
        assert all(within(domain, list(other)) for other in continuations)
        assert len({tuple(other) for other in continuations}) == CHOICES
    assert questions == held_out(two_domains)  # a pure function
    assert len({tuple(question.context) for question in questions}) > 35


def test_scores_are_those_of_a_loop(source: PackedText) -> None:
    """Mean log-likelihood a byte of each choice, one sequence and one token at a time."""
    table = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(3))
    model, lengths, questions = Stub(lambda read: table[read[-1]]), source.token_bytes, held_out(source)
    right, margins = [], []
    for context, continuations, _ in questions:
        scores = []
        for continuation in continuations:
            read, nats = list(context), 0.0
            for token in continuation:
                logits = table[read[-1]].double()
                nats += (logits[token] - logits.exp().sum().log()).item()
                read.append(token)
            scores.append(nats / sum(int(lengths[token]) for token in continuation))
        right.append(scores[0] == max(scores))
        margins.append(scores[0] - max(scores[1:]))
    found = answer(model, questions, lengths, batch_tokens=64)
    assert found.correct.tolist() == right
    assert found.margin == pytest.approx(margins, rel=FLOAT32, abs=FLOAT32)
    assert 0 < sum(right) < len(right)


def test_who_knows_the_text_answers_all(source: PackedText) -> None:
    questions = held_out(source)
    model = knowing([[*context, *choices[0]] for context, choices, _ in questions], VOCAB)
    found = answer(model, questions, source.token_bytes, batch_tokens=64)
    assert found.correct.mean() == 1
    assert found.margin.min() > 0


def test_who_knows_nothing_is_right_one_time_in_four(source: PackedText) -> None:
    """With tokens of one length all four are equally likely: a quarter of a point each, whatever stands first."""
    found = answer(uniform(VOCAB), held_out(source), np.ones(VOCAB, dtype=np.int32), batch_tokens=64)
    assert found.correct.tolist() == [0.25] * 40
    assert found.margin.tolist() == [0.0] * 40


def test_length_is_normalised_by_bytes() -> None:
    """Equal nats a byte are a tie, although the longer continuation is less likely in total; and bytes decide."""
    token_bytes = np.array([0, 1, 4, 2, 2], dtype=np.int32)
    tie = Choice([0], [[1, 1], [1], [1, 1, 1], [1]], 0)  # 1 byte a token, the same nats a token
    assert answer(uniform(5), [tie], token_bytes, batch_tokens=64).correct.tolist() == [0.25]
    longer = Choice([0], [[2, 2], [1, 1], [3, 3], [4, 4]], 0)  # 8 bytes for the price of 2 or 4
    found = answer(uniform(5), [longer], token_bytes, batch_tokens=64)
    assert found.correct.tolist() == [1.0]
    assert found.margin == pytest.approx([2 * math.log(5) * (1 / 4 - 1 / 8)], rel=FLOAT32)


def test_by_context_a_common_text_is_no_likelier() -> None:
    """Of a text that is likely anywhere and one that the context makes likely, the second is chosen; with 2 bytes each
    the score is half the nats that the context saves."""
    log = torch.tensor([[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.5, 0.2, 0.1, 0.1]]).log()  # after 0, and after 1
    question = Choice([0, 1], [[2], [1], [3], [4]], 0)
    model, token_bytes = Stub(lambda read: log[read[-1]]), np.full(5, 2, dtype=np.int32)
    assert answer(model, [question], token_bytes, batch_tokens=64).correct.tolist() == [0.0]
    plain, found = answer_both_ways(model, [question], token_bytes, start=0, batch_tokens=64)
    assert plain.correct.tolist() == [0.0]
    assert found.correct.tolist() == [1.0]
    assert found.margin == pytest.approx([math.log(0.2 / 0.1) / 2], rel=FLOAT32)  # the others but 1 save nothing
    _, guessed = answer_both_ways(uniform(5), [question], token_bytes, start=0, batch_tokens=64)
    assert guessed.correct.tolist() == [0.25]


def test_bigrams_of_the_training_text_beat_chance(source: PackedText) -> None:
    counts = torch.full((VOCAB, VOCAB), 0.1)
    tokens = torch.from_numpy(source.store.train.tokens.astype(np.int64))
    counts.index_put_((tokens[:-1], tokens[1:]), torch.tensor(1.0), accumulate=True)
    logits = counts.log()
    questions = held_out(source, count=400, context=3, continuation=2)
    found = answer(Stub(lambda read: logits[read[-1]]), questions, source.token_bytes, batch_tokens=640)
    assert found.correct.mean() > 0.25 + 4 * math.sqrt(0.25 * 0.75 / 400)  # four standard deviations of guessing


def test_too_little_text_is_an_error(source: PackedText) -> None:
    message = r"cloze_context=99996 is not valid: smaller: .* domain 'text' have no 4 windows of 99996 \+ 4 tokens"
    with pytest.raises(ConfigError, match=message):
        held_out(source, context=99_996)


# ---- copying ----


def test_strings_are_different_frequent_tokens() -> None:
    tokens = np.repeat(np.arange(100), np.arange(100))  # token n stands n times
    shown = copying.strings(np.append(tokens, [0] * 1000), count=5, length=20)  # <|endoftext|> most of all
    assert shown.shape == (5, 20)
    assert shown.min() >= 100 - copying.SYMBOLS
    assert all(len(set(row)) == 20 for row in shown.tolist())
    assert len(np.unique(shown)) > 40
    with pytest.raises(ConfigError, match="copying_length=65 is not valid: at most 64"):
        copying.strings(tokens, count=5, length=65)


def test_copying_is_scored_on_the_second_copy() -> None:
    """A model that repeats what followed the last time is perfect there; one that knows nothing gains nothing."""
    shown = copying.strings(np.arange(80), count=4, length=6)

    def induction(read: tuple[int, ...]) -> torch.Tensor:
        logits = torch.zeros(80)
        if read[-1] in read[:-1]:
            logits[read[read.index(read[-1]) + 1]] = math.log(79)
        return logits

    found = copying.copy(Stub(induction), shown, batch_tokens=30)
    assert found.accuracy == 1
    assert found.gain == pytest.approx(math.log(80) - math.log(2), rel=FLOAT32)  # of 1 / 80, a half
    assert copying.copy(uniform(80), shown, batch_tokens=30).gain == pytest.approx(0, abs=FLOAT32)


def test_guessing_a_symbol_is_right_by_chance() -> None:
    """The stated chance, within four standard deviations."""
    shown, draw = copying.strings(np.arange(1, 65), count=100, length=40), torch.Generator().manual_seed(0)
    hidden = torch.tensor([-9.0] + [0.0] * copying.SYMBOLS)  # <|endoftext|> is no symbol
    guessing = Stub(lambda _: hidden + torch.rand(65, generator=draw))
    found = copying.copy(guessing, shown, batch_tokens=10**6)
    expected = chance("bench/copying")
    assert expected == 1 / copying.SYMBOLS
    assert abs(found.accuracy - expected) < 4 * math.sqrt(expected / 3900)


# ---- arithmetic ----


def test_exercises_have_one_right_answer(two_domains: PackedText) -> None:
    tokenizer = two_domains.store.tokenizer
    questions = exercises.questions(tokenizer, domain=0, count=12, longest=4096)
    for context, choices, _ in questions:
        text, answers = tokenizer.decode(context), [tokenizer.decode(choice) for choice in choices]
        assert text.endswith("Answer:")
        assert all(other.startswith(" ") for other in answers)
        assert len(set(answers)) == CHOICES
    first = tokenizer.decode(questions[0].context).splitlines()[0]
    a, b, c = (int(word.rstrip(".")) for word in first.split() if word.rstrip(".").isdigit())
    assert tokenizer.decode(questions[0].continuations[0]) == f" {a + b - c}"
    known = knowing([[*context, *choices[0]] for context, choices, _ in questions], VOCAB)
    assert answer(known, questions, two_domains.token_bytes, batch_tokens=4096).correct.mean() == 1
    short = exercises.questions(tokenizer, domain=0, count=12, longest=20)
    for whole, cut in zip(questions, short, strict=True):
        longest = max(map(len, whole.continuations))
        assert list(cut.context) == list(whole.context)[-(20 - longest) :]


# ---- all together ----


def run(source: Source, model: torch.nn.Module, batch_tokens: int) -> dict[str, float]:
    assert isinstance(source, PackedText)
    return SIZES.build(source).run(model, batch_tokens=batch_tokens)


def test_metrics_do_not_depend_on_the_batch_nor_on_chance(two_domains: PackedText) -> None:
    model = dsv2.load(["model=tiny", "model.dim=16", f"data.vocab_size={VOCAB}"]).model.build().train()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    found = run(two_domains, model, 512)
    assert model.training
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]  # noqa: NPY002
    assert found.keys() == {
        "bench/cloze",
        "bench/cloze_margin",
        "bench/cloze_context",
        "bench/cloze_maths",
        "bench/cloze_words",
        "bench/copying",
        "bench/copying_gain",
        "bench/arithmetic",
    }
    assert found["bench/cloze"] == pytest.approx((found["bench/cloze_maths"] + found["bench/cloze_words"]) / 2)
    torch.rand(3)
    assert run(two_domains, model, 512) == found
    for batch_tokens in (1, 4096):
        other = run(two_domains, model, batch_tokens)
        for name, value in found.items():
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
    assert quantity("bench/cloze_code").label == "cloze questions, code (share right)"
    assert quantity("val/bpb_maths").label == "validation loss, maths (bits/byte)"
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
        (["trainer.sequence_length=40"], "benchmarks.cloze_context=32 is not valid: 48 tokens a question"),
        (["benchmarks.copying_length=1"], "benchmarks.copying_length=1 is not valid: 2 to 64"),
        (["benchmarks.exercises=0"], "benchmarks.exercises=0 is not valid: positive"),
    ],
)
def test_impossible_benchmarks_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dsv2.load(["benchmarks=text", *overrides])
