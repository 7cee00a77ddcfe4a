"""Learning rate and batch size as functions of the step."""

import pytest

from dsv2.training.schedule import BatchRamp, StepDecay


def test_a_constant_batch_fills_the_budget_with_whole_steps():
    batches = BatchRamp.Config(size=8).build(tokens=205_000, sequence_length=128)
    assert (batches.num_steps, batches.total_tokens) == (200, 204_800)
    assert [batches.first_sequence(step) for step in (0, 1, 2, 200)] == [0, 8, 16, 1600]


def test_a_ramp_grows_linearly_and_counts_every_sequence_once():
    batches = BatchRamp.Config(size=9216, start=2304, ramp_tokens=225_000_000_000).build(8_100_000_000_000, 4096)
    sizes = [batches.batch_size(step) for step in range(batches.num_steps)]
    assert sizes[0] == 2304
    assert sizes == sorted(sizes)
    ramp = next(step for step, size in enumerate(sizes) if size == 9216)
    assert batches.tokens_before(ramp) == pytest.approx(225e9, rel=0.001)
    half = next(step for step in range(ramp) if batches.tokens_before(step) > 112.5e9)
    assert sizes[half] == pytest.approx((2304 + 9216) / 2, rel=0.001)
    assert sum(sizes) * 4096 == batches.total_tokens
    assert 0 <= 8.1e12 - batches.total_tokens < 9216 * 4096


def test_a_budget_that_ends_within_the_ramp():
    batches = BatchRamp.Config(size=16, start=4, ramp_tokens=10_000).build(1_000, 10)
    assert 0 <= 1_000 - batches.total_tokens < batches.batch_size(batches.num_steps) * 10


def test_warm_up_then_steps_down():
    batches = BatchRamp.Config(size=1).build(tokens=1000, sequence_length=1)
    schedule = StepDecay.Config(warmup_steps=10, decay_at=(0.6, 0.9), decay=0.316)
    factors = [schedule.factor(step, batches) for step in range(1000)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10:600] == [1.0] * 590
    assert factors[600:900] == [0.316] * 300
    assert factors[900:] == pytest.approx([0.316**2] * 100)


def test_under_a_ramp_the_rate_falls_by_tokens_not_steps():
    """By hand: steps of 2, 2, 3, 3 sequences, then 4; a budget of 40 pays for 38, in 11 steps."""
    batches = BatchRamp.Config(size=4, start=2, ramp_tokens=8).build(tokens=40, sequence_length=1)
    seen = [0, 2, 4, 7, 10, 14, 18, 22, 26, 30, 34, 38]
    assert [batches.tokens_before(step) for step in range(12)] == seen
    assert (batches.num_steps, batches.total_tokens) == (11, 38)
    schedule = StepDecay.Config(warmup_steps=0, decay_at=(0.25, 0.56), decay=0.5)
    # 25% of 38 tokens are 9.5, seen before step 4 (step 3 would be 27% of the steps); 56% are 21.28, before step 7
    assert [schedule.factor(step, batches) for step in range(11)] == [1.0] * 4 + [0.5] * 3 + [0.25] * 4


@pytest.mark.parametrize(
    ("tokens", "steps"), [(2, 1), (3, 1), (4, 2), (6, 2), (7, 3), (9, 3), (10, 4), (13, 4), (14, 5)]
)
def test_a_budget_that_ends_within_a_ramp_pays_for_whole_steps(tokens, steps):
    batches = BatchRamp.Config(size=4, start=2, ramp_tokens=8).build(tokens=tokens, sequence_length=1)
    assert batches.num_steps == steps
    assert batches.total_tokens == [0, 2, 4, 7, 10, 14][steps]
