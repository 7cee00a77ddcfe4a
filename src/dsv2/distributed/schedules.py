"""Pipeline schedules as the order of every rank's actions.

p ranks, v stages per rank (consecutive slices of the model; a rank's stages need not be neighbours), m micro-batches.

F forward, B gradients of the inputs, W gradients of the weights; BW is a backward that is not split, and hands its
input gradients on when all of it has finished. The orders are those of torch.distributed.pipelining, so that what is
simulated is what torch runs, except for 1F1B, whose list in torch 2.13 starts at micro-batch 1 on the last rank, and
ZB-H1, which torch has not.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

from dsv2.config import ConfigError

Kind = Literal["F", "B", "W", "BW"]
MOST_ACTIONS = 10**6  # of all ranks; a schedule of more would take minutes to simulate


class Action(NamedTuple):
    """One computation of a stage for one micro-batch, both counted from 0."""

    stage: int
    kind: Kind
    microbatch: int


Step = tuple[Action, ...]  # what a rank runs at once: one action, or in DualPipeV a forward together with a backward


class Schedule(NamedTuple):
    """The steps of every rank, in order."""

    name: str
    num_microbatches: int  # m
    stages_per_rank: int  # v
    ranks: tuple[tuple[Step, ...], ...]  # one per rank

    @property
    def num_ranks(self) -> int:
        return len(self.ranks)

    @property
    def num_stages(self) -> int:
        return self.num_ranks * self.stages_per_rank

    @property
    def rank_of(self) -> dict[int, int]:
        """The rank of every stage."""
        return {action.stage: rank for rank, steps in enumerate(self.ranks) for step in steps for action in step}


def build_schedule(name: str, num_ranks: int, num_microbatches: int, *, stages_per_rank: int | None = None) -> Schedule:
    """Return a schedule of `SCHEDULES` for p ranks and m micro-batches.

    `stages_per_rank` is for the interleaved schedules (default 2); the others have one or two. Raises ConfigError for
    sizes that the schedule is not defined for.
    """
    if name not in SCHEDULES:
        raise ConfigError("schedule", name, f"one of {', '.join(SCHEDULES)}")
    for field, value in (("ranks", num_ranks), ("microbatches", num_microbatches)):
        if value < 1:
            raise ConfigError(field, value, "1 or more")
    definition = SCHEDULES[name]
    per_rank = definition.stages_per_rank or (2 if stages_per_rank is None else stages_per_rank)
    if stages_per_rank not in (None, per_rank):
        raise ConfigError("stages-per-rank", stages_per_rank, f"{per_rank} for {name}")
    if per_rank < 1:
        raise ConfigError("stages-per-rank", per_rank, "1 or more")
    if (actions := 3 * num_ranks * per_rank * num_microbatches) > MOST_ACTIONS:
        raise ConfigError("microbatches", num_microbatches, f"fewer: {actions:,} actions are over {MOST_ACTIONS:,}")
    if problem := definition.requires(num_ranks, num_microbatches):
        raise ConfigError("microbatches", num_microbatches, f"{problem} for {name}")
    ranks = tuple(tuple(steps) for steps in definition.order(num_ranks, num_microbatches, per_rank))
    schedule = Schedule(name, num_microbatches, per_rank, ranks)
    _require_whole(schedule)
    return schedule


def _require_whole(schedule: Schedule) -> None:
    """Assert that every stage has one forward and one backward, split or not, of every micro-batch."""
    parts: Counter[tuple[int, str, int]] = Counter()
    for steps in schedule.ranks:
        for step in steps:
            for stage, kind, microbatch in step:
                parts.update((stage, part, microbatch) for part in kind)
    stages, batches = range(schedule.num_stages), range(schedule.num_microbatches)
    expected = {(stage, part, microbatch): 1 for stage in stages for part in "FBW" for microbatch in batches}
    assert parts == expected, f"{schedule.name}: an action is missing or there twice"


def _1f1b(num_ranks: int, num_microbatches: int, _: int) -> Iterable[list[Step]]:
    """Yield 1F1B (arXiv 1806.03377): rank r runs p - 1 - r forwards, then a forward and a backward in turn."""
    for rank in range(num_ranks):
        warmup = num_ranks - 1 - rank
        actions = [Action(rank, "F", microbatch) for microbatch in range(min(warmup, num_microbatches))]
        for microbatch in range(num_microbatches):
            if warmup + microbatch < num_microbatches:
                actions.append(Action(rank, "F", warmup + microbatch))
            actions.append(Action(rank, "BW", microbatch))
        yield [(action,) for action in actions]


def _zb_h1(num_ranks: int, num_microbatches: int, _: int) -> Iterable[list[Step]]:
    """Yield ZB-H1 (arXiv 2401.10241, section 2.1): 1F1B whose rank r runs each W r micro-batches after its B.

    Every rank then holds the activations of up to p micro-batches, no more than the first rank of 1F1B, and the W that
    are left over fill the wait for the last gradients.
    """
    for rank, steps in enumerate(_1f1b(num_ranks, num_microbatches, 1)):
        actions, waiting = list[Action](), list[Action]()
        for ((stage, kind, microbatch),) in steps:
            if kind == "F":
                actions.append(Action(stage, "F", microbatch))
                continue
            actions.append(Action(stage, "B", microbatch))
            waiting.append(Action(stage, "W", microbatch))
            if len(waiting) > rank:
                actions.append(waiting.pop(0))
        yield [(action,) for action in (*actions, *waiting)]


# ---- orders of torch.distributed.pipelining --------------------------------------------------------------------------

_KINDS: dict[str, Kind] = {"F": "F", "I": "B", "W": "W", "B": "BW"}  # torch's letters


def _steps(actions: Iterable[Any]) -> list[Step]:
    """Convert torch's actions; its idle slots hold for equal times only, and reductions take none here."""
    steps = []
    for action in actions:
        if action is not None and (parts := action.sub_actions or (action,)):
            steps.append(tuple(
                Action(part.stage_index, _KINDS[part.computation_type.value], part.microbatch_index)
                for part in parts if part.computation_type.value in _KINDS
            ))  # fmt: skip
    return [step for step in steps if step]


