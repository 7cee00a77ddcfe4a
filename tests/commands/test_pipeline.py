"""`python -m dsv2 simulate pipeline` prints what the simulator says, and mistakes end in one line."""

import json

import pytest
from PIL import Image

from dsv2.__main__ import main


def printed(capsys, *arguments):
    assert main(["simulate", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_all_schedules_at_equal_times(capsys):
    rows = {row["schedule"]: row for row in printed(capsys, "pipeline", "--ranks", "16")["schedules"]}
    bubbles = {name: (row["makespan_bubble"], row["span_bubble"]) for name, row in rows.items()}
    assert bubbles["1f1b"] == (45, 45)
    assert bubbles["zb_h1"] == (15, 15)
    assert bubbles["zbv"] == (7.5, 0)
    assert "peak_activation_bytes" not in rows["1f1b"]
    assert main(["simulate", "pipeline", "--schedule", "zbv"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "zbv 32 199.5 7.5 3.8% 0 16" in out
    assert "Bubble of makespan: from the first action of any rank" in out


def test_a_model_gives_times_and_bytes(capsys):
    (row,) = printed(capsys, "pipeline", "model=v2", "--schedule", "1f1b")["schedules"]
    assert row["peak_microbatches"] == 16
    (again,) = printed(
        capsys, "pipeline", "model=v2", "trainer.recompute_layers=60", "--schedule", "1f1b"
    )["schedules"]  # fmt: skip
    assert again["peak_activation_bytes"] < row["peak_activation_bytes"] / 5
    assert 1.2 < again["work"] / row["work"] < 4 / 3  # a forward more, but not of the head
    (given,) = printed(
        capsys, "pipeline", "model=v2", "--schedule", "1f1b", "--forward", "1", "--backward", "1", "--weight", "1"
    )["schedules"]  # fmt: skip
    assert given["makespan_bubble"] == 45
    assert given["peak_activation_bytes"] == row["peak_activation_bytes"]


def test_the_figure_is_a_picture(capsys, tmp_path):
    path = tmp_path / "timeline.png"
    assert main(["simulate", "pipeline", "--ranks", "4", "--microbatches", "8", "--figure", str(path)]) == 0
    assert min(Image.open(path).size) > 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("pipeline --schedule zb", "schedule='zb'"),
        ("pipeline --ranks 0", "ranks=0"),
        ("pipeline --ranks x", "invalid int value: 'x'"),
        ("pipeline --microbatches 17 --schedule dualpipev", "microbatches=17"),
        ("pipeline --forward -1", "forward=-1.0"),
        ("pipeline --hop nan", "hop=nan"),
        ("pipeline --figure /nowhere/x.png", "no folder /nowhere"),
        ("pipeline model=v2 --forward 1", "forward=1.0"),
        ("pipeline model=v2 --ranks 64", "stages=64"),
        ("pipeline model=v2 --efficiency 0", "efficiency=0.0"),
        ("pipeline model=v2 --gpu b200", "gpu='b200'"),
        ("pipeline model=v2 --context 0", "context=0"),
        ("pipeline model=v9", "model='v9'"),
        ("", "required: subject"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message, capsys):
    try:
        status = main(["simulate", *arguments.split()])
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
