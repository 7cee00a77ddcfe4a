"""The server, asked by OpenAI's own client: what it answers is what the engine gives, and who leaves costs nothing."""

import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
import torch

import dsv2
from dsv2.data.chat import ChatTemplate
from dsv2.data.tokenizer import Tokenizer
from dsv2.evaluation.judges.endpoint import EndpointJudge
from dsv2.evaluation.judges.protocol import Failed, Question
from dsv2.inference.engine.request import Request
from dsv2.inference.reader import Reader
from dsv2.inference.sampling import Sampling
from dsv2.inference.server import app as server
from tests.references.generation import alone, small_model
from tests.references.tolerances import FLOAT32

Start = Callable[..., str]
USER: Any = [{"role": "user", "content": "ban ben"}]


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30)


@pytest.fixture
def client(served: Start) -> openai.OpenAI:
    return client_of(served())


def expected(reader: Reader, prompt: str, new: int, sample: int = 0, **sampling: Any) -> str:
    """The text of an answer, decoded without a server, an engine or a cache."""
    request = Request(
        prompt=reader.prompt(prompt),
        max_new_tokens=new,
        sampling=Sampling(**sampling),
        sample=sample,
        stop_ids=frozenset([reader.tokenizer.end_id]),
    )
    tokens, _ = alone(reader.model, request)
    return reader.tokenizer.decode(token for token in tokens if token != reader.tokenizer.end_id)


class Slow:
    """A model that takes its time for each pass, and notes how many it has made; it can be told to fail."""

    def __init__(self, vocab_size: int) -> None:
        self.passes, self.failing = 0, False
        self.model = small_model(vocab_size=vocab_size)
        self.hidden, self.model.hidden = self.model.hidden, self.slow

    def slow(self, *arguments: Any, **settings: Any) -> Any:
        self.passes += 1
        time.sleep(0.02)
        if self.failing:
            raise RuntimeError("no memory is left")
        return self.hidden(*arguments, **settings)


@pytest.fixture
def slow(reader: Reader) -> Slow:
    return Slow(reader.model.config.vocab_size)


def health(url: str) -> tuple[int, int]:
    state = httpx.get(f"{url}/health").json()
    return state["running"], state["waiting"]


