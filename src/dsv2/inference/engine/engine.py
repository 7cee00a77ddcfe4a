"""The engine: requests wait, are read in chunks, and are continued together, each until it ends.

B rows of a pass, T tokens of each, V vocabulary.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from dsv2.config import ConfigError
from dsv2.data.tokenizer import Tokenizer
from dsv2.inference.cache import ModelCache
from dsv2.inference.deployed import allocate_caches
from dsv2.inference.engine.request import Generation, QueueFull, Request, Scored, Update, seen_tokens
from dsv2.inference.engine.rows import Rows
from dsv2.inference.engine.text import TextStream
from dsv2.inference.sampling import Chooser, Ids, allowed
from dsv2.models.transformer import Transformer, evaluating
from dsv2.printing import described

CHUNK = 512  # tokens of prompts that are read per step


class Engine:
    """Continues requests with one model over one cache, which is allocated once.

    A request waits until a row is free, has its prompt read in chunks, and then gets a token per step until it ends;
    others enter and leave meanwhile. Its tokens do not depend on them: draws are a function of its seed, and its
    logits differ at most by the rounding of products of other shapes. What prompts begin with in common is computed
    once. Nothing here is safe to be called from two threads at a time.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        num_rows: int,
        max_length: int,
        tokenizer: Tokenizer | None = None,
        ids: Ids | None = None,
        max_waiting: int | None = None,
        chunk: int = CHUNK,
        prompts_first: bool = True,
        cache: ModelCache | None = None,
    ) -> None:
        """Allocate the cache.

        Args:
            model: Is only read; steps put it in evaluation mode.
            num_rows: Requests that are continued at a time.
            max_length: Room of a row: tokens of a prompt and its answer together.
            tokenizer: For the text of answers, without which there are no stop strings.
            ids: The only tokens that are generated, such as those that have a text (default: all).
            max_waiting: Requests that may wait besides those for which rows are free (default: any number).
            chunk: Tokens of prompts that are read per step, of all requests together.
            prompts_first: Whether answers wait while there are prompts to read, so that more of them are continued
                together; otherwise each gets a token in every step, as who reads along wants.
            cache: Another one than that of `allocate_caches`, with `num_rows` rows of `max_length` tokens.

        Raises ConfigError for sizes out of range, and for a cache that does not fit in memory.
        """
        for name, value in (("num_rows", num_rows), ("max_length", max_length), ("chunk", chunk)):
            if value < 1:
                raise ConfigError(name, value, "1 or more")
        if (limit := model.rope.limit) is not None and max_length > limit:
            raise ConfigError("max_length", max_length, f"at most {limit}, the positions of the model's extended RoPE")
        self.model, self.tokenizer, self.max_length, self.chunk = model, tokenizer, max_length, chunk
        self.max_waiting, self.prompts_first = max_waiting, prompts_first
        self.device, self.vocab_size = model.embedding.device, model.config.vocab_size
        self.allowed = allowed(ids, self.vocab_size, self.device)
        if cache is None:
            try:
                cache = allocate_caches(model, batch_size=num_rows, max_length=max_length)
            except (RuntimeError, TypeError, MemoryError) as error:  # by the size, torch raises one or another
                valid = f"less, since {num_rows:,} x {max_length:,} tokens do not fit in memory; {described(error)}"
                raise ConfigError("max_length", max_length, valid) from None
        self.rows = Rows(cache)
        self.waiting: deque[Generation] = deque()
        self._decoders: tuple[int, ModelCache, Chooser] | None = None  # of `rows.changes`

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self.waiting or self.rows.holders)

    def submit(self, request: Request) -> Generation:
        """Put a request in the queue.

        Raises ConfigError for one that can never run, and QueueFull if as many wait as may.
        """
        size, most = len(request.prompt), self.max_length - min(request.max_new_tokens, 1)
        if size > most:
            valid = f"at most {most} tokens, with room for {self.max_length} of the prompt and its answer"
            raise ConfigError("prompt", f"{size} tokens", valid)
        low, high = min(request.prompt), max(request.prompt)
        if low < 0 or high >= self.vocab_size:
            valid = f"ids from 0 to {self.vocab_size - 1}, those of the vocabulary"
            raise ConfigError("prompt", f"ids from {low} to {high}", valid)
        if request.stops and self.tokenizer is None:
            raise ConfigError("stops", request.stops, "none, since there is no tokenizer")
        if self.max_waiting is not None and len(self.waiting) - self.rows.free >= self.max_waiting:
            raise QueueFull(f"{self.max_waiting} requests are waiting, as many as may; try again later")
        text = None if self.tokenizer is None else TextStream(self.tokenizer, request.stops)
        generation = Generation(request, text, seen_tokens(request, self.vocab_size, self.device))
        if request.max_new_tokens or request.score_prompt:
            self.waiting.append(generation)
        else:
            generation.finish = "length"
        return generation

    def cancel(self, generation: Generation) -> None:
        """End a request, which frees its row or place in the queue at once; one that has ended stays as it is."""
        if generation.finish is None:
            generation.finish = "cancelled"
            if generation.row is None:
                self.waiting.remove(generation)
            else:
                self.rows.release(generation)

    def run(self) -> Iterator[Update]:
        """Step until nothing is left to do."""
        while self.busy:
            yield from self.step()

    @torch.inference_mode()
    def step(self) -> list[Update]:
        """Let waiting requests enter, read a chunk of prompts, and add a token to each answer under way.

        Whatever is left to do, a step adds a token or reads some. Raises ValueError for logits that are not numbers.
        """
        with evaluating(self.model) if self.model.training else nullcontext():
            self._admit()
            updates = self._prefill()
            if self.prompts_first and len(self.rows.holders) > self.rows.decoding:
                return updates
            return [*updates, *self._decode()]

    def _admit(self) -> None:
        """Give free rows to those who wait, in their order; one whose beginning is being computed waits for it."""
        if self.waiting and self.rows.free:
            self.rows.use_weights(self._weights())
        while self.waiting and self.rows.free:
            generation = self.waiting[0]
            prompt = np.array(generation.request.prompt, dtype=np.int64)
            shared = self.rows.shared(prompt[:0] if generation.request.score_prompt else prompt)
            if shared.coming:
                return
            self.rows.admit(self.waiting.popleft(), prompt, shared)

    def _prefill(self) -> list[Update]:
        """Read the next tokens of prompts, at most `chunk` with padding, and choose the first token of answers."""
        first, chosen, length = self.rows.decoding, list[Generation](), 0
        for generation in self.rows.holders[first:]:
            longer = max(length, min(_unread(generation), self.chunk))
            if chosen and longer * (len(chosen) + 1) > self.chunk:
                break
            chosen.append(generation)
            length = longer
        if not chosen:
            return []
        tokens, positions = np.zeros((2, len(chosen), length), dtype=np.int64)
        positions[:] = -1
        for row, generation in enumerate(chosen):
            start, end = generation.prefilled, generation.prefilled + min(_unread(generation), length)
            tokens[row, : end - start] = self.rows.contents[first + row].tokens[start:end]
            positions[row, : end - start] = np.arange(start, end)
        states, _ = self.model.hidden(
            torch.from_numpy(tokens).to(self.device),
            positions=torch.from_numpy(positions),
            caches=self.rows.cache.rows(first, first + len(chosen)),
        )
        last = (positions >= 0).sum(1) - 1
        for row, generation in enumerate(chosen):
            generation.prefilled += int(last[row]) + 1
            if generation.request.score_prompt:
                self._score_prompt(generation, states[row, : last[row] + 1])
        done = [row for row, generation in enumerate(chosen) if not _unread(generation)]
        updates = list[Update]()
        for row in [row for row in done if not chosen[row].request.max_new_tokens]:
            done.remove(row)
            chosen[row].finish = "length"
            self.rows.release(chosen[row])
            updates.append(Update(chosen[row], "", "length", None))
        if not done:
            return updates
        generations = [chosen[row] for row in done]
        for generation in generations:
            self.rows.promote(generation)
        logits = self._logits(states[done, last[done].tolist()])
        return [*updates, *self._extend(generations, logits, self._chooser(generations))]

    def _decode(self) -> list[Update]:
        """Add one token to every answer under way."""
        rows = self.rows
        if not rows.decoding:
            return []
        generations = rows.holders[: rows.decoding]
        if self._decoders is None or self._decoders[0] != rows.changes:
            self._decoders = rows.changes, rows.cache.rows(0, rows.decoding), self._chooser(generations)
        _, caches, chooser = self._decoders
        tokens = torch.tensor([[generation.tokens[-1]] for generation in generations], device=self.device)
        states, _ = self.model.hidden(tokens, caches=caches)
        return self._extend(generations, self._logits(states[:, 0]), chooser)

    def _extend(self, generations: Sequence[Generation], logits: Tensor, chooser: Chooser) -> list[Update]:
        """Choose a token for each generation from logits (B, V); those that end leave their rows."""
        seen = None
        if chooser.penalised:
            none = torch.zeros(self.vocab_size, dtype=torch.bool, device=self.device)
            seen = torch.stack([none if each.seen is None else each.seen for each in generations])
        counts = np.array([len(generation.tokens) for generation in generations])
        chosen = chooser.choose(logits, counts, seen).tolist()
        if any(generation.request.scored for generation in generations):
            logs = chooser.log_probabilities(logits)
            for row, generation in enumerate(generations):
                if generation.request.scored:
                    generation.scores += _scores(logs[row : row + 1], chosen[row : row + 1], generation.request)
        updates = [each.take(token, self.max_length) for each, token in zip(generations, chosen, strict=True)]
        for generation in generations:
            if generation.finish is not None:
                self.rows.release(generation)
        return updates

    def _score_prompt(self, generation: Generation, states: Tensor) -> None:
        """Score the tokens of a prompt that follow the last ones read, whose states (T, d) are given."""
        end = generation.prefilled
        targets = list(generation.request.prompt[end - len(states) + 1 : end + 1])
        if targets:
            logs = self._chooser([generation]).log_probabilities(self._logits(states[: len(targets)]))
            generation.prompt_scores += _scores(logs, targets, generation.request)

    def _logits(self, states: Tensor) -> Tensor:
        """Return the logits (B, V) of states (B, d) before the output head, -inf for ids that may not be chosen."""
        logits = self.model.ops.linear(states, self.model.head_weight)
        return logits if self.allowed is None else logits.masked_fill(~self.allowed, float("-inf"))

    def _chooser(self, generations: Sequence[Generation]) -> Chooser:
        samplings = [generation.request.sampling for generation in generations]
        return Chooser(samplings, [generation.stream_id for generation in generations], self.device)

    def _weights(self) -> object:
        """Return what changes when the model's weights are others, or are changed in place."""
        weights = list(self.model.parameters())
        return tuple((weight.data_ptr(), weight.is_inference() or weight._version) for weight in weights)


def _unread(generation: Generation) -> int:
    """Return how many tokens of its prompt are not in the cache."""
    return len(generation.request.prompt) - generation.prefilled


def _scores(logs: Tensor, tokens: Sequence[int], request: Request) -> list[Scored]:
    """Return the log-probability of each token from logs (T, V), with the alternatives that the request wants."""
    own = logs.gather(-1, torch.tensor(tokens, device=logs.device)[:, None])[:, 0].tolist()
    if not request.alternatives:
        return [Scored(log) for log in own]
    values, ids = logs.topk(min(request.alternatives, logs.shape[-1]), dim=-1)
    pairs = zip(ids.tolist(), values.tolist(), strict=True)
    return [Scored(log, tuple(zip(*pair, strict=True))) for log, pair in zip(own, pairs, strict=True)]
