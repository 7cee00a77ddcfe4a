"""A pipeline schedule in time: when every action runs, how long ranks wait, and what they hold.

Ranks run their actions in order, each as soon as its inputs are there. Sending costs the sender nothing and delays what
depends on it by one hop, unless sender and receiver are the same rank. Times and hops are in any one unit.

Two numbers are called the bubble, and "zero bubble" is true of one of them:

- that of the makespan: from the first action of any rank to the last of any, minus a rank's work. It is what a step
  costs if it begins and ends with a barrier, such as clipping by the global norm.
- that of a rank's span: from its own first action to its own last, minus its work. It is what a step costs if each rank
  goes on with the next step at once.
"""

from collections.abc import Sequence
from typing import NamedTuple

from dsv2.config import ConfigError
from dsv2.distributed.schedules import Action, Kind, Schedule


class StageTimes(NamedTuple):
    """What one micro-batch takes in one stage."""

    forward: float = 1.0  # F
    backward_input: float = 1.0  # B
    backward_weight: float = 1.0  # W

    def of(self, kind: Kind) -> float:
        backward = self.backward_input, self.backward_weight
        return {"F": self.forward, "B": backward[0], "W": backward[1], "BW": sum(backward)}[kind]


class Event(NamedTuple):
    """One action in time; those that run together have the same start and end."""

    rank: int
    stage: int
    kind: Kind
    microbatch: int
    start: float
    end: float


class Timeline(NamedTuple):
    """All actions of one step of training, by rank and start; the first starts at 0."""

    schedule: Schedule
    events: tuple[Event, ...]

    @property
    def makespan(self) -> float:
        return max(event.end for event in self.events)

    @property
    def work(self) -> list[float]:
        """Time that each rank computes."""
        work = [0.0] * self.schedule.num_ranks
        for rank, start, end in {(event.rank, event.start, event.end) for event in self.events}:
            work[rank] += end - start
        return work

    @property
    def spans(self) -> list[float]:
        """Time from each rank's first action to its last."""
        of_rank = [[event for event in self.events if event.rank == rank] for rank in range(self.schedule.num_ranks)]
        return [max(event.end for event in events) - min(event.start for event in events) for events in of_rank]

    @property
    def makespan_bubble(self) -> float:
        """Makespan minus the mean work of ranks; waiting for a stage that has more work than others is part of it."""
        return self.makespan - sum(self.work) / len(self.work)

    @property
    def span_bubbles(self) -> list[float]:
        """Each rank's span minus its work."""
        return [span - work for span, work in zip(self.spans, self.work, strict=True)]

    @property
    def bubble_share(self) -> float:
        """The makespan's bubble over the makespan."""
        return self.makespan_bubble / self.makespan

    def peaks(self, held: Sequence[float]) -> list[float]:
        """Return the most that each rank holds at a time, if stage s holds held[s] per micro-batch.

        It is held from the start of a forward to the end of the weights' gradients: those need the inputs of matrix
        products, though not all that autograd saves, so that split schedules may hold less.
        """
        changes: list[list[tuple[float, int, float]]] = [[] for _ in range(self.schedule.num_ranks)]
        for event in self.events:
            if event.kind == "F":
                changes[event.rank].append((event.start, 1, held[event.stage]))
            elif event.kind in ("W", "BW"):
                changes[event.rank].append((event.end, 0, -held[event.stage]))
        return [_highest([change for *_, change in sorted(of_rank)]) for of_rank in changes]


def _highest(changes: Sequence[float]) -> float:
    total = highest = 0.0
    for change in changes:
        total += change
        highest = max(highest, total)
    return highest


def simulate(schedule: Schedule, times: Sequence[StageTimes], *, hop: float = 0.0, overlap: float = 1.0) -> Timeline:
    """Return when every action of a schedule runs.

    Args:
        schedule: Of `build_schedule`.
        times: One per stage.
        hop: Time from the end of an action to the start of what depends on it on another rank.
        overlap: Of a forward and a backward that run together, the time over the sum of their times.

    Raises ConfigError for times that are negative or not finite.
    """
    _require_times(schedule, times, hop, overlap)
    rank_of = schedule.rank_of
    ends: dict[tuple[int, str, int], float] = {}  # of forwards, and of the gradients of inputs
    events: list[list[Event]] = [[] for _ in schedule.ranks]
    free = [0.0] * schedule.num_ranks
    done = [0] * schedule.num_ranks
    moving = True
    while moving:
        moving = False
        for rank, steps in enumerate(schedule.ranks):
            while done[rank] < len(steps):
                step = steps[done[rank]]
                inputs = [source for action in step for source in _inputs(action, schedule.num_stages)]
                if not all(source in ends for source in inputs):
                    break
                arrivals = [ends[source] + (0.0 if rank_of[source[0]] == rank else hop) for source in inputs]
                start = max([free[rank], *arrivals])
                end = start + sum(times[action.stage].of(action.kind) for action in step) * (
                    overlap if len(step) > 1 else 1.0
                )
                for action in step:
                    events[rank].append(Event(rank, *action, start, end))
                    if action.kind != "W":
                        ends[action.stage, action.kind[0], action.microbatch] = end
                free[rank] = end
                done[rank] += 1
                moving = True
    assert all(count == len(steps) for count, steps in zip(done, schedule.ranks, strict=True)), "a circle of waits"
    return Timeline(schedule, tuple(event for of_rank in events for event in of_rank))


def _inputs(action: Action, num_stages: int) -> list[tuple[int, str, int]]:
    """Return what an action waits for, as (stage, F or B, micro-batch)."""
    stage, kind, microbatch = action
    if kind == "F":
        return [(stage - 1, "F", microbatch)] if stage else []
    if kind == "W":
        return [(stage, "B", microbatch)]
    return [(stage, "F", microbatch), *([(stage + 1, "B", microbatch)] if stage + 1 < num_stages else [])]


def _require_times(schedule: Schedule, times: Sequence[StageTimes], hop: float, overlap: float) -> None:
    assert len(times) == schedule.num_stages, "one StageTimes per stage"
    named = [("hop", hop), ("overlap", overlap)]
    named += [(name.replace("_", "-"), value) for of_stage in times for name, value in of_stage._asdict().items()]
    for name, value in named:
        if not 0 <= value < float("inf"):
            raise ConfigError(name, value, "0 or more, and finite")
    if not any(sum(of_stage) for of_stage in times):
        raise ConfigError("forward", times[0].forward, "positive, if the backward takes no time")
