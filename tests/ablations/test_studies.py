"""Studies: what they make of their file, and which comparisons they refuse."""

import pytest
import yaml

import ablations.studies
from ablations import results, study
from ablations.run import main, parse
from dsv2.config import CONFIG_DIR, ConfigError


def write(tmp_path, monkeypatch, **changes):
    """A copy of the configs in which the study `mine` is balance_losses with `changes`."""
    node = yaml.safe_load((CONFIG_DIR / "sweep" / "balance_losses.yaml").read_text()) | changes
    for group in ("sweep", "scale"):
        (tmp_path / group).mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(yaml.safe_dump(node))
    (tmp_path / "scale" / "smoke.yaml").write_text((CONFIG_DIR / "scale" / "smoke.yaml").read_text())
    monkeypatch.setattr(ablations.studies, "CONFIG_DIR", tmp_path)


def test_arms_are_paired_by_seed():
    trials = study("balance_losses", seeds=[0, 1]).trials
    assert [(trial.seed, trial.arm) for trial in trials[:2]] == [(0, "none"), (0, "expert")]
    by_seed = {seed: [trial.run for trial in trials if trial.seed == seed] for seed in (0, 1)}
    for seed, runs in by_seed.items():
        assert {run.seed for run in runs} == {seed}
        assert len({run.data for run in runs}) == len({run.trainer for run in runs}) == 1
    assert len({trial.folder for trial in trials}) == 12


def test_the_six_arms_are_what_the_study_says():
    configs = study("balance_losses", seeds=[0]).configs
    alphas = {arm: (run.loss.expert, run.loss.device, run.loss.communication) for arm, run in configs.items()}
    assert alphas == {
        "none": (0, 0, 0),
        "expert": (0.003, 0, 0),
        "device": (0, 0.05, 0),
        "communication": (0, 0, 0.02),
        "paper": (0.003, 0.05, 0.02),
        "paper_limited": (0.003, 0.05, 0.02),
    }
    limited = configs["paper_limited"].model.ffn
    assert (limited.max_devices, limited.dropping.capacity_factor, limited.dropping.exempt_ratio) == (3, 1.0, 0.1)
    assert configs["paper"].model.ffn.dropping is None


def test_the_same_study_at_every_scale():
    for path in sorted((CONFIG_DIR / "scale").glob("*.yaml")):
        table = study("balance_losses", scale=path.stem, seeds=[0]).accounting()
        assert next(iter(table["arm"])) == "none"
        assert table["total_params"].nunique() == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "nothing"}, "baseline='nothing' is not valid: one of the arms"),
        ({"metric": "val/accuracy"}, "metric='val/accuracy' is not valid: one of the judged metrics"),
        ({"equal": ["beauty"]}, "equal=.'beauty',. is not valid: some of total_params"),
        ({"margin": {"x": 1.0}}, "margin=.* is not valid: judged metrics only; not x"),
        ({"arms": {"none": {"about": "", "overrides": []}}}, "arms=.* is not valid: at least two"),
        ({"judged": {"val/loss": "best"}}, "judged=.* is not valid"),
        ({"question": None}, "question=None is not valid"),
        ({"colour": "red"}, "colour='red' is not valid: unknown key"),
    ],
)
def test_a_bad_study_is_refused_at_load(tmp_path, monkeypatch, changes, message):
    write(tmp_path, monkeypatch, **changes)
    with pytest.raises(ConfigError, match=message):
        study("mine")


def test_duplicate_and_unequal_arms_are_refused(tmp_path, monkeypatch):
    same = {name: {"about": "", "overrides": ["loss.expert=0.1"]} for name in ("none", "other")}
    write(tmp_path, monkeypatch, arms=same)
    with pytest.raises(ConfigError, match=r"arms\.other=.* it is the same run as none"):
        study("mine")
    wider = {
        "none": {"about": "", "overrides": []},
        "wide": {"about": "", "overrides": ["model.ffn.expert_dim=32"]},
    }
    (tmp_path / "second").mkdir()
    write(tmp_path / "second", monkeypatch, arms=wider)
    with pytest.raises(ConfigError, match=r"arms\.wide\.total_params=\d+ is not valid: within 1% of none's"):
        study("mine")


def test_the_command_line_is_split(capsys):
    request, overrides = parse(["sweep=balance_losses", "seeds=[0,1]", "dry_run=true", "optim.lr=1e-3"])
    assert (request.sweep, request.seeds, request.dry_run, overrides) == (
        "balance_losses",
        (0, 1),
        True,
        ["optim.lr=1e-3"],
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "sweep=None is not valid: name a study"),
        (["sweep=nope"], "sweep='nope' is not valid: choose one of balance_losses"),
        (["sweep=balance_losses", "scale=huge"], "scale='huge' is not valid: choose one of base, paper"),
        (["sweep=balance_losses", "workers=0"], "workers=0 is not valid: at least 1"),
        (["sweep=balance_losses", "seeds=3"], "seeds=3 is not valid"),
        (["sweep=balance_losses", "seeds=[1,1]"], "each once"),
        (["sweep=balance_losses", "launcher=cloud"], "launcher='cloud' is not valid"),
        (["sweep=balance_losses", "optim.lrr=1"], "optim.lrr=1 is not valid: unknown key; did you mean 'lr'"),
    ],
)
def test_a_bad_request_ends_in_one_line(arguments, message, capsys, runs):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not runs.exists()


def test_a_dry_run_prints_the_plan_and_runs_nothing(capsys, runs):
    assert main(["sweep=balance_losses", "scale=paper", "dry_run=true"]) == 0
    printed = capsys.readouterr().out
    assert "235.7B" in printed
    assert "paper_limited: loss.expert=0.003" in printed
    assert not list(runs.glob("balance_losses/**/*"))


def test_damaged_files_are_named_not_fatal(runs, capsys):
    trial = study("balance_losses", seeds=[0]).trials[0]
    trial.folder.mkdir(parents=True)
    (trial.folder / "result.json").write_text('{"status": "fini')
    assert list(results("balance_losses")["status"]) == ["unfinished"] * 30
    assert "result.json is damaged; the run counts as unfinished" in capsys.readouterr().err
    (runs / "balance_losses" / "smoke" / "study.json").write_text("{")
    with pytest.raises(ConfigError, match=r"study\.json is damaged; run the study again"):
        results("balance_losses")
