"""GPU hours against the account's, and against what one rank takes by hand."""

from dataclasses import replace

import pytest

import dsv2
from dsv2.accounting.cost import implied_mfu, training_cost
from dsv2.accounting.traffic import expected_devices
from dsv2.config import ConfigError
from dsv2.distributed.hardware import GPUS
from dsv2.distributed.hours import ClusterRun, Layout

H800 = GPUS["h800"]
PAPER = Layout(gpus=2048)


@pytest.fixture(scope="module")
def v2():
    return dsv2.load(["model=v2"]).model


@pytest.fixture(scope="module")
def lite():
    return dsv2.load(["model=v2_lite"]).model


def test_one_rank_without_experts_elsewhere_is_the_account(lite):
    """No bubble, no all-to-all: FLOPs over the rate, whatever the schedule."""
    flops = dsv2.account(lite, context=2048).flops_per_token
    for schedule in ("1f1b", "zbv"):
        layout = Layout(gpus=4, ranks=1, batch=64, context=2048, schedule=schedule)
        shares = ClusterRun(lite, layout, H800).hours(1e12, 0.4)
        assert shares.gpu_hours == pytest.approx(training_cost(flops, 1e12, 0.4).gpu_hours)
        assert shares.model_flops == pytest.approx(0.4)
        assert shares.kernels == pytest.approx(0.6)
        assert (shares.recomputation, shares.all_to_all) == (0, 0)
        assert shares.bubble == pytest.approx(0, abs=1e-12)


def test_the_paper_in_parts(v2):
    run = ClusterRun(v2, PAPER, H800)
    shares = run.implied(1e12, 172.8e3)
    flops = dsv2.account(v2).flops_per_token
    assert shares.gpu_hours == pytest.approx(172.8e3, rel=1e-6)
    assert shares.model_flops == pytest.approx(implied_mfu(flops, 1e12, 172.8e3), rel=1e-6)
    assert sum(shares[2:]) == pytest.approx(1)
    assert all(share >= 0 for share in shares)
    assert run.hours(2e12, shares.efficiency).gpu_hours == pytest.approx(2 * 172.8e3, rel=1e-6)
    assert run.implied(1e12, run.hours(1e12, 0.25).gpu_hours).efficiency == pytest.approx(0.25, rel=1e-6)


def test_the_all_to_all_of_one_rank_by_hand(v2):
    """59 MoE layers, each token once per device, 1/8 of the sends at home, 160 GB/s; shared experts hide their time."""
    layout = Layout(gpus=8, ranks=1, batch=8, schedule="1f1b")
    shares = ClusterRun(v2, layout, H800).hours(1e12, 0.9)
    sends = 4096 * expected_devices(160, 6, 8, 3) * 7 / 8
    transfers = 2 * (sends * 5120 * 2 / 160e9 + 10e-6)  # to the experts and back
    shared = 2 * 4096 * 6 * 5120 * 1536 / (989e12 * 0.9)
    assert transfers > 2 * shared  # some of it is seen in backward as well
    exposed = 59 * ((transfers - shared) + (transfers - 2 * shared))
    compute = dsv2.account(v2).flops_per_token * 4096 / (989e12 * 0.9)
    assert shares.all_to_all == pytest.approx(exposed / (compute + exposed), rel=1e-3)  # counts of tokens are rounded
    assert shares.bubble == pytest.approx(0, abs=1e-9)


def test_the_bubble_of_equal_stages_by_hand(lite):
    """1F1B with p ranks: (p - 1) / (m + p - 1) of the makespan, where stages are equal and hops take no time."""
    equal = replace(lite, num_layers=4, num_dense_layers=0, vocab_size=1)
    gpu = replace(H800, network=1e30, latency=0.0)
    shares = ClusterRun(equal, Layout(gpus=4, ranks=4, batch=12, schedule="1f1b"), gpu).hours(1e12, 0.5)
    assert shares.bubble == pytest.approx(3 / (12 + 3), rel=1e-3)  # a head of one word is left


def test_recomputation_is_a_forward_more(lite):
    layout = Layout(gpus=1, ranks=1, batch=4, schedule="1f1b")
    plain, again = (
        ClusterRun(lite, replace(layout, recompute_layers=layers), H800).hours(1e12, 0.5)
        for layers in (0, lite.num_layers)
    )
    assert 0.3 < again.recomputation / again.model_flops < 1 / 3
    assert again.gpu_hours / plain.gpu_hours == pytest.approx(1 + again.recomputation / again.model_flops)


def test_more_gpus_at_an_equal_batch_wait_longer(v2):
    few, many = (ClusterRun(v2, replace(PAPER, gpus=gpus), H800).hours(1e12, 0.3) for gpus in (512, 4096))
    assert PAPER.microbatches == 72
    assert many.bubble > few.bubble
    assert many.gpu_hours > few.gpu_hours


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpus": 100}, "gpus=100 is not valid: a multiple of the 16 ranks"),
        ({"gpus": 0}, "gpus=0"),
        ({"batch": 100}, "batch=100 is not valid: a multiple of the 128 sequences"),
        ({"gpus": 64, "batch": 4}, "gpus=64 is not valid: a multiple of 16 ranks x 8 devices"),
        ({"schedule": "dualpipev", "batch": 256}, "microbatches=2"),
        ({"ranks": 64}, "stages=128"),
    ],
)
def test_layouts_that_do_not_fit(v2, changes, message):
    with pytest.raises(ConfigError) as error:
        ClusterRun(v2, replace(PAPER, **changes), H800)
    assert message in str(error.value)


def test_hours_and_tokens_that_cannot_be(v2):
    run = ClusterRun(v2, PAPER, H800)
    with pytest.raises(ConfigError, match=r"hours=1000\.0 is not valid: at least"):
        run.implied(1e12, 1e3)
    with pytest.raises(ConfigError, match="tokens=-1"):
        run.hours(-1, 0.5)
