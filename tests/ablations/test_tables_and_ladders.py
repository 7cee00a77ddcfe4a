"""Ladders and paper tables, out of stores filled with made-up results: no training."""

import json
import math
import re

import numpy as np
import pytest

from ablations import results
from ablations.report import main
from ablations.reporting.ladder import runs_of
from ablations.reporting.paper_table import latex, markdown, paper_table
from ablations.studies import study

LOSS = {"smoke": 5.0, "tiny": 4.0, "small": 3.4}


def fill(name: str, scale: str, seeds: tuple[int, ...] = (0, 1, 2), leave_out: int = 0):
    """A store in which the second arm is 0.1 better at every seed and scale, give or take little."""
    planned, rng = study(name, scale, seeds), np.random.default_rng(0)
    planned.remember()
    for trial in planned.trials[: len(planned.trials) - leave_out]:
        trial.folder.mkdir(parents=True)
        better = 0.1 * (list(planned.arms).index(trial.arm) == 1)
        value = LOSS[scale] - better + 0.02 * trial.seed + rng.normal(0, 0.002)
        metrics = dict.fromkeys(planned.file.judged, value) | {"val/loss": value, "val/accuracy": 0.9}
        result = {"status": "finished", "metrics": metrics, "tokens": 1000, "seconds": 1.0}
        (trial.folder / "result.json").write_text(json.dumps(result))
        rows = [{"step": 10, "tokens": 500, "val/accuracy": 0.2}, {"step": 20, "tokens": 1000, "val/accuracy": 0.9}]
        (trial.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return planned


def test_a_ladder_says_what_keeps_and_foretells(capsys, runs):
    for scale in LOSS:
        fill("kv_rank", scale)
    assert main(["sweep=kv_rank", "scale=[smoke,tiny,small]"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"Over smoke, tiny, small: quarter (better|below)", printed)
    report = (runs / "kv_rank" / "ladder" / "report" / "report.md").read_text()
    assert "E + A C^-alpha" in report or "A C^-alpha" in report
    assert "Held out, small:" in report
    assert "base" in report  # the next rung is foretold
    assert (runs / "kv_rank" / "ladder" / "report" / "figures" / "loss_over_compute_rank1.png").stat().st_size > 10_000


def test_compute_is_flops_a_token_times_tokens(runs):
    planned = fill("kv_rank", "smoke")
    table = runs_of([planned])
    (row,) = [row for row in planned.budgets() if row["arm"] == "half"]
    assert set(table[table["arm"] == "half"]["flops"]) == {row["flops_per_token"] * row["tokens"]}


def test_a_ladder_with_a_hole_has_no_verdict(capsys):
    fill("kv_rank", "smoke")
    fill("kv_rank", "tiny", leave_out=1)
    assert main(["sweep=kv_rank", "scale=[smoke,tiny]"]) == 0
    assert "No verdict: no verdict: 1 trials have no result: double seed 2 at tiny" in capsys.readouterr().out.replace(
        "\n", " "
    )


def test_the_paper_table_has_ours_and_the_published_rows(capsys, runs):
    planned = fill("attention_moe", "smoke", seeds=(0, 1))
    assert main(["sweep=attention_moe", "--table"]) == 0
    printed = capsys.readouterr().out
    folder = runs / "attention_moe" / "smoke" / "report"
    assert (folder / "paper_table.md").read_text() in printed
    table, text = paper_table(planned, results("attention_moe"))
    cells = {row[0]: dict(zip(table.header[1:], row[1:], strict=True)) for row in table.rows}
    assert cells["KV cache per token (elements)"]["small_mla"] == "96"
    assert cells["MMLU (published)"] == {
        "small_mha": "48.7",
        "small_mla": "50.0",
        "small_mha_partial_rope": "",
        "small_mha_key_norm": "",
        "large_mha": "57.5",
        "large_mla": "59.0",
    }
    values = [float(cells["val loss (lower is better)"][arm].split()[0]) for arm in ("small_mha", "small_mla")]
    assert values[0] - values[1] == pytest.approx(0.1, abs=0.01)
    assert "other models, data and budgets" in text
    assert markdown(table, text).count("\n|") == len(table.rows) + 1
    tex = (folder / "paper_table.tex").read_text()
    assert tex == latex(table, text)
    assert tex.count(r"\\") == len(table.rows) + 1
    assert r"small\_mla" in tex
    assert "±" not in tex
    page = (folder / "paper_table.html").read_text()
    assert page.count("<tr>") == len(table.rows) + 1


def test_an_unfinished_table_says_so():
    planned = fill("attention_dense", "smoke", seeds=(0, 1), leave_out=1)
    _, text = paper_table(planned, results("attention_dense"))
    assert "1 of 6 trials have no result: not a basis for a comparison" in text


def test_probes_become_columns_of_their_arm():
    fill("attention_dense", "smoke", seeds=(0, 1))
    table = results("attention_dense")
    assert len(table) == 6
    assert set(table["recall/accuracy"]) == {0.9}
    assert set(table["recall/steps_to_half"]) == {20.0}
    assert not math.isnan(table["val/loss"].sum())


def test_a_grid_is_reported_by_its_factors(capsys, runs):
    fill("balance_grid", "smoke", seeds=(0, 1, 2))
    assert main(["sweep=balance_grid"]) == 0
    report = (runs / "balance_grid" / "smoke" / "report" / "report.md").read_text()
    assert "## Main effects and interactions" in report
    assert "expert=0.003 x device=0.05" in report