def _of_torch(class_name: str) -> Callable[[int, int, int], Iterable[list[Step]]]:
    def order(num_ranks: int, num_microbatches: int, stages_per_rank: int) -> Iterable[list[Step]]:
        """Yield the steps of each rank, from an object without stages: building real ones needs a process group."""
        from torch.distributed.pipelining import schedules

        schedule: Any = object.__new__(getattr(schedules, class_name))
        schedule._n_microbatches = num_microbatches
        schedule._num_stages = schedule.num_stages = num_ranks * stages_per_rank
        schedule.pp_group_size, schedule.n_local_stages = num_ranks, stages_per_rank
        schedule.microbatches_per_round = num_microbatches // _rounds(num_ranks, num_microbatches)
        if isinstance(schedule, schedules.PipelineScheduleSingle):
            by_rank: dict[int, list[Any]] = schedule._get_pipeline_order() or {}
            return (_steps(by_rank[rank]) for rank in range(num_ranks))
        return (_steps(schedule._calculate_single_rank_operations(rank)) for rank in range(num_ranks))

    return order


def _rounds(num_ranks: int, num_microbatches: int) -> int:
    return max(1, num_microbatches // num_ranks)


def _any(num_ranks: int, num_microbatches: int) -> str:
    return ""


def _as_many_as_stages(num_ranks: int, num_microbatches: int) -> str:
    return "" if num_microbatches >= 2 * num_ranks else f"at least the number of stages, {2 * num_ranks},"


def _whole_rounds(num_ranks: int, num_microbatches: int) -> str:
    rounds = _rounds(num_ranks, num_microbatches)
    return "" if num_microbatches % rounds == 0 else f"a multiple of its rounds, m // p = {rounds},"


class _Definition(NamedTuple):
    order: Callable[[int, int, int], Iterable[list[Step]]]  # of p, m and v
    requires: Callable[[int, int], str]  # what m must be, or "" if it is
    stages_per_rank: int | None  # None: as one likes


SCHEDULES = {
    "gpipe": _Definition(_of_torch("ScheduleGPipe"), _any, 1),
    "1f1b": _Definition(_1f1b, _any, 1),
    "interleaved_1f1b": _Definition(_of_torch("ScheduleInterleaved1F1B"), _whole_rounds, None),
    "zb_h1": _Definition(_zb_h1, _any, 1),
    "interleaved_zb": _Definition(_of_torch("ScheduleInterleavedZeroBubble"), _whole_rounds, None),
    "zbv": _Definition(_of_torch("ScheduleZBVZeroBubble"), _any, 2),
    "dualpipev": _Definition(_of_torch("ScheduleDualPipeV"), _as_many_as_stages, 2),
}
