"""`python -m dsv2 simulate hours` explains the published number; mistakes end in one line."""

import json

import pytest

from dsv2.__main__ import main


def test_what_the_published_hours_went_to(capsys):
    assert main(["simulate", "hours", "--on", "512", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["implied"]["model_flops"] == pytest.approx(0.3015, abs=5e-4)
    assert [(row["gpus"], row["microbatches"]) for row in printed["on"]] == [(2048, 72), (512, 288)]
    assert printed["on"][0]["gpu_hours"] == pytest.approx(8.1 * 172.8e3, rel=1e-6)
    assert main(["simulate", "hours", "--on", "512"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "(MFU) 30.2% 52,102" in out
    assert "2,048 72" in out
    assert "1,399,680 28.5" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--hours 1", "hours=1.0 is not valid: at least"),
        ("--hours nan", "hours=nan"),
        ("--gpus 100", "gpus=100"),
        ("--on 100", "gpus=100"),
        ("--on x", "on='x'"),
        ("--tokens 0", "tokens=0.0"),
        ("--schedule x", "schedule='x'"),
        ("--ranks 0", "ranks=0"),
        ("--batch 1", "batch=1"),
        ("--gpu x", "gpu='x'"),
        ("model=x", "model='x'"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message, capsys):
    assert main(["simulate", "hours", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
