"""lm-evaluation-harness on our models; needs the package `lm_eval` (extra `eval`).

L sequence length that the model was trained on.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from dsv2.evaluation.scoring import Question, likelihoods
from dsv2.inference.generate import stream_tokens
from dsv2.inference.reader import Reader
from dsv2.printing import warn


class Harness(TemplateLM):
    """Answers the harness's three kinds of requests with a run's model and tokenizer; decoding is greedy.

    Scores are those of the harness's own models, except that ids without a token have no probability, and that what
    stops those (an empty continuation, a context of spaces without BOS, invalid Unicode) has a score.
    """

    def __init__(self, reader: Reader, *, batch_size: int) -> None:
        """Use `batch_size` sequences of L tokens per pass, or more if they are shorter."""
        super().__init__()
        self.reader, self.batch_tokens = reader, batch_size * reader.longest
        self.warned = set[str]()

    @property
    def eot_token_id(self) -> int:
        return self.reader.tokenizer.end_id

    @property
    def prefix_token_id(self) -> int:
        """Token that precedes a text without context."""
        return self.reader.tokenizer.start_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Encode a text, with the tokenizer's prefix unless that is switched off or begins the text already.

        What is not Unicode, such as half a surrogate pair, is read as a question mark.
        """
        tokenizer = self.reader.tokenizer
        prefix, ids = list(tokenizer.prefix), tokenizer.encode(string.encode(errors="replace").decode())
        return ids if add_special_tokens is False or ids[: len(prefix)] == prefix else [*prefix, *ids]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation in nats, and whether argmax predicts all of it."""
        return self._loglikelihood_tokens([(pair, *self._encode_pair(*pair)) for pair in (r.args for r in requests)])

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Split the tokens of both as the harness does, with <|endoftext|> or BOS where no context remains.

        The context's spaces at the end belong to the continuation, which has the tokens beyond as many as the context
        alone has. If they merge into its last token, there are none.
        """
        if context:
            before, after = super()._encode_pair(context, continuation)
        else:
            before, after = [], self.tok_encode(continuation, add_special_tokens=False)
        if not before and after[:1] == [self.prefix_token_id]:
            return after[:1], after[1:]
        return before or [self.prefix_token_id], after

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation in nats, and whether argmax predicts all of it.

        Contexts are truncated on the left to fit; a continuation of more than L tokens is scored as rolling text, and
        one without tokens as certain, with 0 nats.
        """
        questions = []
        for _strings, context, continuation in requests:
            if not continuation:
                self._warn("some continuations are empty, or merge into the context's last token; they score 0 nats")
            room = self.reader.longest + 1 - len(continuation)
            if len(context) > max(room, 1):
                self._warn(f"some contexts are truncated on the left to the {self.reader.longest} tokens of training")
            kept = context[-max(room, 1) :]
            whole = [Question(kept, continuation)]
            fits = continuation and room >= 1
            questions.append(whole if fits else windows(kept, continuation, self.reader.longest))
        return self._sums(questions)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each text after <|endoftext|> in nats, over disjoint windows of L tokens."""
        texts = [self.tok_encode(request.args[0], add_special_tokens=False) for request in requests]
        questions = [windows([self.prefix_token_id], ids, self.reader.longest) for ids in texts]
        return [nats for nats, _ in self._sums(questions)]

    def _sums(self, questions: list[list[Question]]) -> list[tuple[float, bool]]:
        flat = [question for group in questions for question in group]
        model, ids = self.reader.model, self.reader.tokenizer.ids
        results = iter(likelihoods(model, flat, batch_tokens=self.batch_tokens, ids=ids))
        grouped = [[next(results) for _ in group] for group in questions]
        return [(sum((r.total for r in group), 0.0), all(all(r.hits) for r in group)) for group in grouped]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue each context greedily up to a stop string, <|endoftext|> or the requested number of tokens.

        If prompt and answer exceed L, contexts are truncated on the left, but not below half of L, and answers to the
        rest. Raises ValueError if a task asks for sampling.
        """
        answers = []
        for context, settings in (request.args for request in requests):
            options = normalize_gen_kwargs(settings)
            if options["do_sample"]:
                raise ValueError(f"do_sample={settings['do_sample']}: only greedy decoding is supported")
            answers.append(self._generate(context, options["until"], options["max_gen_toks"]))
        return answers

    def _generate(self, context: str, stops: list[str], most: int) -> str:
        model, tokenizer, longest = self.reader
        read = self.tok_encode(context) or [tokenizer.start_id]
        kept = read[-max(longest - most, longest // 2, 1) :]
        most = min(most, longest - len(kept))
        if len(kept) < len(read):
            self._warn(f"some contexts are truncated on the left to leave room for answers within {longest} tokens")
        ids, text = list[int](), ""
        prompt = torch.tensor(kept, device=model.embedding.device)
        for new in stream_tokens(model, [prompt], most=most, ids=tokenizer.ids):
            if int(new) == tokenizer.end_id:
                break
            ids.append(int(new))
            text = tokenizer.decode(ids)
            if ends := [text.index(stop) for stop in stops if stop and stop in text]:
                return text[: min(ends)]
        return text

    def _warn(self, message: str) -> None:
        """Print each warning once."""
        if message not in self.warned:
            warn(message)
            self.warned.add(message)


def windows(context: list[int], ids: list[int], longest: int) -> list[Question]:
    """Split a text into windows of at most `longest` tokens, in which each of `ids` is scored once.

    The context of a window is the token before it: for the first, the last of `context`.
    """
    before = [context[-1], *ids]
    return [Question(before[first : first + 1], ids[first : first + longest]) for first in range(0, len(ids), longest)]
