"""`python -m dsv2 simulate traffic`: random routings, those of a run and of its traces; mistakes end in one line."""

import json

import pytest
from PIL import Image

from dsv2.__main__ import main
from dsv2.accounting.traffic import all_to_all
from dsv2.commands.traffic import _cuts
from dsv2.config import ConfigError
from dsv2.training.run import load
from dsv2.training.saved import open_run

SMALL = ["--context", "512"]


def printed(capsys, *arguments):
    assert main(["simulate", "traffic", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_random_router_is_the_account(capsys):
    summary = printed(capsys, "model=v2", *SMALL)
    account = all_to_all(load(["model=v2"]).model)
    assert (summary["devices"], summary["tokens"]) == (8, 8 * 512)
    assert summary["devices_per_token_random"] == account.devices_limited
    rows = {(row["sent"], row["capacity"]): row for row in summary["rows"]}
    assert len(rows) == 4
    by_device = rows["once per device", None]
    assert by_device["bytes_per_token"] == pytest.approx(account.bytes_by_device_limited, rel=0.01)
    assert rows["once per pair", None]["bytes_per_token"] == pytest.approx(account.bytes_by_pair, rel=0.01)
    assert by_device["total"] == pytest.approx(
        by_device["shared"] + by_device["exposed"] + by_device["experts"] + by_device["straggler"]
    )
    assert rows["once per device", 1.0]["kept"] < by_device["kept"] == 1
    skewed = printed(capsys, "model=v2", *SMALL, "--skew", "1")
    assert skewed["rows"][0]["straggler"] > 3 * summary["rows"][0]["straggler"]
    # Without the model's devices there is no limit either.
    assert printed(capsys, "model=v2", *SMALL, "--devices", "4")["devices_per_token"] > 3


def test_the_routing_of_a_run_and_of_its_traces(trained, tmp_path, capsys):
    """Both are of the same text and model, so every number is the same."""
    of_run = printed(capsys, "--run", str(trained), "--context", "16")
    assert of_run["devices"] == 4
    assert of_run["tokens"] == 64
    assert 1 < of_run["devices_per_token"] <= 2
    assert main(["export-traces", str(trained), str(tmp_path / "traces")]) == 0
    capsys.readouterr()
    model = ["model.dim=16", "model.num_layers=2", "model.shape.num_experts=8", "model.shape.top_k=2"]
    model += ["model.shape.num_devices=4", "model.shape.expert_dim=8"]
    model.append(f"model.shape.num_shared={open_run(trained).model_config.moe.num_shared}")
    of_traces = printed(capsys, *model, "--traces", str(tmp_path / "traces"), "--context", "16")
    for ours, theirs in zip(of_run["rows"], of_traces["rows"], strict=True):
        assert ours == pytest.approx(theirs)
    # On another model's size, which has as many experts.
    larger = printed(capsys, *model, "model.dim=64", "--run", str(trained), "--context", "16")
    assert larger["rows"][0]["bytes_per_token"] == pytest.approx(4 * of_run["rows"][0]["bytes_per_token"])


def test_cuts_are_whole_micro_batches():
    assert _cuts(100, 32, 8) == [(0, 32), (32, 64), (64, 96)]
    assert _cuts(30, 32, 8) == [(0, 24)]
    with pytest.raises(ConfigError, match="devices=8"):
        _cuts(7, 32, 8)


def test_tables_and_figure(capsys, tmp_path):
    path = tmp_path / "layer.png"
    assert main(["simulate", "traffic", "model=v2_lite", "--devices", "8", *SMALL, "--figure", str(path)]) == 0
    assert min(Image.open(path).size) > 200
    out = " ".join(capsys.readouterr().out.split())
    assert "One MoE layer, forward and backward of 4,096 tokens on 8 devices (h800)" in out
    assert "with a random router" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("model=deepseek_7b", "model.ffn="),
        ("model=v2_lite", "devices=1 is not valid: 2 or more, a divisor of the 64 experts"),
        ("model=v2 --devices 7", "devices=7"),
        ("model=v2 --capacity x", "capacity='x'"),
        ("model=v2 --capacity 0", "capacity='0'"),
        ("model=v2 --skew -1", "skew=-1.0"),
        ("model=v2 --skew nan", "skew=nan"),
        ("model=v2 --sequences 100", "tokens=3276800"),
        ("--run nowhere", "nowhere"),
        ("--traces nowhere", "together with a model"),
        ("model=v2 --traces nowhere", "traces='nowhere'"),
        ("model=v2 --figure /nowhere/x.png", "no folder /nowhere"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message, capsys):
    assert main(["simulate", "traffic", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_a_model_that_the_routing_does_not_fit(trained, capsys):
    assert main(["simulate", "traffic", "model=v2", "--run", str(trained)]) == 2
    assert "6 of 160 experts' is not valid: 2 of 8 experts, as in the routing of the run" in capsys.readouterr().err
    assert main(["simulate", "traffic", "--run", str(trained), "--skew", "1"]) == 2
    assert "skew=1.0 is not valid: not together with --run" in capsys.readouterr().err