def until(condition: Callable[[], bool]) -> None:
    """Wait up to 20 seconds for a condition."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


# ---- answers ---------------------------------------------------------------------------------------------------------


def test_an_answer_is_what_generate_gives(client: openai.OpenAI, reader: Reader) -> None:
    made = client.completions.create(model="small", prompt="ban ben", max_tokens=12, temperature=0)
    ids = torch.tensor([reader.prompt("ban ben")])
    tokens = dsv2.generate(reader.model, ids, max_new_tokens=12, ids=reader.tokenizer.ids)[0, ids.shape[1] :].tolist()
    assert reader.tokenizer.end_id not in tokens
    (choice,) = made.choices
    assert (choice.text, choice.finish_reason, choice.index) == (reader.tokenizer.decode(tokens), "length", 0)
    assert made.usage is not None
    assert (made.usage.prompt_tokens, made.usage.completion_tokens, made.usage.total_tokens) == (
        ids.shape[1],
        12,
        ids.shape[1] + 12,
    )


def test_prompts_and_samples_are_each_as_alone(client: openai.OpenAI, reader: Reader) -> None:
    """Three prompts with three answers each, more than there are rows; as strings and as ids."""
    prompts = ["ban ben lor dist ban ben", "l", "dist den"]
    ids = [reader.prompt(prompt) for prompt in prompts]
    wanted = [
        expected(reader, prompt, 10, sample, temperature=1.2, top_k=20, seed=7)
        for prompt in prompts
        for sample in range(3)
    ]
    for prompt in (prompts, ids):
        made = client.completions.create(
            model="small", prompt=prompt, n=3, max_tokens=10, temperature=1.2, seed=7, extra_body={"top_k": 20}
        )
        assert [choice.text for choice in made.choices] == wanted
        assert [choice.index for choice in made.choices] == list(range(9))
    one = client.completions.create(model="small", prompt=ids[1], max_tokens=10, temperature=0)
    assert one.choices[0].text == expected(reader, "l", 10)


def test_many_clients_are_served_together(client: openai.OpenAI, reader: Reader) -> None:
    def ask(seed: int) -> str:
        made = client.completions.create(model="small", prompt="ban " * seed, max_tokens=9, temperature=1, seed=seed)
        return made.choices[0].text

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(ask, range(1, 9)))
    assert texts == [expected(reader, "ban " * seed, 9, temperature=1.0, seed=seed) for seed in range(1, 9)]


def test_a_stream_is_the_same_text_in_pieces(client: openai.OpenAI, reader: Reader) -> None:
    settings: dict[str, Any] = {"model": "small", "prompt": ["ban", "lor"], "n": 2, "max_tokens": 9, "seed": 3}
    whole = client.completions.create(**settings, logprobs=2)
    texts, logs, ends = [""] * 4, [[] for _ in range(4)], [None] * 4
    for chunk in client.completions.create(**settings, logprobs=2, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            ends[choice.index] = choice.finish_reason
            logs[choice.index] += [] if choice.logprobs is None else choice.logprobs.token_logprobs
        last = chunk
    assert texts == [choice.text for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert logs == [pytest.approx(choice.logprobs.token_logprobs, abs=1e-6) for choice in whole.choices]
    assert last.usage == whole.usage
    assert last.choices == []


def test_a_stop_string_ends_an_answer_before_itself(client: openai.OpenAI, reader: Reader) -> None:
    text = expected(reader, "ban ben", 20)
    stop = text[4:6]
    for streamed in (False, True):
        made = client.completions.create(
            model="small", prompt="ban ben", max_tokens=20, temperature=0, stop=["nowhere", stop], stream=streamed
        )
        if streamed:
            choices = [choice for chunk in made for choice in chunk.choices]
            assert "".join(choice.text for choice in choices) == text[: text.index(stop)]
            assert choices[-1].finish_reason == "stop"
        else:
            assert (made.choices[0].text, made.choices[0].finish_reason) == (text[: text.index(stop)], "stop")


def test_log_probabilities_with_an_echo_are_those_of_the_whole_text(client: openai.OpenAI, reader: Reader) -> None:
    """As an evaluation harness asks for them: of the prompt too, with no token made, one, or several."""
    ids = reader.prompt("ban ben lor")
    for new in (0, 1, 4):
        for prompt in ("ban ben lor", ids):
            made = client.completions.create(
                model="small", prompt=prompt, max_tokens=new, temperature=0, echo=True, logprobs=2
            )
            (choice,) = made.choices
            assert choice.text == "ban ben lor" + (expected(reader, "ban ben lor", new) if new else "")
            assert choice.logprobs is not None
            tokens = [*ids, *alone(reader.model, Request(prompt=ids, max_new_tokens=new))[0]]
            with torch.no_grad():
                logs = reader.model(torch.tensor([tokens])).logits[0].log_softmax(-1)
            got = choice.logprobs.token_logprobs
            assert got is not None
            assert got[0] is None
            wanted = [float(logs[place, token]) for place, token in enumerate(tokens[1:])]
            assert got[1:] == pytest.approx(wanted, abs=FLOAT32)
            assert choice.logprobs.tokens is not None
            assert "".join(choice.logprobs.tokens) == choice.text
            offsets = choice.logprobs.text_offset
            assert offsets == [len("".join(choice.logprobs.tokens[:place])) for place in range(len(tokens))]
            assert choice.logprobs.top_logprobs is not None
            tops = [max(top.values()) for top in choice.logprobs.top_logprobs[1:]]
            assert tops == pytest.approx(logs.amax(-1)[: len(tops)].tolist(), abs=FLOAT32)


def test_without_a_seed_answers_differ(client: openai.OpenAI) -> None:
    texts = {client.completions.create(model="small", prompt="ban").choices[0].text for _ in range(4)}
    assert len(texts) == 4


# ---- conversations ---------------------------------------------------------------------------------------------------


def test_a_reply_is_what_generate_gives_after_the_prompt_of_the_template(client: openai.OpenAI, reader: Reader) -> None:
    """Turn by turn, with the client's own message sent back; the prompt is that of the whole conversation so far."""
    chat, messages = ChatTemplate(reader.tokenizer), list[Any]([{"role": "system", "content": "b"}, *USER])
    for turn in range(2):
        made = client.chat.completions.create(model="small", messages=messages, max_tokens=6, temperature=0)
        plain = [{"role": "system", "content": "b"}, *USER]
        if turn:
            plain += [{"role": "assistant", "content": messages[2].content}, {"role": "user", "content": "lor"}]
        ids = torch.tensor([chat.prompt(plain)])
        tokens = dsv2.generate(reader.model, ids, max_new_tokens=6, ids=reader.tokenizer.ids)[0, ids.shape[1] :]
        assert reader.tokenizer.end_id not in tokens
        (choice,) = made.choices
        assert choice.message.content == reader.tokenizer.decode(tokens.tolist()).removeprefix(" ")
        assert (choice.finish_reason, choice.message.role) == ("length", "assistant")
        assert made.usage is not None
        assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (ids.shape[1], 6)
        messages += [choice.message, {"role": "user", "content": "lor"}]


