"""Orders of actions against definitions, and against torch, whose private functions they come from."""

import pytest
from torch.distributed.pipelining import schedules as torchs

from dsv2.config import ConfigError
from dsv2.distributed.schedules import SCHEDULES, build_schedule


def words(steps):
    return " ".join("+".join(f"{action.kind}{action.stage}.{action.microbatch}" for action in step) for step in steps)


def test_orders_written_by_hand():
    first, last = build_schedule("1f1b", 2, 3).ranks
    assert words(first) == "F0.0 F0.1 BW0.0 F0.2 BW0.1 BW0.2"
    assert words(last) == "F1.0 BW1.0 F1.1 BW1.1 F1.2 BW1.2"
    first, last = build_schedule("zb_h1", 2, 3).ranks
    assert words(first) == "F0.0 F0.1 B0.0 W0.0 F0.2 B0.1 W0.1 B0.2 W0.2"
    assert words(last) == "F1.0 B1.0 F1.1 B1.1 W1.0 F1.2 B1.2 W1.1 W1.2"
    assert words(build_schedule("gpipe", 2, 2).ranks[1]) == "F1.0 F1.1 BW1.0 BW1.1"


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("num_ranks", "num_microbatches"), [(1, 2), (2, 4), (3, 6), (4, 12)])
def test_every_stage_runs_every_micro_batch_once(name, num_ranks, num_microbatches):
    schedule = build_schedule(name, num_ranks, num_microbatches)
    parts = [
        (action.stage, part, action.microbatch)
        for steps in schedule.ranks
        for step in steps
        for action in step
        for part in action.kind
    ]
    assert len(parts) == len(set(parts)) == 3 * schedule.num_stages * num_microbatches
    assert set(schedule.rank_of) == set(range(schedule.num_stages))


def test_stages_go_round_or_come_back():
    assert build_schedule("interleaved_1f1b", 3, 6, stages_per_rank=3).rank_of == {s: s % 3 for s in range(9)}
    for name in ("zbv", "dualpipev"):
        assert build_schedule(name, 3, 6).rank_of == {0: 0, 1: 1, 2: 2, 3: 2, 4: 1, 5: 0}


@pytest.mark.parametrize(("num_ranks", "num_microbatches"), [(2, 4), (4, 8), (4, 24), (8, 16)])
def test_zb_h1_is_torchs_interleaved_zero_bubble_with_one_stage(num_ranks, num_microbatches):
    interleaved = build_schedule("interleaved_zb", num_ranks, num_microbatches, stages_per_rank=1)
    assert interleaved.ranks == build_schedule("zb_h1", num_ranks, num_microbatches).ranks


def test_1f1b_is_torchs_where_that_is_whole():
    schedule = object.__new__(torchs.Schedule1F1B)
    schedule._num_stages, schedule._n_microbatches = 4, 8
    theirs = schedule._get_pipeline_order()
    for rank, ours in enumerate(build_schedule("1f1b", 4, 8).ranks):
        actions = [str(a) for a in theirs[rank] if a is not None and a.computation_type.value != "REDUCE_GRAD"]
        if rank == 3:  # counts from 1 in torch 2.13, which is why the order is written here
            actions = [f"{action[:2]}{int(action[2:]) - (action[1] == 'F')}" for action in actions]
        assert actions == [f"{a.stage}{'B' if a.kind == 'BW' else 'F'}{a.microbatch}" for (a,) in ours]


def test_what_is_read_from_torch_is_still_there():
    """Names that start with an underscore: torch may move them, and this says which."""
    for name in ("ScheduleInterleaved1F1B", "ScheduleInterleavedZeroBubble", "ScheduleZBVZeroBubble"):
        assert callable(getattr(torchs, name)._calculate_single_rank_operations)
    assert callable(torchs.ScheduleDualPipeV._calculate_single_rank_operations)
    assert callable(torchs.ScheduleGPipe._get_pipeline_order)
    letters = {kind.name: kind.value for kind in torchs._ComputationType}
    assert [letters[k] for k in ("FORWARD", "BACKWARD_INPUT", "BACKWARD_WEIGHT", "FULL_BACKWARD")] == list("FIWB")


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("zb_h2", (2, 4, None), "schedule='zb_h2' is not valid: one of gpipe, 1f1b"),
        ("1f1b", (0, 4, None), "ranks=0"),
        ("1f1b", (2, 0, None), "microbatches=0"),
        ("zbv", (2, 4, 3), "stages-per-rank=3 is not valid: 2 for zbv"),
        ("interleaved_1f1b", (2, 4, 0), "stages-per-rank=0"),
        ("dualpipev", (4, 7, None), "microbatches=7 is not valid: at least the number of stages, 8, for dualpipev"),
        ("interleaved_zb", (4, 9, None), "microbatches=9 is not valid: a multiple of its rounds, m // p = 2,"),
        ("1f1b", (1000, 1000, None), "3,000,000 actions"),
    ],
)
def test_sizes_that_a_schedule_is_not_defined_for(name, sizes, message):
    with pytest.raises(ConfigError) as error:
        build_schedule(name, sizes[0], sizes[1], stages_per_rank=sizes[2])
    assert message in str(error.value)
