"""lm-evaluation-harness on our models; needs the package `lm_eval` (extra `eval`).

L sequence length that the model was trained on.
"""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm.auto import tqdm

from dsv2.evaluation.scoring import Question, likelihoods
from dsv2.inference.engine.request import Request
from dsv2.inference.reader import Reader
from dsv2.printing import warn


class Harness(TemplateLM):
    """Answers the harness's three kinds of requests with a run's model and tokenizer; decoding is greedy.

    Scores are those of the harness's own models, except that ids without a token have no probability, and that what
    stops those (an empty continuation, a context of spaces without BOS, invalid Unicode) has a score.
    """

    def __init__(self, reader: Reader, *, batch_size: int) -> None:
        """Use `batch_size` sequences of L tokens per pass, or more if they are shorter; answer as many at a time."""
        super().__init__()
        self.reader, self.batch_size, self.batch_tokens = reader, batch_size, batch_size * reader.longest
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
        asked = [self._request(*request.args) for request in requests]
        needed = [len(request.prompt) + request.max_new_tokens for request in asked if request is not None]
        engine = self.reader.engine(num_rows=self.batch_size, max_length=max(needed, default=1))
        generations = [None if request is None else engine.submit(request) for request in asked]
        with tqdm(total=len(needed), desc="Generating", disable=disable_tqdm or None) as bar:
            for update in engine.run():
                bar.update(int(update.generation.finish is not None))
        return ["" if generation is None else generation.text for generation in generations]

    def _request(self, context: str, settings: dict[str, Any]) -> Request | None:
        """Return what is asked of the engine, or None if there is no room for an answer."""
        options = normalize_gen_kwargs(settings)
        if options["do_sample"]:
            raise ValueError(f"do_sample={settings['do_sample']}: only greedy decoding is supported")
        tokenizer, longest, most = self.reader.tokenizer, self.reader.longest, options["max_gen_toks"]
        read = self.tok_encode(context) or [tokenizer.start_id]
        kept = read[-max(longest - most, longest // 2, 1) :]
        most = min(most, longest - len(kept))
        if len(kept) < len(read):
            self._warn(f"some contexts are truncated on the left to leave room for answers within {longest} tokens")
        if most < 1:
            return None
        stops = tuple(stop for stop in options["until"] if stop)
        stop_ids = frozenset([tokenizer.end_id])
        return Request(prompt=kept, max_new_tokens=most, stops=stops, stop_ids=stop_ids)

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
