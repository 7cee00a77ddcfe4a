"""Timelines against the closed forms of the papers, and against examples drawn by hand."""

from itertools import pairwise

import pytest

from dsv2.config import ConfigError
from dsv2.distributed.schedules import SCHEDULES, build_schedule
from dsv2.distributed.simulate import StageTimes, simulate


def run(name, num_ranks, num_microbatches, times=(1.0, 1.0, 1.0), *, stages_per_rank=None, **given):
    """All ranks equal; `times` are of a whole rank."""
    schedule = build_schedule(name, num_ranks, num_microbatches, stages_per_rank=stages_per_rank)
    each = StageTimes(*(time / schedule.stages_per_rank for time in times))
    return simulate(schedule, [each] * schedule.num_stages, **given)


@pytest.mark.parametrize(
    ("name", "makespan", "span"),
    [("gpipe", 45, 45), ("1f1b", 45, 45), ("zb_h1", 15, 15), ("zbv", 7.5, 0), ("dualpipev", 15, 15)],
)
@pytest.mark.parametrize("num_microbatches", [32, 48])
def test_the_bubbles_of_sixteen_ranks(name, makespan, span, num_microbatches):
    """(p - 1)(F + B + W), (p - 1)(F + B - W), and for two chunks a rank in the shape of a V half of p - 1 chunks."""
    timeline = run(name, 16, num_microbatches)
    assert timeline.work == [3.0 * num_microbatches] * 16
    assert timeline.makespan_bubble == makespan
    assert max(timeline.span_bubbles) == span
    assert timeline.makespan == 3 * num_microbatches + makespan
    assert timeline.bubble_share == makespan / timeline.makespan


@pytest.mark.parametrize("times", [(1, 1, 1), (2, 3, 1), (1, 1.25, 0.5), (1, 2, 0)])
@pytest.mark.parametrize("num_ranks", [1, 2, 5])
def test_closed_forms_at_unequal_times(times, num_ranks):
    f, b, w = times
    m = 4 * num_ranks
    for name in ("gpipe", "1f1b"):
        assert run(name, num_ranks, m, times).makespan_bubble == pytest.approx((num_ranks - 1) * (f + b + w))
    assert run("zb_h1", num_ranks, m, times).makespan_bubble == pytest.approx((num_ranks - 1) * (f + b - w))
    for v in (1, 2, 4):  # arXiv 2104.04473: interleaving divides the bubble by v
        interleaved = run("interleaved_1f1b", num_ranks, m, times, stages_per_rank=v)
        assert interleaved.makespan_bubble == pytest.approx((num_ranks - 1) * (f + b + w) / v)


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_dualpipev_by_its_authors(num_ranks):
    """(PP / 2 - 1)(F&B + B - 3W) with PP = 2p chunks, and PP + 1 of these held."""
    f, b, w = 0.5, 0.5, 0.5  # of a chunk
    timeline = run("dualpipev", num_ranks, 4 * num_ranks)
    assert timeline.makespan_bubble == pytest.approx((num_ranks - 1) * ((f + b + w) + (b + w) - 3 * w))
    assert max(timeline.peaks([1.0] * 2 * num_ranks)) == 2 * num_ranks + 1


def test_a_pipeline_drawn_by_hand():
    """Two ranks, two micro-batches, 1F1B, F = 1, B + W = 2, a hop of 0.5: every start and end.

    Rank 0: F0 0-1, F1 1-2, BW0 5-7, BW1 8-10. Rank 1: F0 1.5-2.5, BW0 2.5-4.5, F1 4.5-5.5, BW1 5.5-7.5.
    """
    timeline = run("1f1b", 2, 2, hop=0.5)
    drawn = {(e.rank, e.kind, e.microbatch): (e.start, e.end) for e in timeline.events}
    assert drawn == {
        (0, "F", 0): (0, 1), (0, "F", 1): (1, 2), (0, "BW", 0): (5, 7), (0, "BW", 1): (8, 10),
        (1, "F", 0): (1.5, 2.5), (1, "BW", 0): (2.5, 4.5), (1, "F", 1): (4.5, 5.5), (1, "BW", 1): (5.5, 7.5),
    }  # fmt: skip
    assert (timeline.makespan, timeline.spans, timeline.span_bubbles) == (10, [10, 6], [4, 0])