def test_a_streamed_reply_is_the_same(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": "small", "messages": USER, "n": 2, "max_completion_tokens": 9, "seed": 3}
    settings |= {"logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**settings)
    texts, logs, ends, roles = ["", ""], [[], []], [None, None], [None, None]
    for chunk in client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] = choice.finish_reason
            roles[choice.index] = choice.delta.role or roles[choice.index]
            logs[choice.index] += [] if choice.logprobs is None else choice.logprobs.content
        last = chunk
    assert texts == [choice.message.content for choice in whole.choices]
    assert texts[0] != texts[1]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert roles == ["assistant", "assistant"]
    for streamed, choice in zip(logs, whole.choices, strict=True):
        assert [each.token for each in streamed] == [each.token for each in choice.logprobs.content]
        wanted = [each.logprob for each in choice.logprobs.content]
        assert [each.logprob for each in streamed] == pytest.approx(wanted, abs=1e-6)
        assert all(len(each.top_logprobs) == 2 for each in streamed)
    assert last.usage == whole.usage


def test_without_a_limit_a_reply_fills_the_context(client: openai.OpenAI, reader: Reader) -> None:
    made = client.chat.completions.create(model="small", messages=USER, temperature=0)
    size = len(ChatTemplate(reader.tokenizer).prompt(USER))
    assert made.usage is not None
    assert (made.usage.total_tokens, made.usage.prompt_tokens) == (64, size)
    assert made.choices[0].finish_reason == "length"


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["small"]
    assert client.models.retrieve("small").owned_by == "dsv2"
    with pytest.raises(openai.NotFoundError, match="model='other': not served here, only 'small' is"):
        client.models.retrieve("other")


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "ban " * 80}, "prompt='[0-9]+ tokens' is not valid: at most 63 tokens"),
        ({"prompt": ""}, "prompt='': must have at least one character"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[1], []]}, "prompt"),
        ({"prompt": [3, 999]}, "prompt='ids from 3 to 999' is not valid: ids from 0 to "),
        ({"max_tokens": -1}, "max_tokens: "),
        ({"temperature": -1}, "temperature=-1.0 is not valid: 0 \\(greedy\\) or more"),
        ({"top_p": 2}, "top_p=2.0 is not valid"),
        ({"n": 0}, "n: "),
        ({"n": 100, "prompt": ["a", "b"]}, "n=100: 2 prompts with as many answers each are more than 128"),
        ({"n": 12}, "n=12: 12 answers, but at most 11 can wait"),
        ({"logprobs": 21}, "logprobs: "),
        ({"stop": [""]}, "stops="),
        ({"seed": -1}, "seed: "),
        ({"best_of": 3}, "best_of=3: must be n=1"),
        ({"frequency_penalty": 0.5}, "frequency_penalty: "),
        ({"logit_bias": {"5": 1}}, "logit_bias: "),
        ({"suffix": "x"}, "suffix: "),
        ({"extra_body": {"beam_width": 3}}, "beam_width: "),
        ({"extra_body": {"top_k": 0}}, "top_k=0 is not valid"),
    ],
)
def test_what_cannot_be_done_is_named(client: openai.OpenAI, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as refused:
        client.completions.create(**{"model": "small", "prompt": "ban"} | settings)
    assert refused.value.type == "invalid_request_error"


def test_another_model_and_an_unknown_path_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="model='gpt': not served here"):
        client.completions.create(model="gpt", prompt="ban")
    with pytest.raises(openai.NotFoundError, match="model='gpt': not served here"):
        client.chat.completions.create(model="gpt", messages=USER)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="small", input="ban")


