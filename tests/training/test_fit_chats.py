"""Fine-tuning on conversations as a run like any other: from any run, resumed exactly, opened again."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

import dsv2
from dsv2.__main__ import main
from dsv2.config import ConfigError
from dsv2.data.chat import ChatTemplate
from dsv2.data.chats import Chats
from dsv2.evaluation.validation import evaluate
from dsv2.training import fit
from dsv2.training.saved import open_run
from tests.references.commands import refusal
from tests.references.runs import rows

DATA = ["data=instructions", "data.vocab_size=300", "data.instances=200", "data.held_out=40"]
DATA += ["data.tasks=[copy,brackets]", "data.sizes=[1,3]", "trainer.sequence_length=64"]
BENCHMARK = ["benchmarks=following", "benchmarks.prompts=6", "benchmarks.samples=2", "benchmarks.max_new_tokens=4"]


@pytest.fixture
def chatty(quick: list[str]) -> list[str]:
    """Overrides of a run of 12 steps on instructions."""
    kept = [word for word in quick if not word.startswith(("data", "trainer.sequence_length", "trainer.tokens"))]
    return [*kept, *DATA, f"trainer.tokens={12 * 4 * 64}"]


def test_a_run_on_conversations_leaves_what_every_run_does(
    chatty: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = dsv2.load([*chatty, *BENCHMARK])
    result = fit.fit(run, tmp_path / "run")
    said = capsys.readouterr().err
    assert "data: 200 conversations in " in said
    assert " tokens are an epoch, these are " in said
    assert result["status"] == "finished"
    logged = rows(tmp_path / "run")
    assert logged[-1]["train/ce"] < logged[0]["train/ce"]
    assert {"val/bpb_brackets", "val/bpb_copy", "bench/following", "bench/following_copy"} <= result["metrics"].keys()
    opened = open_run(tmp_path / "run")
    assert isinstance(opened.source, Chats)
    measured = evaluate(opened.model, opened.validation, batch_size=4, token_bytes=opened.source.token_bytes)
    assert measured["val/loss"] == pytest.approx(result["metrics"]["val/loss"], rel=1e-5)
    alone = []
    template = ChatTemplate(opened.tokenizer)
    for prompt in opened.source.held_out_prompts[:20]:
        answer = prompt.verifier.answer  # type: ignore[union-attr]
        asked = opened.tokenizer.decode(prompt.ids).partition("User: ")[2].partition("\n")[0]
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        ids, mask = template.conversation(messages)
        assert ids[: len(prompt.ids)] == prompt.ids
        with torch.no_grad():
            logs = opened.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        alone += [-logs[place - 1, ids[place]].item() for place in range(len(ids)) if mask[place]]
    assert sum(alone) / len(alone) == pytest.approx(result["metrics"]["val/loss"], rel=0.2), "no mask was forgotten"


@pytest.mark.parametrize("crash_at", [3, 7, 12])
def test_a_crashed_run_ends_as_if_it_had_not(
    chatty: list[str], tmp_path: Path, crashing: Callable[[int], AbstractContextManager[None]], crash_at: int
) -> None:
    run = dsv2.load([*chatty, *BENCHMARK])
    fit.fit(run, tmp_path / "whole")
    with crashing(crash_at):
        fit.fit(run, tmp_path / "killed")
    fit.fit(run, tmp_path / "killed")
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    one, other = (open_run(tmp_path / name).model.state_dict() for name in ("whole", "killed"))
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


@pytest.mark.parametrize("kind", ["trained", "imported"])
def test_any_run_can_be_tuned_with_its_own_tokenizer(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A trained run, and an imported model whose template writes a BOS of its own, which is there once."""
    origin = request.getfixturevalue(kind)
    words = [f"init_from={origin}", *(word for word in DATA if "vocab_size" not in word), *BENCHMARK]
    words += ["trainer.batch.size=4", "trainer.tokens=1024", "trainer.validation_tokens=256", "trainer.log_every=2"]
    words += ["trainer.validate_every=4", "trainer.checkpoint_every=4", "trainer.progress=false"]
    run = dsv2.load([*words, "trainer.accelerator=cpu", "logger.wandb.mode=disabled"])
    fit.fit(run, tmp_path / "tuned")
    tuned, before = open_run(tmp_path / "tuned"), open_run(origin)
    assert tuned.tokenizer.hash == before.tokenizer.hash
    assert isinstance(tuned.source, Chats)
    start = before.tokenizer.prefix[0] if before.tokenizer.prefix else 0
    for prompt in tuned.source.prompts[:5]:
        assert prompt.ids[0] == start
        assert prompt.ids.count(start) == 1
    assert tuned.source.stop_ids == {before.tokenizer.end_id}
    moved = tuned.model.state_dict()
    assert any(not torch.equal(weight, moved[name]) for name, weight in before.model.state_dict().items())


def test_conversations_of_the_user_are_learned_and_found_again(
    quick: list[str], tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Opened after the file is gone; scored by eval as by the run."""
    lines = [
        {
            "messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": str(n)}],
            "verifier": {"answer": str(n)},
        }
        for n in range(80)
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    kept = [word for word in quick if not word.startswith(("data", "trainer.tokens", "trainer.sequence_length"))]
    words = [*kept, "data=chats", f"data.path={path}", "data.vocab_size=300", "trainer.sequence_length=40"]
    run = dsv2.load([*words, *BENCHMARK, "trainer.tokens=640", "trainer.validation_tokens=120"])
    folder = runs / "train" / run.fingerprint()
    result = fit.fit(run, folder)
    path.unlink()
    assert len(open_run(folder).validation.inputs) == 3
    out = tmp_path / "scores.json"
    assert main(["eval", str(folder), "--tasks", "following", "--out", str(out)]) == 0
    scores = {row["metric"]: row["value"] for row in json.loads(out.read_text())["scores"]}
    assert scores == {name: value for name, value in result["metrics"].items() if name.startswith("bench/")}
    assert "needs held-out text" in refusal(capsys, "eval", folder, "--tasks", "cloze")


def test_eval_of_following_needs_conversations(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "eval", trained, "--tasks", "following")
    assert said.startswith("following: needs conversations, such as --text data=instructions")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["benchmarks=text"], "benchmarks='text' is not valid: following or none for conversations"),
        (["deployment=kv"], "deployment.kv=.* is not valid: null, since several conversations in a sequence"),
    ],
)
def test_what_conversations_cannot_have_is_refused(chatty: list[str], words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dsv2.load([*chatty, *words])


def test_following_is_of_conversations(quick: list[str]) -> None:
    with pytest.raises(ConfigError, match="benchmarks='following' is not valid: one of text, following is of conv"):
        dsv2.load([*quick, "benchmarks=following"])
