"""Studies: what they make of their file, and which comparisons they refuse."""

import math
import re
from dataclasses import replace

import pytest
import yaml

import dsv2.study.files
from ablations import results, study
from ablations.request import parse
from ablations.run import main
from ablations.trials.results import accuracy_in_training, steps_to_half
from dsv2.config import CONFIG_DIR, ConfigError, plain
from dsv2.metrics import BUDGETS
from dsv2.study.files import read
from dsv2.study.plan import EQUAL_WITHIN, Plan
from dsv2.training.losses import BalanceLoss

BALANCE = read("sweep", "balance_losses")
NONE = {"none": {"about": "", "overrides": []}}


def write(tmp_path, monkeypatch, **changes):
    """A copy of the configs in which the study `mine` is balance_losses with `changes`."""
    node = BALANCE | changes
    for folder in ("sweep", "scales", "probes"):
        (tmp_path / folder).mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(yaml.safe_dump(node))
    for name in ("scales/smoke", "probes/arithmetic"):
        (tmp_path / f"{name}.yaml").write_text((CONFIG_DIR / f"{name}.yaml").read_text())
    monkeypatch.setattr(dsv2.study.files, "CONFIG_DIR", tmp_path)


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


SCALES = sorted(path.stem for path in (CONFIG_DIR / "scales").glob("*.yaml"))
STUDIES = sorted(path.stem for path in (CONFIG_DIR / "sweep").glob("*.yaml"))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_plans_at_every_scale(name, scale):
    planned = study(name, scale=scale)
    assert len(planned.seeds) >= planned.file.seeds >= 2
    for row in planned.budgets():
        assert row["mismatch"] <= EQUAL_WITHIN
        reference = next(other for other in planned.budgets() if other["arm"] == planned.baseline_of(row["arm"]))
        for budget in BUDGETS:
            if budget not in (*planned.file.differs, *planned.arms[row["arm"]].differs):
                assert row[budget] == pytest.approx(reference[budget], rel=EQUAL_WITHIN), (row["arm"], budget)
    assert all(run.scale == scale and run.study == name for run in planned.configs.values())
    fingerprints = [trial.folder.name for trial in planned.trials if trial.seed == planned.seeds[0]]
    assert len(set(fingerprints)) == len(planned.arms) * (1 + len(planned.probes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "nothing"}, "baseline='nothing' is not valid: one of the arms"),
        ({"probes": ["chess"]}, "probe='chess' is not valid: choose one of arithmetic"),
        ({"adjust": {"beauty": 4}}, "adjust"),
        ({"scales": {"smok": ["optim.lr=1"]}}, r"scales=\['smok'\] is not valid: scales, of smoke"),
        ({"arms": NONE | {"x": {"about": "", "overrides": ["seed=7"]}}}, r"seed=7 is not valid: nothing that a study"),
        ({"arms": NONE | {"x": {"about": "", "seed_offset": 1}}}, r"arms\.x\.seed_offset=1 is not valid: apart from"),
    ],
)
def test_a_bad_study_is_refused_at_load(tmp_path, monkeypatch, changes, message):
    write(tmp_path, monkeypatch, **changes)
    with pytest.raises(ConfigError, match=message):
        study("mine")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seeds=[0"], "seeds='\\[0' is not valid: a word, or a list"),
        (["seeds=[99999999999]"], r"seeds=\[99999999999\] is not valid: 0 to 2\^32 - 1"),
        (["seed=3"], "seed=3 is not valid: nothing that a study overrides; seeds="),
        (["arm=x"], "arm='x' is not valid: nothing that a study overrides"),
    ],
)
def test_words_that_would_be_lost_are_refused(words, message, capsys):
    assert main(["sweep=routing_collapse", "dry_run=true", *words]) == 2
    assert re.search(message, capsys.readouterr().err)


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
    (tmp_path / "third").mkdir()
    write(tmp_path / "third", monkeypatch, arms=wider, equal=["tokens"])
    with pytest.raises(ConfigError, match=r"arms\.wide\.total_params=.*since `differs` does not name it"):
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
        (["sweep=nope"], "sweep='nope' is not valid: choose one of aa"),
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
    for content in ('{"status": "fini', "[1]", '{"status": "finished", "metrics": {"val/loss": "low"}}'):
        (trial.folder / "result.json").write_text(content)
        assert list(results("balance_losses")["status"]) == ["unfinished"] * 30
        assert "result.json is damaged; the run counts as unfinished" in capsys.readouterr().err
    for content in ("{", "[1]", '{"seeds": "abc"}'):
        (runs / "balance_losses" / "smoke" / "study.json").write_text(content)
        with pytest.raises(ConfigError, match=r"study\.json is damaged; run the study again"):
            results("balance_losses")