def test_bodies_that_are_none_or_too_large_are_refused(served: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without a length in advance; and nothing is read from a page's form, or under another host's name."""
    monkeypatch.setattr(server, "MOST_BYTES", 2000)
    url = f"{served()}/v1/completions"
    body = {"model": "small", "prompt": "ban", "max_tokens": 2}
    assert httpx.post(url, json=body).status_code == 200
    assert httpx.post(url, content=b"{").status_code == 400
    assert httpx.post(url, json=[1]).status_code == 400
    assert httpx.post(url, json=body | {"user": "x" * 2000}).status_code == 413
    pieces = (b" " * 100 for _ in range(30))
    assert httpx.post(url, content=pieces, headers={"content-type": "application/json"}).status_code == 413
    assert httpx.post(url, content=json.dumps(body), headers={"content-type": "text/plain"}).status_code == 400
    assert httpx.post(url, json=body, headers={"host": "attacker.example"}).status_code == 400


def test_beyond_the_queue_there_is_no_place(served: Start, slow: Slow, reader: Reader) -> None:
    """One runs and two wait; a fourth is refused, as are two for one place; those inside get their answers."""
    url = served(reader._replace(model=slow.model), num_rows=1, max_waiting=2)
    client = client_of(url)

    def ask(count: int) -> list[str]:
        made = client.completions.create(model="small", prompt="ban", n=count, max_tokens=30, temperature=0)
        return [choice.text for choice in made.choices]

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, 1)
        until(lambda: health(url) == (1, 0))
        second = pool.submit(ask, 1)
        until(lambda: health(url) == (1, 1))
        with pytest.raises(openai.RateLimitError, match="2 requests are waiting, as many as may; try again later"):
            ask(2)
        assert health(url) == (1, 1)
        text = expected(reader, "ban", 30)
        assert first.result() == second.result() == [text]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"messages": []}, "messages=\\[\\]: must be a list of at least one message"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages\\[0\\].role='tool': must be one of system, user"),
        ({"messages": [{"role": "user", "content": "a<|endoftext|>"}]}, "must be free of <.endoftext.>"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "ban " * 80}]}, "prompt='[0-9]+ tokens' is not valid: at most 63"),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"top_logprobs": 2}, "top_logprobs=2: must go with logprobs=true"),
        ({"tools": [{"type": "function"}]}, "tools: "),
        ({"response_format": {"type": "json_object"}}, "response_format: "),
    ],
)
def test_a_chat_that_cannot_be_done_is_named(client: openai.OpenAI, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        client.chat.completions.create(**{"model": "small", "messages": USER} | settings)


def test_without_a_chat_template_there_is_no_chat(served: Start, reader: Reader) -> None:
    tokenizer = Tokenizer.train(["ban ben lor dist"] * 9, vocab_size=270)
    tokenizer.chat_template = None
    client = client_of(served(reader._replace(tokenizer=tokenizer)))
    with pytest.raises(openai.BadRequestError, match="this model has no chat template"):
        client.chat.completions.create(model="small", messages=USER)
    assert client.completions.create(model="small", prompt="ban", max_tokens=2).choices[0].text
    tokenizer.chat_template = "{% for %}"
    with pytest.raises(ValueError, match=r"^chat_template: not a Jinja template"):
        server.build(reader._replace(tokenizer=tokenizer), "small", num_rows=1, max_waiting=1)


# ---- those who leave, and ends ---------------------------------------------------------------------------------------


ASKED = {"completions": {"prompt": "ban"}, "chat/completions": {"messages": USER}}


def leave(url: str, slow: Slow, path: str, *, streamed: bool, after: int, samples: int) -> None:
    """Ask for answers, and break off the connection after some of their tokens."""
    body = json.dumps({"model": "small", "max_tokens": 60, "n": samples, "stream": streamed, **ASKED[path]})
    head = f"POST /v1/{path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"
    before = slow.passes
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
        connection.sendall("\r\n".join((*head, f"Content-Length: {len(body)}", "", body)).encode())
        until(lambda: health(url)[0] == samples)
        if streamed:
            answer = connection.makefile()
            for _ in range(after):
                next(line for line in answer if line.startswith("data"))
        else:
            until(lambda: slow.passes >= before + after)


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("path", ASKED)
def test_who_leaves_frees_the_rows(
    served: Start, slow: Slow, reader: Reader, path: str, streamed: bool, samples: int
) -> None:
    """Before the first token and after the third, of a stream and of a whole answer: soon nothing runs any more."""
    url = served(reader._replace(model=slow.model))
    for after in (0, 3):
        leave(url, slow, path, streamed=streamed, after=after, samples=samples)
        until(lambda: health(url) == (0, 0))
        passes = slow.passes
        assert passes < 40  # of 60 that each would have taken
        time.sleep(0.1)
        assert slow.passes == passes
        slow.passes = 0
    made = client_of(url).completions.create(model="small", prompt="ban", max_tokens=5, temperature=0)
    assert made.choices[0].text == expected(reader, "ban", 5)


def test_a_failure_of_the_model_ends_its_requests_and_no_others(served: Start, slow: Slow, reader: Reader) -> None:
    client = client_of(served(reader._replace(model=slow.model)))
    slow.failing = True
    with pytest.raises(openai.InternalServerError, match="RuntimeError: no memory is left"):
        client.completions.create(model="small", prompt="ban")
    with pytest.raises(openai.APIError, match="RuntimeError: no memory is left"):
        list(client.completions.create(model="small", prompt="ban", stream=True))
    slow.failing = False
    made = client.completions.create(model="small", prompt="ban", max_tokens=5, temperature=0)
    assert made.choices[0].text == expected(reader, "ban", 5)


def test_our_server_can_be_a_judge(served: Callable[..., str], reader: Reader) -> None:
    """It is asked and answers; that a small untrained model gives no verdict is a missing judgement, and its words."""
    judge = EndpointJudge(url=f"{served(reader._replace(longest=1024))}/v1", model="small", max_tokens=4)
    found = judge.compare(Question("2 + 2?", "4"), "4", "5")
    assert isinstance(found, Failed)
    assert found.reason.startswith("no [[A]], [[B]] or [[C]] in")
