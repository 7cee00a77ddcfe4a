"""A judge behind HTTP: what it is asked, what is read of its reply, and what goes wrong."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from dsv2.config import ConfigError
from dsv2.evaluation.judges.endpoint import EndpointJudge, pair_verdict, single_verdict
from dsv2.evaluation.judges.protocol import Failed, Question

QUESTION = Question("2 + 2?", "4")


class Endpoint:
    """A server that replies what it is told, and keeps what it was asked."""

    def __init__(self) -> None:
        self.reply: str | bytes | None = "[[A]]"
        self.status, self.asked = 200, list[dict[str, Any]]()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.asked.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
                answer = {"choices": [{"message": {"role": "assistant", "content": endpoint.reply}}]}
                sent = endpoint.reply if isinstance(endpoint.reply, bytes) else json.dumps(answer).encode()
                self.send_response(endpoint.status)
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.judge = EndpointJudge(url=f"http://127.0.0.1:{self.server.server_port}/v1/", model="judge", seconds=20)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_it_is_asked_for_one_verdict(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert endpoint.judge.compare(QUESTION, "four", "five") == "first"
    (asked,) = endpoint.asked
    assert (asked["path"], asked["model"], asked["key"]) == ("/v1/chat/completions", "judge", "Bearer secret")
    (message,) = asked["messages"]
    assert message["role"] == "user"
    places = [message["content"].index(text) for text in ("2 + 2?", "[Right answer]\n4", "four", "five")]
    assert places == sorted(places)
    endpoint.reply = "Good. [[7]]"
    assert endpoint.judge.grade(Question("2 + 2?"), "four") == 7
    assert "[Right answer]" not in endpoint.asked[-1]["messages"][0]["content"]


def test_verdicts_are_the_last_ones() -> None:
    assert pair_verdict("[[A]] or rather [[B]]") == "second"
    assert pair_verdict("[[C]]") == "tie"
    assert isinstance(pair_verdict("A"), Failed)
    assert single_verdict("[[3]] [[9.5]]") == 9.5
    assert isinstance(single_verdict("[[11]]"), Failed)
    assert isinstance(single_verdict("[[A]]"), Failed)


@pytest.mark.parametrize(
    ("reply", "status", "why"),
    [
        ("I cannot say", 200, "no [[A]], [[B]] or [[C]] in 'I cannot say'"),
        (None, 200, "an answer without text"),
        (b"{}", 200, "KeyError"),
        (b"<html>", 200, "JSONDecodeError"),
        (b"overloaded", 503, "status 503; overloaded"),
    ],
)
def test_whatever_goes_wrong_is_a_missing_judgement(
    endpoint: Endpoint, reply: str | bytes | None, status: int, why: str
) -> None:
    endpoint.reply, endpoint.status = reply, status
    found = endpoint.judge.compare(QUESTION, "a", "b")
    assert isinstance(found, Failed)
    assert why in found.reason


def test_nobody_there_is_a_missing_judgement(endpoint: Endpoint) -> None:
    absent = EndpointJudge(url="http://127.0.0.1:9/v1", model="judge", seconds=5)
    assert isinstance(absent.compare(QUESTION, "a", "b"), Failed)


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="url='localhost:80' is not valid: http:// or https:// and a host"):
        EndpointJudge(url="localhost:80", model="x")
    with pytest.raises(ConfigError, match="model='' is not valid: the name of a model at that endpoint"):
        EndpointJudge(url="http://localhost", model="")
