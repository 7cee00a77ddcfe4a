"""`python -m dsv2 generate`: the text that the model writes, through the run's own tokenizer, or one clear line."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import dsv2
from dsv2.__main__ import main
from dsv2.commands.generate import generate_text
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


def test_64_tokens_are_written_greedily_unless_said(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = generate_text(trained, "Ban", max_new_tokens=64, temperature=0.0, seed=0)
    assert generated(capsys, trained, "--prompt", "Ban") == expected
    assert generated(capsys, trained, "--prompt", "Ban", "--seed", 1) == expected


def test_samples_follow_their_seed_and_temperature(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampled = [trained, "--prompt", "Ban", "--max-new-tokens", 20, "--temperature", 1]
    first, again, other = (generated(capsys, *sampled, "--seed", seed) for seed in (0, 0, 1))
    assert first == again == generated(capsys, *sampled)
    assert first != other
    cold = generate_text(trained, "Ban", max_new_tokens=20, temperature=1e-6, seed=3)
    assert cold == generate_text(trained, "Ban", max_new_tokens=20, temperature=0.0, seed=0)


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
        (["--prompt", "Ban", "--max-new-tokens", "-1"], "max_new_tokens=-1: must be 0 or more"),
        (["--prompt", "Ban", "--temperature", "-0.5"], "temperature=-0.5: must be 0 (greedy) or more"),
        (["--prompt", "Ban", "--temperature", "nan"], "temperature=nan: must be 0 (greedy) or more"),
        (["--prompt", "Ban", "--seed", str(2**64)], f"seed={2**64}: "),
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
        (["RUN"], "required: --prompt"),
        (["--prompt", "Ban"], "required: RUN"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["generate", *arguments])
        assert named in capsys.readouterr().err


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


def test_a_model_with_more_ids_than_tokens_writes_text(quick: list[str], tmp_path: Path) -> None:
    """As by default in v2_lite: 102,400 ids, of which a small corpus has few; drawn at random, most would be empty."""
    run = tmp_path / "run"
    fit.fit(dsv2.load([*quick, "model.vocab_size=5000", "trainer.tokens=128"]), run)
    opened = open_run(run)
    assert opened.tokenizer.vocab_size == 5000 > len(opened.tokenizer.ids)
    pieces = [generate_text(run, "Ban", max_new_tokens=8, temperature=100.0, seed=seed) for seed in range(4)]
    assert all(len(text) > 4 for text in pieces)
    tokens = dsv2.generate(
        opened.model, torch.tensor([[5]]), max_new_tokens=50, temperature=100.0, ids=opened.tokenizer.ids
    )
    assert set(tokens[0].tolist()) <= set(opened.tokenizer.ids.tolist())


def test_a_tokenizer_larger_than_its_model_is_named(imported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((imported / "tokenizer.json").read_text())
    content["model"]["vocab"]["<far>"] = 5000
    content["added_tokens"] += [content["added_tokens"][-1] | {"id": 5000, "content": "<far>"}]
    (imported / "tokenizer.json").write_text(json.dumps(content))
    message = "prompt='Ban <far>': has the token 5000, but the model's vocabulary has 320"
    assert refusal(capsys, "generate", imported, "--prompt", "Ban <far>") == message
    assert generated(capsys, imported, "--prompt", "Ban", "--max-new-tokens", 4, "--temperature", 1e-50)
