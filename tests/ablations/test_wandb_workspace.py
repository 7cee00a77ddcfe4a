"""The W&B workspace of a study is made offline; saving it takes the server, which no test has."""

import json

from ablations.wandb_workspace import main


def test_a_workspace_has_panels_for_every_judged_metric(capsys):
    assert main(["sweep=balance_losses"]) == 0
    made = json.loads(capsys.readouterr().out)
    text = json.dumps(made)
    for metric in ("val/loss", "routing/max_violation", "routing/overflow", "perf/tokens_per_s"):
        assert metric in text
    assert "balance_losses" in json.dumps(made["spec"]["section"]["runSets"])
    assert [s["name"] for s in made["spec"]["section"]["panelBankConfig"]["sections"]][:2] == [
        "At the end, by arm",
        "Loss",
    ]


def test_mistakes_end_in_one_line(capsys):
    assert main(["sweep=nope"]) == 2
    assert "sweep='nope' is not valid: choose one of aa" in capsys.readouterr().err
    assert main(["sweep=aa", "team=x"]) == 2
    assert "team='x' is not valid: unknown key" in capsys.readouterr().err
