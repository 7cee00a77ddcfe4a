"""The figures of section 3.2.3 from models of cost: by hand, and how near they come."""

import pytest

from dsv2.accounting.derived import HOURS_67B, HOURS_V2, LINKS, derived, generation, hours, ratio


def test_hours_by_hand() -> None:
    """FLOPs of V2 over those of 67B, times 67B's hours; and 3 devices x 7/8 x 4 crossings x 10 KB x 59 layers."""
    by_name = {row.name: row for row in derived()}
    flops = 52.1 / 123.0  # hours at the peak, as `--published` has them
    assert hours() == pytest.approx(HOURS_67B * flops, rel=0.002)
    sent = 2.995 * 7 / 8 * 4 * 2 * 5120 * 59 * 1e12
    for link, rate in LINKS.items():
        assert hours(link) - hours() == pytest.approx(sent / rate / 3600, rel=1e-3)
        row = by_name[f"DeepSeek-V2, over {link} [V2 3.2.3]"]
        assert (row.published, row.unit) == (172.8, "K GPU h")
        assert row.ours == pytest.approx(hours(link) / 1e3)
        saved = by_name[f"V2 over {link}, against 67B [V2 3.2.3]"]
        assert saved.ours == pytest.approx(100 * (1 - hours(link) / HOURS_67B))
    assert hours() < hours("NVLink") < hours("InfiniBand") < HOURS_V2  # communication explains a part


def test_generation_by_hand() -> None:
    """576 GB usable; 34,560 elements of 6 bits and 194,560 of 16; every GPU reads 3.35 TB per second."""
    v2, dense = generation(4096)
    cache_v2, cache_67b = 34_560 * 0.75 * 4096, 2 * 8 * 128 * 95 * 2 * 4096
    assert dense.batch == int((576e9 - 2 * 67.42e9) / cache_67b) == 276
    assert v2.batch == pytest.approx((576e9 - 236.5e9) / cache_v2, rel=0.01)
    assert dense.read_seconds == pytest.approx(576e9 / 26.8e12, rel=0.01)
    assert v2.compute_seconds > v2.read_seconds
    assert dense.read_seconds > dense.compute_seconds


def test_the_published_ratio_lies_between_contexts_of_4k_and_8k() -> None:
    assert ratio(2048) < ratio(4096) < 5.76 < ratio(8192)
    assert ratio(4096) == pytest.approx(5.76, rel=0.05)


def test_published_speeds_are_below_the_bounds() -> None:
    speeds = [row for row in derived() if row.what.startswith("tokens per second")]
    assert len(speeds) == 2
    assert all(row.ours > row.published for row in speeds)


def test_every_figure_says_what_it_rests_on() -> None:
    for row in derived():
        assert len(row.why) > 20
        assert row.difference == pytest.approx(row.ours / row.published - 1)
