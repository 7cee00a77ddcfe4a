"""`python -m ablations.run`: what it refuses, plans, runs and says."""

import re

import pytest
import yaml

from ablations.run import main, show
from ablations.studies import study
from dsv2.storage.rundir import finished

SHORT = ["model.shape.num_experts=16", "model.shape.num_devices=8", "trainer.log_every=4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "sweep=None is not valid: name a study"),
        (["sweep=nope"], "sweep='nope' is not valid: choose one of aa"),
        (["sweep=balance_losses", "scale=huge"], "scale='huge' is not valid: choose one of base, paper"),
        (["sweep=balance_losses", "workers=0"], "workers=0 is not valid: at least 1"),
        (["sweep=balance_losses", "seeds=3"], "seeds=3 is not valid"),
        (["sweep=balance_losses", "seeds=[1,1]"], "without duplicates"),
        (["sweep=balance_losses", "launcher=cloud"], "launcher='cloud' is not valid"),
        (["sweep=balance_losses", "optim.lrr=1"], "optim.lrr=1 is not valid: unknown key; did you mean 'lr'"),
    ],
)
def test_a_bad_request_ends_in_one_line(arguments, message, capsys, runs):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not runs.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seeds=[0"], "seeds='\\[0' is not valid: a word, or a list"),
        (["seeds=[99999999999]"], r"seeds=\[99999999999\] is not valid: whole numbers from 0 to 2\^32 - 1"),
        (["seed=3"], "seed=3 is not valid: a study sets this itself; use seeds="),
        (["arm=x"], "arm='x' is not valid: a study sets this itself"),
    ],
)
def test_words_that_would_be_lost_are_refused(words, message, capsys):
    assert main(["sweep=routing_collapse", "dry_run=true", *words]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_store_that_cannot_be_written_is_one_line(quick, monkeypatch, capsys):
    monkeypatch.setenv("DSV2_RUNS", "/dev/null/runs")
    assert main(["sweep=balance_losses", "seeds=[0]", *quick, *SHORT]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: /dev/null")
    assert error.count("\n") == 1


# ---- the plan --------------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_plan_and_runs_nothing(capsys, runs):
    assert main(["sweep=balance_losses", "scale=paper", "dry_run=true"]) == 0
    printed = capsys.readouterr().out
    assert "235.7B" in printed
    assert "paper_limited: loss.expert=0.003" in printed
    assert not list(runs.glob("balance_losses/**/*"))


def test_the_plan_says_what_the_solver_changed_and_which_probes_there_are(console):
    show(study("attention_dense", seeds=[0]), console)
    said = console.file.getvalue()
    assert re.search(r"^mqa: .*; adjusted to equal budgets: \S+ from [\d,]+ to [\d,]+ \([+-]\d+%\)", said, re.M)
    assert re.search(r"^Every arm is also trained on recall: ", said, re.M)


def test_text_of_users_is_not_read_as_markup(mine, console):
    odd = "[bold]is[/bold] [red] $x_1$ | <b>a</b> :smile: [link=x]y[/link]"
    mine |= {"question": f"Does {odd}?", "prediction": f"It {odd}."}
    mine["arms"]["none"]["about"] = f"none {odd}"
    show(study(mine, seeds=[0]), console)
    said = console.file.getvalue()
    for text in (f"Does {odd}?\n", f"Prediction: It {odd}.\n", f"none: none {odd}\n"):
        assert text in said
    assert "\x1b" not in said


# ---- running ---------------------------------------------------------------------------------------------------------


def test_a_study_is_run_and_reported(mine, tmp_path, here, capsys, runs):
    file = tmp_path / "mine.yml"
    file.write_text(yaml.safe_dump(mine, sort_keys=False))
    assert main([f"sweep={file}", "seeds=[0]", "workers=1"]) == 0
    printed = capsys.readouterr().out
    assert "2 trials, 0 already finished" in printed
    assert "No verdict: one seed per arm gives no interval" in printed
    folder = runs / "mine" / "smoke"
    named = f"report:  {folder}/report/report.html\nfigures: {folder}/report/figures\nstudies: {runs}/index.html\n"
    assert printed.endswith(named)
    assert all(finished(path) for path in (folder / "trials").iterdir())
    assert here == [trial.folder.resolve() for trial in study(str(file), seeds=[0]).trials]


def test_a_study_with_a_failed_trial_is_reported_and_exits_with_1(mine, here, capsys, tmp_path):
    file = tmp_path / "mine.yaml"
    mine["arms"]["expert"]["overrides"].append("optim.lr=1e30")
    file.write_text(yaml.safe_dump(mine, sort_keys=False))
    assert main([f"sweep={file}", "seeds=[0]"]) == 1
    assert "No verdict: 1 of 2 trials have no result: expert seed 0 (diverged)." in capsys.readouterr().out


def test_several_scales_end_with_their_ladder(capsys, runs, monkeypatch, fill):
    ran = []
    monkeypatch.setattr("ablations.studies.run_study", lambda planned, **_: ran.append(planned.scale) or True)
    for scale in ("smoke", "tiny"):
        fill("kv_rank", scale)
    assert main(["sweep=kv_rank", "scale=[smoke,tiny]", "seeds=[0,1,2]"]) == 0
    assert ran == ["smoke", "tiny"]
    assert capsys.readouterr().out.endswith(f"ladder:  {runs}/kv_rank/ladder/report/report.html\n")


def test_ctrl_c_is_one_line_and_its_own_status(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ablations.run._main", interrupt)
    assert main(["sweep=balance_losses"]) == 130
    assert capsys.readouterr().err == "\nstopped; progress is saved, run the same command again to resume\n"


def test_help_names_the_words(capsys):
    assert main(["--help"]) == 0
    assert "launcher=..." in capsys.readouterr().out


def test_a_study_whose_learning_rates_are_not_known_is_planned_but_not_run(capsys):
    assert main(["sweep=attention_tuned", "dry_run=true"]) == 0
    planned = " ".join(capsys.readouterr().out.split())
    assert "The learning rates are those of the scale until they are known: a study that has finished" in planned
    assert main(["sweep=attention_tuned"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: lr_from='attention_lr' is not valid: a study that has finished at scale smoke; run ")
    assert said.endswith("python -m ablations.run sweep=attention_lr scale=smoke first\n")