def test_the_solver_holds_the_budgets_equal():
    planned = study("kv_rank")
    assert planned.changes["rank1"] == {}
    assert planned.changes["quarter"]["dense.width"] > 176 > planned.changes["double"]["dense.width"]
    for arm, changes in planned.changes.items():
        assert planned.configs[arm].model.dense.width == changes.get("dense.width", 176)


def test_a_grid_is_every_combination():
    planned = study("balance_grid")
    assert len(planned.arms) == 8
    assert planned.configs["expert0.003_device0.0_communication0.02"].loss == BalanceLoss.Config(
        expert=0.003, device=0.0, communication=0.02
    )


def test_arms_of_two_sizes_have_baselines_of_their_own():
    planned = study("attention_moe")
    assert {arm: planned.baseline_of(arm) for arm in planned.arms}["large_mla"] == "large_mha"
    assert planned.configs["large_mla"].model.dim > planned.configs["small_mla"].model.dim
    key = {arm: run.model.attention for arm, run in planned.configs.items()}
    assert (key["small_mha_key_norm"].key_norm, key["small_mha_partial_rope"].key_norm) == (True, False)


def test_identical_arms_differ_in_their_seeds_alone():
    trials = {trial.arm: trial.run for trial in study("aa", seeds=[3]).trials}
    assert [run.seed for run in trials.values()] == [3, 1003, 2003, 3003]
    assert len({plain(replace(run, seed=0), identity=True).__repr__() for run in trials.values()}) == 1


def test_probes_are_trials_of_the_same_model():
    trials = [trial for trial in study("attention_dense", seeds=[0]).trials if trial.arm == "mqa"]
    assert [trial.probe for trial in trials] == [None, "recall"]
    text, *tasks = (trial.run.model for trial in trials)
    assert {(task.num_layers, task.ffn, task.attention) for task in tasks} == {
        (text.num_layers, text.ffn, text.attention)
    }


@pytest.mark.parametrize("probe", sorted(path.stem for path in (CONFIG_DIR / "probes").glob("*.yaml")))
def test_every_probe_is_a_task_that_can_be_scored(probe, tmp_path):
    """Also those that no study here asks for: they are there for studies of one's own."""
    node = yaml.safe_load((CONFIG_DIR / "sweep" / "attention_dense.yaml").read_text())
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(node | {"probes": [probe]}))
    run = Plan(str(path), "smoke").run_of("mqa", probe)
    source = run.data.open(sequence_length=run.trainer.sequence_length, seed=0, validation_tokens=128)
    assert (source.validation().targets >= 0).any()


def test_a_study_of_ones_own_is_a_path(tmp_path):
    node = yaml.safe_load((CONFIG_DIR / "sweep" / "kv_rank.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(node))
    assert study(f"{tmp_path}/mine.yaml").folder.parts[-2:] == ("mine", "smoke")
    with pytest.raises(ConfigError, match=r"there is no .*yours\.yaml"):
        study(f"{tmp_path}/yours.yaml")


def test_steps_to_half():
    logged = [{"step": 10}, {"step": 20, "val/accuracy": 0.49}, {"step": 30, "val/accuracy": 0.5}]
    assert steps_to_half(logged) == 30
    assert steps_to_half(logged[:2]) == math.inf


def test_accuracy_in_training():
    logged = [{"step": 10}, {"step": 20, "val/accuracy": 0.25}, {"step": 30, "val/accuracy": 0.75}]
    assert accuracy_in_training(logged) == 0.5
    assert math.isnan(accuracy_in_training([]))
