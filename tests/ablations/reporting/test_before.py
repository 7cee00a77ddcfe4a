"""The table before a study is started."""

import pytest

from ablations.reporting.before import notes, print_outlook, size
from ablations.trials.outlook import Outlook, Speed
from dsv2.distributed.outlook import Need, Span

TRIAL = Need(tokens=51_200, flops=1e12, memory=5e8, disk=15e6)
LEFT = Need(tokens=512_000, flops=1e13, memory=5e8, disk=150e6)
SPEED = Speed(Span(5e9, 1e10, 2e10), "3 earlier runs on this machine")


def test_one_trial_and_the_study_stand_side_by_side(console, runs) -> None:
    print_outlook(Outlook("here", SPEED, TRIAL, LEFT, 10, 2, 1), None, console)
    said = console.file.getvalue()
    for words in (
        *("longest trial", "10 trials left, 2 at a time", "2 min (50 s to 3 min)", "8 min (4 min to 17 min)"),
        *("51.2K", "512K", "1.00e+12", "500 MB", "1 GB", "15 MB", "150 MB", "worker hours"),
        "At 10 GFLOP/s (5 to 20): 3 earlier runs on this machine.",
    ):
        assert words in said, words
    assert "price" not in said


def test_a_price_is_of_device_hours(console, runs) -> None:
    found = Outlook(
        "h100", Speed(Span(1e14, 2e14, 4e14), "a data sheet"), TRIAL, LEFT._replace(flops=7.2e20), 10, 1, 80
    )
    print_outlook(found, 2.5, console)
    said = console.file.getvalue()
    assert "1,000 (500 to 2,000)" in said  # 7.2e20 / 2e14 / 3600
    assert "price at 2.5 per hour" in said
    assert "2,500 (1,250 to 5,000)" in said
    assert "need 80 such devices" in notes(found)[1]


def test_too_little_disk_is_said(runs) -> None:
    found = Outlook("here", SPEED, TRIAL, LEFT._replace(disk=1e30), 10, 1, 1)
    assert notes(found)[-1].startswith("Not enough disk: ")


@pytest.mark.parametrize(("count", "text"), [(12, "12 B"), (1.94e12, "1.9 TB"), (15.2e6, "15 MB"), (999e6, "999 MB")])
def test_bytes_have_two_or_three_digits(count, text) -> None:
    assert size(count) == text