def test_stages_of_unequal_work():
    """Two ranks, one micro-batch: 1 + 3 forward, then the last stage's backward of 2 + 1 and the first's of 1 + 1."""
    schedule = build_schedule("zb_h1", 2, 1)
    timeline = simulate(schedule, [StageTimes(1, 1, 1), StageTimes(3, 2, 1)])
    assert timeline.makespan == 1 + 3 + 2 + 1 + 1
    assert timeline.work == [3, 6]
    assert timeline.makespan_bubble == 8 - 4.5
    assert timeline.span_bubbles == [5, 0]


def test_a_hop_within_a_rank_is_free():
    """ZB-V on one rank never waits; on two, the turn of the V costs no hop."""
    assert run("zbv", 1, 3, hop=5.0).makespan_bubble == 0
    schedule = build_schedule("zbv", 2, 1)
    timeline = simulate(schedule, [StageTimes()] * 4, hop=10.0)
    starts = {(e.stage, e.kind): e.start for e in timeline.events}
    assert [starts[stage, "F"] for stage in range(4)] == [0, 11, 12, 23]
    assert [starts[stage, "B"] for stage in (3, 2, 1)] == [24, 35, 37]  # W of stage 2 runs before B of stage 1


def test_peaks_are_those_of_the_papers():
    """GPipe holds all, 1F1B p - r, ZB-H1 and ZB-V p on every rank: "no more than 1F1B"."""
    assert run("gpipe", 4, 12).peaks([1] * 4) == [12, 12, 12, 12]
    assert run("1f1b", 4, 12).peaks([1] * 4) == [4, 3, 2, 1]
    assert run("zb_h1", 4, 12).peaks([1] * 4) == [4, 4, 4, 4]
    assert run("zbv", 4, 12).peaks([0.5] * 8) == [4, 4, 4, 4]
    assert run("1f1b", 4, 12).peaks([10, 0, 1, 7]) == [40, 0, 2, 7]


def test_a_forward_and_a_backward_together():
    plain, faster = run("dualpipev", 4, 16), run("dualpipev", 4, 16, overlap=0.8)
    pairs = {(e.start, e.end) for e in plain.events if e.kind == "BW" and e.end - e.start == 1.5}
    assert pairs
    assert faster.makespan < plain.makespan
    assert faster.work[0] < plain.work[0] == 48


@pytest.mark.parametrize("name", SCHEDULES)
def test_what_every_timeline_obeys(name):
    """Inputs are there, a rank does one thing at a time, and no schedule beats its work."""
    timeline = run(name, 4, 8, (1.0, 1.5, 0.75), hop=0.25)
    ends = {(e.stage, part, e.microbatch): e for e in timeline.events for part in e.kind}
    last = timeline.schedule.num_stages - 1
    for event in timeline.events:
        before = []
        if event.kind == "F" and event.stage:
            before.append(ends[event.stage - 1, "F", event.microbatch])
        if event.kind in ("B", "BW"):
            before.append(ends[event.stage, "F", event.microbatch])
            before += [ends[event.stage + 1, "B", event.microbatch]] if event.stage < last else []
        if event.kind == "W":
            before.append(ends[event.stage, "B", event.microbatch])
        for source in before:
            assert event.start >= source.end + (0.25 if source.rank != event.rank else 0) - 1e-9
    for rank in range(4):
        slots = sorted({(e.start, e.end) for e in timeline.events if e.rank == rank})
        assert all(end <= start + 1e-9 for (_, end), (start, _) in pairwise(slots))
    assert timeline.makespan >= max(timeline.work)


@pytest.mark.parametrize(
    ("times", "given", "message"),
    [
        ((-1, 1, 1), {}, "forward=-1.0"),
        ((1, float("nan"), 1), {}, "backward-input=nan"),
        ((1, 1, float("inf")), {}, "backward-weight=inf"),
        ((1, 1, 1), {"hop": -0.5}, "hop=-0.5"),
        ((1, 1, 1), {"overlap": float("nan")}, "overlap=nan"),
        ((0, 0, 0), {}, "forward=0.0"),
    ],
)
def test_times_that_are_none(times, given, message):
    with pytest.raises(ConfigError) as error:
        run("1f1b", 2, 2, times, **given)
    assert str(error.value).startswith(message)
