"""lm-evaluation-harness on our models; imported only where the package `lm_eval` (extra `eval`) is there.

L tokens that the model was trained to read.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from dsv2.evaluation.scoring import Question, likelihoods
from dsv2.inference.generate import stream_tokens
from dsv2.inference.reader import Reader


class Harness(TemplateLM):
    """Answers the harness' three kinds of requests with the run's own model and tokenizer, greedily."""

    def __init__(self, reader: Reader, *, batch_size: int) -> None:
        """`batch_size` sequences of L tokens per pass, more of them where they are shorter."""
        super().__init__()
        self.reader, self.batch_tokens = reader, batch_size * reader.longest
        self.said = set[str]()

    @property
    def eot_token_id(self) -> int:
        return self.reader.tokenizer.end_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        return self.reader.tokenizer.start_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.reader.tokenizer.encode(string)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation in nats, and whether argmax predicts all of it.

        Contexts are cut from the left to fit; a continuation of more than L tokens is read as rolling text.
        """
        asked = []
        for _strings, context, continuation in requests:
            room = self.reader.longest + 1 - len(continuation)
            if len(context) > max(room, 1):
                self._warn(f"some contexts are cut from the left to the {self.reader.longest} tokens of training")
            kept = context[-max(room, 1) :]
            asked.append(
                windows(kept, continuation, self.reader.longest) if room < 1 else [Question(kept, continuation)]
            )
        return self._sums(asked)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each text in nats after <|endoftext|>, in disjoint windows of L tokens, as `val/loss`."""
        texts = [self.reader.tokenizer.encode(request.args[0]) for request in requests]
        asked = [windows([self.reader.tokenizer.start_id], ids, self.reader.longest) for ids in texts]
        return [nats for nats, _ in self._sums(asked)]

    def _sums(self, asked: list[list[Question]]) -> list[tuple[float, bool]]:
        flat = [question for some in asked for question in some]
        results = iter(likelihoods(self.reader.model, flat, batch_tokens=self.batch_tokens))
        of_each = [[next(results) for _ in some] for some in asked]
        return [(sum(result.total for result in some), all(all(result.hits) for result in some)) for some in of_each]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The greedy continuation of each context up to a stop string, <|endoftext|> or the asked number of tokens.

        Contexts are cut from the left, to half of L at most, and answers to what is left of L. Raises ValueError where
        a task wants its tokens drawn.
        """
        answers = []
        for context, settings in (request.args for request in requests):
            wanted = normalize_gen_kwargs(settings)
            if wanted["do_sample"]:
                raise ValueError(f"do_sample={settings['do_sample']}: only greedy answers are generated")
            answers.append(self._generate(context, wanted["until"], wanted["max_gen_toks"]))
        return answers

    def _generate(self, context: str, stops: list[str], most: int) -> str:
        model, tokenizer, longest = self.reader
        read = tokenizer.encode(context) or [tokenizer.start_id]
        kept = read[-max(longest - most, longest // 2, 1) :]
        most = min(most, longest - len(kept))
        if len(kept) < len(read):
            self._warn(f"some contexts are cut from the left to leave room for answers within {longest} tokens")
        ids, text = list[int](), ""
        for new in stream_tokens(model, [torch.tensor(kept, device=model.embedding.device)], most=most):
            if int(new) == tokenizer.end_id:
                break
            ids.append(int(new))
            text = tokenizer.decode(ids)
            if ends := [text.index(stop) for stop in stops if stop and stop in text]:
                return text[: min(ends)]
        return text

    def _warn(self, message: str) -> None:
        """Once each."""
        if message not in self.said:
            print(f"warning: {message}", file=sys.stderr)
            self.said.add(message)


def windows(context: list[int], ids: list[int], longest: int) -> list[Question]:
    """Windows of at most `longest` tokens to read, in which every one of `ids` is scored once.

    The first one's context is `context`'s last token, any other's the token before its first.
    """
    before = [context[-1], *ids]
    return [Question(before[first : first + 1], ids[first : first + longest]) for first in range(0, len(ids), longest)]
