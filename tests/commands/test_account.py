"""`python -m dsv2 account` prints what the accounting says, and mistakes end in one line."""

import json

import pytest

import dsv2
from dsv2.__main__ import main
from dsv2.accounting.published import PUBLISHED


def test_the_command_prints_what_the_function_says(capsys):
    assert main(["account", "model=v2", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["total_params"] == dsv2.account(dsv2.load(["model=v2"]).model).total_params
    assert sum(item["total_params"] for item in printed["items"]) == printed["total_params"]
    assert main(["account", "model=v2"]) == 0
    assert "34,560 elements" in capsys.readouterr().out


def test_the_command_says_what_caches_and_weights_take(capsys):
    assert main(["account", "model=v2_lite", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    held = {row["bits"]: row for row in printed["caches"]}
    assert held[16] == {"bits": 16, "bytes_per_token": 31_104, "average_bits": 16.0}
    assert held[6] == {"bits": 6, "bytes_per_token": 27 * 468, "average_bits": 6.5}
    assert printed["weight_bytes"]["bf16"] == 2 * printed["total_params"]
    assert main(["account", "model=v2_lite"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "6 12,636 6.50 40.6%" in text
    assert f"{printed['weight_bytes']['fp8']:,} bytes in fp8" in text


def test_a_mistaken_model_or_context_ends_in_one_line(capsys):
    assert main(["account", "model=v3"]) == 2
    assert capsys.readouterr().err.startswith("error: model='v3' is not valid: choose one of deepseek_67b")
    assert main(["account", "--context", "0"]) == 2
    assert "context=0" in capsys.readouterr().err


def test_the_table_of_published_figures(capsys):
    assert main(["account", "--published", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) > len(PUBLISHED)  # and those that models of cost derive
    assert {row.get("agrees") for row in rows} == {True, None}
    assert main(["account", "--published"]) == 0
    printed = capsys.readouterr().out
    assert "not claimed" in printed
    assert printed.count("yes") == sum(row.get("agrees") is True for row in rows)
    assert main(["account", "--published", "model=v2"]) == 2
    assert capsys.readouterr().err.startswith("error: published=True is not valid")


def test_the_command_has_memory_traffic_and_cost(capsys):
    asked = ["account", "model=v2", "--mfu", "0.4", "--tokens", "8.1e12", "--gpu-price", "2"]
    assert main([*asked, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    cost = printed["cost"]
    assert cost["gpu_hours"] == pytest.approx(printed["flops_per_token"] * 8.1e12 / (0.4 * 989e12) / 3600)
    assert cost["price"] == pytest.approx(2 * cost["gpu_hours"])
    assert printed["memory"]["weights"] == 4 * printed["total_params"]
    assert printed["traffic"]["max_devices"] == 3
    assert main(asked) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("activations", "once per device, at most 3", "GPU hours at 40.0% of the peak, at 2 per hour"):
        assert part in text
    assert main(["account", "model=deepseek_7b", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["traffic"] is None
    assert printed["cost"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mfu", "2", "--tokens", "1e9"], "error: mfu=2.0 is not valid"),
        (["--mfu", "0.4"], "error: tokens=None is not valid: GPU hours need both"),
        (["--gpu-price", "2"], "error: mfu=None is not valid: GPU hours need both"),
        (["--batch", "0"], "error: batch=0 is not valid: 1 to "),
    ],
)
def test_mistakes_end_in_one_line(arguments, message, capsys):
    assert main(["account", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


def test_layers_that_are_computed_again_take_less_memory(capsys):
    kept = []
    for layers in (0, 60):
        assert main(["account", "model=v2", f"trainer.recompute_layers={layers}", "--json"]) == 0
        kept.append(json.loads(capsys.readouterr().out)["memory"]["activation_bytes"])
    assert kept[1] < 0.1 * kept[0]


def test_a_stored_run_is_one_model_too(trained, capsys):
    """With the precision and recomputation that it was trained with."""
    config = dsv2.open_run(trained).config
    for name in ("toy/smoke/moe/0", str(trained)):
        assert main(["account", "--run", name, "--context", "32", "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed["total_params"] == dsv2.account(config.model, context=32).total_params
        assert printed["memory"]["precision"] == config.trainer.precision
    for words, message in (
        (["model=v2"], "overrides='model=v2' is not valid: none together with --run"),
        (["--hf", "x"], "run='toy/smoke/moe/0' is not valid: not together with --hf"),
        (["--published"], "published=True is not valid: without overrides, --hf and --run"),
    ):
        assert main(["account", "--run", "toy/smoke/moe/0", *words]) == 2
        assert capsys.readouterr().err.startswith(f"error: {message}")
    assert main(["account", "--run", "toy/smoke/moe/1"]) == 2
    assert capsys.readouterr().err.startswith("error: RUN='toy/smoke/moe/1': a run directory, sweep/scale/arm/seed")
