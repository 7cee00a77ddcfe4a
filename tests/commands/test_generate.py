"""`python -m dsv2 generate`: the text that the model writes, through the run's own tokenizer, or one clear line."""

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import dsv2
from dsv2.__main__ import main
from dsv2.commands import generate
from dsv2.data.tokenizer import END_ID
from dsv2.training import fit
from dsv2.training.saved import open_run
from tests.references.commands import refusal


def generated(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command prints on stdout, without its last line break."""
    assert main(["generate", *map(str, arguments)]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("\n")
    return printed[:-1]


def test_the_command_prints_the_prompt_and_what_the_model_writes(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_run(trained)
    ids = opened.tokenizer.encode("Ban ben")
    expected = dsv2.generate(opened.model, torch.tensor([ids]), max_new_tokens=5)[0].tolist()
    assert len(expected) == len(ids) + 5
    text = generated(capsys, trained, "--prompt", "Ban ben", "--max-new-tokens", 5)
    assert text == opened.tokenizer.decode(expected)
    assert text.startswith("Ban ben")
    assert generated(capsys, trained, "--prompt", "Ban ben", "--max-new-tokens", 0) == "Ban ben"


def test_an_answer_is_greedy_and_64_tokens_at_most_unless_said(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run was trained on 32 tokens, which prompt and answer have together; a warning says so."""
    ids = open_run(trained).tokenizer.encode("Ban")
    expected = dsv2.generate(open_run(trained).model, torch.tensor([ids]), max_new_tokens=64)[0].tolist()
    assert END_ID not in expected
    text = open_run(trained).tokenizer.decode
    assert generated(capsys, trained, "--prompt", "Ban", "--seed", 1) == text(expected[:32])
    assert generated(capsys, trained, "--prompt", "Ban", "--context", 100) == text(expected)
    main(["generate", str(trained), "--prompt", "Ban"])
    warning = "warning: 1 of 1 answers reached the context of 32 tokens; --context sets another\n"
    assert capsys.readouterr().err == warning


def test_samples_follow_their_seed_and_temperature(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampled = [trained, "--prompt", "Ban", "--max-new-tokens", 20, "--temperature", 1]
    first, again, other = (generated(capsys, *sampled, "--seed", seed) for seed in (0, 0, 1))
    assert first == again == generated(capsys, *sampled)
    assert first != other
    greedy = generated(capsys, *sampled[:-1], 0)
    limits = (["--top-k", 1], ["--top-p", 1e-6], ["--min-p", 1])
    assert {generated(capsys, *sampled, *limit, "--seed", 3) for limit in limits} == {greedy}
    assert generated(capsys, *sampled[:-1], 1e-6, "--seed", 3) == greedy
    assert generated(capsys, *sampled[:-1], 0, "--repetition-penalty", 5) != greedy


def objects(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in generated(capsys, *arguments, "--json").splitlines()]


def test_prompts_of_a_file_are_answered_in_order_each_as_alone(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also two at a time, with answers that end early; from standard input too."""
    prompts = ["Ban ben", "L", "Dist dust den bin bon", "naïve 学习"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    settings = ["--temperature", 1, "--max-new-tokens", 9, "--seed", 4, "--stop", "e"]
    alone = [objects(capsys, trained, "--prompt", prompt, *settings, "--samples", 3) for prompt in prompts]
    together = objects(capsys, trained, "--prompts", tmp_path / "prompts.txt", *settings, "--samples", 3)
    assert together == [answer for answers in alone for answer in answers]
    two = ["--batch-size", 2, "--samples", 3]
    assert objects(capsys, trained, "--prompts", tmp_path / "prompts.txt", *settings, *two) == together
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(prompts)))
    assert objects(capsys, trained, "--prompts", "-", *settings, "--samples", 3) == together
    assert [(answer["prompt"], answer["sample"]) for answer in together[:4]] == [
        *((prompts[0], sample) for sample in range(3)),
        (prompts[1], 0),
    ]
    assert len({answer["text"] for answer in together}) > 8
    decode = open_run(trained).tokenizer.decode
    for answer in together:
        assert answer["finish_reason"] == ("stop" if "e" in decode(answer["tokens"]) else "length")
        assert answer["text"] == decode(answer["tokens"]).partition("e")[0]


def test_log_probabilities_are_those_of_the_model(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (answer,) = objects(capsys, trained, "--prompt", "Ban ben", "--max-new-tokens", 6, "--log-probabilities")
    opened = open_run(trained)
    ids = opened.tokenizer.encode("Ban ben")
    whole = torch.tensor([[*ids, *answer["tokens"]]])
    with torch.no_grad():
        logits = opened.model(whole).logits[0, len(ids) - 1 : -1, opened.tokenizer.ids]
    expected = logits.log_softmax(-1).amax(-1)
    assert answer["log_probabilities"] == pytest.approx(expected.tolist(), abs=1e-4)


def test_several_answers_are_told_apart(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = generated(capsys, trained, "--prompt", "Ban", "--max-new-tokens", 4, "--samples", 2)
    answer = generated(capsys, trained, "--prompt", "Ban", "--max-new-tokens", 4)
    assert text == f"--- prompt 1, sample 1: length\n{answer}\n--- prompt 1, sample 2: length\n{answer}"


def test_a_text_ends_where_the_model_ends_it(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token that ends texts is the answer's last and no part of its text."""
    (whole,) = objects(capsys, trained, "--prompt", "Ban")
    opened = open_run(trained)
    opened.tokenizer.end_id = whole["tokens"][3]
    place = whole["tokens"].index(opened.tokenizer.end_id)
    monkeypatch.setattr(generate, "open_run", lambda _, **settings: opened)
    (answer,) = objects(capsys, trained, "--prompt", "Ban")
    assert answer["finish_reason"] == "stop"
    assert answer["tokens"] == whole["tokens"][: place + 1]
    assert answer["text"] == opened.tokenizer.decode(whole["tokens"][:place])


def test_any_text_is_a_prompt(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for prompt in ("naïve 学习 🙂", "  two\n\nlines\t", "<|endoftext|>", "--prompt"):
        assert generated(capsys, trained, f"--prompt={prompt}", "--max-new-tokens", 0) == prompt


def test_the_token_that_begins_texts_is_read_and_not_printed(
    imported: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An imported model whose tokenizer says `<begin>` before every text, which the trained one does not."""
    opened = open_run(imported)
    begin = opened.tokenizer.start_id
    ids = [begin, *open_run(trained).tokenizer.encode("Ban")]
    expected = dsv2.generate(opened.model, torch.tensor([ids]), max_new_tokens=8)[0, 1:].tolist()
    text = generated(capsys, imported, "--prompt", "Ban", "--max-new-tokens", 8)
    assert text == opened.tokenizer.decode(expected)
    assert text.startswith("Ban")
    assert generated(capsys, imported, "--prompt", "", "--max-new-tokens", 0) == ""  # <begin> is enough to go on from


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "prompt='': must have at least one character"),
        (["--prompt", "Ban", "--max-new-tokens", "-1"], "max_new_tokens=-1 is not valid: 0 or more"),
        (["--prompt", "Ban", "--temperature", "-0.5"], "temperature=-0.5 is not valid: 0 (greedy) or more"),
        (["--prompt", "Ban", "--temperature", "nan"], "temperature=nan is not valid: 0 (greedy) or more"),
        (["--prompt", "Ban", "--seed", str(2**64)], f"seed={2**64} is not valid: "),
        (["--prompt", "Ban", "--top-k", "0"], "top_k=0 is not valid: 1 or more"),
        (["--prompt", "Ban", "--top-p", "1.5"], "top_p=1.5 is not valid: more than 0, and at most 1"),
        (["--prompt", "Ban", "--min-p", "-1"], "min_p=-1.0 is not valid: "),
        (["--prompt", "Ban", "--repetition-penalty", "0"], "repetition_penalty=0.0 is not valid: "),
        (["--prompt", "Ban", "--samples", "0"], "samples=0 is not valid: 1 or more"),
        (["--prompt", "Ban", "--batch-size", "0"], "batch_size=0 is not valid: 1 or more"),
        (["--prompt", "Ban", "--context", "1"], "context=1 is not valid: 2 or more"),
        (["--prompt", "Ban", "--samples", "1000001"], "samples=1000001 is not valid: at most 1,000,000 to each of 1 "),
        (
            ["--prompt", "Ban", "--context", str(2**45), "--max-new-tokens", str(2**45)],
            f"max_length={2**45} is not valid: less, since 1 x {2**45:,} tokens do not fit in memory; RuntimeError: ",
        ),
        (["--prompt", "Ban", "--stop", ""], "stops=('',) is not valid: strings of at least one character"),
        (["--prompt", "Ban ben " * 40], "prompt='Ban ben Ban ben"),
        (["--prompts", "nowhere.txt"], "nowhere.txt: No such file or directory"),
        (["--prompt", "Ban \udcff"], "prompt='Ban \\udcff': "),  # a byte in the shell's arguments that is not UTF-8
    ],
)
def test_mistakes_are_one_line(
    trained: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert refusal(capsys, "generate", trained, *arguments).startswith(message)


def test_arguments_that_are_no_numbers_or_missing_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, named in (
        (["RUN", "--prompt", "Ban", "--max-new-tokens", "many"], "--max-new-tokens: invalid int value: 'many'"),
        (["RUN"], "one of the arguments --prompt --prompts is required"),
        (["--prompt", "Ban"], "required: RUN"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["generate", *arguments])
        assert named in capsys.readouterr().err


def test_prompts_that_are_too_long_or_none_are_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any answer; the context is what the run was trained on, or what is said."""
    path = tmp_path / "prompts.txt"
    ids = len(open_run(trained).tokenizer.encode("Ban ben " * 20))
    path.write_text("Ban\n" + "Ban ben " * 20)
    said = refusal(capsys, "generate", trained, "--prompts", path)
    assert said.startswith("prompt='Ban ben Ban ben")
    assert said.endswith(f"less than 32 tokens, the context, so that an answer has room; it has {ids}")
    assert len(objects(capsys, trained, "--prompts", path, "--context", ids + 1)) == 2
    for text, number in (("Ban\n\nBen\n", 2), ("", 1)):
        path.write_text(text)
        line = f"{path}: line {number} is empty; there must be one prompt per line"
        assert refusal(capsys, "generate", trained, "--prompts", path) == line
    path.write_bytes(b"Ban \xff")
    assert refusal(capsys, "generate", trained, "--prompts", path).startswith(f"{path}: not text in UTF-8; ")


def test_a_run_without_weights_is_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(trained / "checkpoints")
    assert refusal(capsys, "generate", trained, "--prompt", "Ban") == (
        f"{trained}: has neither model.safetensors nor a valid checkpoint; to train it again, "
        f"delete {trained / 'result.json'} and run its command again"
    )


def test_without_a_tokenizer_there_is_no_text(
    imported: Path, quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (imported / "tokenizer.json").unlink()
    assert refusal(capsys, "generate", imported, "--prompt", "Ban") == (
        f"{imported}: an imported model without tokenizer.json; copy its tokenizer files there"
    )
    settings = [word for word in quick if not word.startswith("data")]
    fit.fit(dsv2.load([*settings, "data=synthetic", "trainer.tokens=128"]), tmp_path / "numbers")
    assert refusal(capsys, "generate", tmp_path / "numbers", "--prompt", "Ban") == (
        f"{tmp_path}/numbers: its data are not text, so it has no tokenizer"
    )


def test_a_damaged_tokenizer_is_named(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((trained / "tokenizer.json").read_text())
    for damaged in ("{", json.dumps(content | {"model": 3})):
        (trained / "tokenizer.json").write_text(damaged)
        assert refusal(capsys, "generate", trained, "--prompt", "Ban").startswith(f"{trained}/tokenizer.json: ")


def test_a_model_with_more_ids_than_tokens_writes_text(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As by default in v2_lite: 102,400 ids, of which a small corpus has few; drawn at random, most would be empty."""
    run = tmp_path / "run"
    fit.fit(dsv2.load([*quick, "model.vocab_size=5000", "trainer.tokens=128"]), run)
    tokenizer = open_run(run).tokenizer
    assert tokenizer.vocab_size == 5000 > len(tokenizer.ids)
    answers = objects(
        capsys, run, "--prompt", "Ban", "--max-new-tokens", 12, "--temperature", 100, "--samples", 9, "--stop", "zzz"
    )
    assert {token for answer in answers for token in answer["tokens"]} <= set(tokenizer.ids.tolist())


def test_a_tokenizer_larger_than_its_model_is_named(imported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((imported / "tokenizer.json").read_text())
    content["model"]["vocab"]["<far>"] = 5000
    content["added_tokens"] += [content["added_tokens"][-1] | {"id": 5000, "content": "<far>"}]
    (imported / "tokenizer.json").write_text(json.dumps(content))
    message = "prompt='Ban <far>': has the token 5000, but the model's vocabulary has 320"
    assert refusal(capsys, "generate", imported, "--prompt", "Ban <far>") == message
    assert generated(capsys, imported, "--prompt", "Ban", "--max-new-tokens", 4, "--temperature", 1e-50)
