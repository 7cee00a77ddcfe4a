"""Answers drawn from a policy, with all that training on them needs, in tensors that a checkpoint can hold.

n answers, of P prompts with G answers each; M tokens of answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from dsv2.data.chat import Conversation
from dsv2.data.chats import packed
from dsv2.data.packing import fit_in
from dsv2.data.source import NOT_SCORED, Batch
from dsv2.inference.sampling import Ids, restricted
from dsv2.models.moe.router import Routing
from dsv2.models.transformer import Transformer

FIELDS = ("ids", "lengths", "asked", "old", "reference", "advantages", "kept")


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """Answers in the order in which they are trained on."""

    ids: Tensor  # int64, of prompt and answer, one answer after the other
    lengths: Tensor  # (n,) int64, tokens of prompt and answer
    asked: Tensor  # (n,) int64, those of the prompt
    old: Tensor  # (M,) float32, log-probabilities by the policy that drew them
    reference: Tensor | None  # (M,) float32, log-probabilities by the reference; None without one
    advantages: Tensor  # (n,) float32
    kept: Tensor  # (n,) bool, whether they are in the loss

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def answered(self) -> Tensor:
        """Tokens of each answer, (n,) int64."""
        return self.lengths - self.asked

    def part(self, first: int, count: int) -> Self:
        """Return answers `first` to `first + count - 1`."""
        ids, tokens = _span(self.lengths, first, count), _span(self.answered, first, count)
        reference = None if self.reference is None else self.reference[tokens]
        rows = slice(first, first + count)
        return type(self)(
            ids=self.ids[ids],
            lengths=self.lengths[rows],
            asked=self.asked[rows],
            old=self.old[tokens],
            reference=reference,
            advantages=self.advantages[rows],
            kept=self.kept[rows],
        )

    def state(self) -> dict[str, Tensor | None]:
        """Return the tensors by their names."""
        return {name: getattr(self, name) for name in FIELDS}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Return the answers of `state`, on the CPU."""
        values: dict[str, Any] = {name: None if state[name] is None else state[name].cpu() for name in FIELDS}
        return cls(**values)


def _span(lengths: Tensor, first: int, count: int) -> slice:
    """Return the places of items `first` to `first + count - 1`, of these lengths, one after the other."""
    ends = lengths.cumsum(0).tolist()
    return slice(ends[first - 1] if first else 0, ends[first + count - 1] if count else 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Answers as sequences of a batch: several to a row, none of which sees another."""

    batch: Batch  # whose scored targets are the tokens of answers
    order: Tensor  # (M,) int64, number of each scored target among all tokens of the answers

    @classmethod
    def of(cls, answers: Answers, *, length: int, pad_id: int) -> list[Self]:
        """Return the rows of T = `length` tokens that hold all answers, one by one."""
        conversations, numbers = list[Conversation](), list[Tensor]()
        begins = (answers.answered.cumsum(0) - answers.answered).tolist()
        all_ids = answers.ids.split(answers.lengths.tolist())
        for ids, asked, begin in zip(all_ids, answers.asked.tolist(), begins, strict=True):
            conversations.append(Conversation(ids.tolist(), [False] * asked + [True] * (len(ids) - asked)))
            numbers.append(torch.arange(begin, begin + len(ids) - asked))
        return [
            cls(
                batch=packed([[conversations[item] for item in row]], length=length, pad_id=pad_id),
                order=torch.cat([numbers[item] for item in row]),
            )
            for row in fit_in(answers.lengths.numpy(), length)
        ]

    @classmethod
    def joined(cls, rows: Sequence[Self]) -> Self:
        """Return several rows as one batch, without the padding that all of them have."""
        batches = [row.batch for row in rows]
        inputs = torch.cat([batch.inputs for batch in batches])
        targets = torch.cat([batch.targets for batch in batches])
        positions = torch.cat([places for batch in batches if (places := batch.positions) is not None])
        longest = int((positions >= 0).sum(1).max())
        whole = Batch(inputs, targets, None, positions).map(lambda field: field[:, :longest])
        return cls(batch=whole, order=torch.cat([row.order for row in rows]))


def log_probabilities(
    model: Transformer, rows: Rows, *, temperature: float, ids: Ids | None, **settings: Any
) -> tuple[Tensor, tuple[Routing, ...]]:
    """Return the log-probability of every scored target, in their order, (M,) float32, and the routings.

    It is that of drawing it at `temperature` from `ids` alone, as the engine does. `settings` are those of
    `Transformer.hidden`.
    """
    device, batch = model.embedding.device, rows.batch
    states, routings = model.hidden(batch.inputs.to(device), positions=batch.positions, **settings)
    scored = batch.targets != NOT_SCORED
    logits = model.ops.linear(states[scored.to(device)], model.head_weight).float()
    logs = (restricted(logits, ids) / temperature).log_softmax(-1)
    return logs.gather(-1, batch.targets[scored].to(device)[:, None])[:, 0], routings
