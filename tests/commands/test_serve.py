"""`python -m dsv2 serve RUN`: a process that answers OpenAI's client until it is stopped, or one clear line."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import openai
import pytest
import torch

import dsv2
from dsv2.__main__ import main
from dsv2.data.tokenizer import END_ID
from dsv2.training.saved import open_run
from tests.references.commands import refusal


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_run_is_served_until_it_is_stopped(
    trained: Path, capsys: pytest.CaptureFixture[str], stop: signal.Signals, status: int
) -> None:
    """With the answers of `generate`, in a conversation too; a stream that is under way does not keep it running."""
    assert main(["generate", str(trained), "--prompt", "Ban", "--max-new-tokens", "9", "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)["text"]
    run, messages = open_run(trained), [{"role": "user", "content": "Ban"}]
    prompt = torch.tensor([run.chat.prompt(messages)])
    tokens = dsv2.generate(run.model, prompt, max_new_tokens=9, ids=run.tokenizer.ids)[0, prompt.shape[1] :].tolist()
    answer = run.tokenizer.decode(tokens[: tokens.index(END_ID)] if END_ID in tokens else tokens)
    command = [sys.executable, "-m", "dsv2", "serve", str(trained), "--port", "0", "--context", "20000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline().strip() for _ in range(3)]
        client = openai.OpenAI(base_url=lines[-1], api_key="none", max_retries=0)
        name = lines[0].removeprefix("model: ")
        assert [model.id for model in client.models.list()] == [name] == ["moe-s0"]
        made = client.completions.create(model=name, prompt="Ban", max_tokens=9, temperature=0)
        assert made.choices[0].text == expected
        reply = client.chat.completions.create(model=name, messages=messages, max_tokens=9, temperature=0)
        assert reply.choices[0].message.content == answer.removeprefix(" ")
        stream = client.completions.create(model=name, prompt="Ban", max_tokens=19_000, stream=True)
        next(stream)
        process.send_signal(stop)
        with pytest.raises(openai.APIError, match="the server is shutting down"):
            list(stream)
        assert process.wait(30) == status
    finally:
        process.kill()
    assert process.stderr is not None
    assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "port=70000: must be between 0 and 65535"),
        (["--rows", "0"], "rows=0 is not valid: 1 or more"),
        (["--waiting", "-1"], "waiting=-1 is not valid: 0 or more"),
        (["--context", "1"], "context=1 is not valid: 2 or more"),
    ],
)
def test_mistakes_are_one_line(
    trained: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert refusal(capsys, "serve", trained, *arguments) == message


def test_a_port_in_use_is_named(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = f"port={port}: in use by another process; choose another, or 0 for any free one"
        assert refusal(capsys, "serve", trained, "--port", port) == message


def test_what_has_no_text_is_not_served(imported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (imported / "tokenizer.json").unlink()
    assert "without tokenizer.json" in refusal(capsys, "serve", imported, "--port", 0)
    assert "nowhere" in refusal(capsys, "serve", "nowhere", "--port", 0)
