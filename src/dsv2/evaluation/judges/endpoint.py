"""A judge behind an OpenAI-compatible endpoint, asked as in MT-Bench."""

import json
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from dsv2.config import ConfigBase
from dsv2.evaluation.judges.protocol import Failed, Question, Word
from dsv2.printing import described, shortened

PAIR = """\
Compare the two answers to the question as an impartial judge. The order in which they are shown and their length must \
not influence you. Give your verdict in the last line: [[A]] if A is better, [[B]] if B is better, [[C]] for a tie.

[Question]
{question}
{reference}
[Answer A]
{first}

[Answer B]
{second}"""
SINGLE = """\
Grade the answer to the question as an impartial judge, from 1 to 10. Give your grade in the last line, as in [[5]].

[Question]
{question}
{reference}
[Answer]
{answer}"""
WORDS: dict[str, Word] = {"A": "first", "B": "second", "C": "tie"}


@dataclass(frozen=True, kw_only=True)
class EndpointJudge(ConfigBase):
    """Asks a model at `url`, such as http://127.0.0.1:8000/v1; `OPENAI_API_KEY` of the environment is its key.

    Whatever goes wrong with one question, an unreadable verdict included, is a judgement that is missing.
    """

    url: str
    model: str
    max_tokens: int = 512  # of a judgement
    seconds: float = 120.0  # per question

    def __post_init__(self) -> None:
        self.require(re.fullmatch(r"https?://\S+", self.url) is not None, "url", "http:// or https:// and a host")
        self.require(bool(self.model), "model", "the name of a model at that endpoint")
        self.require(self.max_tokens > 0, "max_tokens", "positive")
        self.require(self.seconds > 0, "seconds", "positive")

    def compare(self, question: Question, first: str, second: str) -> Word | Failed:
        """Say which answer is better, as they are shown."""
        text = PAIR.format(question=question.prompt, reference=_known(question), first=first, second=second)
        reply = self._ask(text)
        return reply if isinstance(reply, Failed) else pair_verdict(reply)

    def grade(self, question: Question, answer: str) -> float | Failed:
        """Grade one answer, from 1 to 10."""
        reply = self._ask(SINGLE.format(question=question.prompt, reference=_known(question), answer=answer))
        return reply if isinstance(reply, Failed) else single_verdict(reply)

    def _ask(self, text: str) -> str | Failed:
        asked: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": text}]}
        asked |= {"temperature": 0.0, "max_tokens": self.max_tokens}
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        address = f"{self.url.rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, json.dumps(asked).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.seconds) as response:
                content = json.load(response)["choices"][0]["message"]["content"]
        except urllib.error.HTTPError as error:
            return Failed(f"{address}: status {error.code}; {shortened(error.read().decode(errors='replace'))}")
        except (OSError, ValueError, LookupError, TypeError) as error:
            return Failed(f"{address}: {described(error)}")
        return content if isinstance(content, str) else Failed(f"{address}: an answer without text")


def pair_verdict(reply: str) -> Word | Failed:
    """Read the last [[A]], [[B]] or [[C]] of a judge's reply."""
    found = re.findall(r"\[\[([ABC])\]\]", reply)
    return WORDS[found[-1]] if found else Failed(f"no [[A]], [[B]] or [[C]] in {shortened(reply)!r}")


def single_verdict(reply: str) -> float | Failed:
    """Read the last grade from [[1]] to [[10]] of a judge's reply."""
    found = re.findall(r"\[\[(\d+(?:\.\d+)?)\]\]", reply)
    if found and 1 <= (grade := float(found[-1])) <= 10:
        return grade
    return Failed(f"no grade from [[1]] to [[10]] in {shortened(reply)!r}")


def _known(question: Question) -> str:
    return "" if question.reference is None else f"\n[Right answer]\n{question.reference}\n"
