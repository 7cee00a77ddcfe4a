"""`study(...)`: what a notebook or a script asks of a study; and what makes a study's file a bad one."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

import dsv2.study.files
from ablations import results, study
from ablations.running.runner import run_trials
from ablations.studies import StudyHandle
from ablations.trials.trials import stored
from dsv2.config import CONFIG_DIR, ConfigError
from dsv2.data.needles import Needles
from dsv2.storage.rundir import finished
from dsv2.study.files import read
from dsv2.study.plan import Plan
from tests.references.haystacks import instead_of_speeches

BALANCE = {key: value for key, value in read("sweep", "balance_losses").items() if key != "contrasts"}
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "nothing"}, "baseline='nothing' is not valid: one of the arms"),
        ({"probes": ["chess"]}, "probe='chess' is not valid: choose one of arithmetic"),
        ({"adjust": {"beauty": 4}}, "adjust"),
        ({"scales": {"smok": ["optim.lr=1"]}}, r"scales=\['smok'\] is not valid: scales, of smoke"),
        ({"arms": NONE | {"x": {"about": "", "overrides": ["seed=7"]}}}, r"seed=7 is not valid: a study sets"),
        ({"arms": NONE | {"x": {"about": "", "seed_offset": 1}}}, r"arms\.x\.seed_offset=1 is not valid: an offset"),
    ],
)
def test_a_bad_study_is_refused_at_load(tmp_path, monkeypatch, changes, message):
    write(tmp_path, monkeypatch, **changes)
    with pytest.raises(ConfigError, match=message):
        study("mine")


@pytest.mark.parametrize("probe", sorted(path.stem for path in (CONFIG_DIR / "probes").glob("*.yaml")))
def test_every_probe_is_a_task_that_can_be_scored(probe, tmp_path):
    """Also those that no study here asks for: they are there for studies of one's own."""
    node = read("sweep", "attention_dense")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(node | {"probes": [probe]}))
    with instead_of_speeches():
        run = Plan(str(path), "smoke").run_of("mqa", probe)
        # The words of needles have no tokens of their own in the documents that stand in for 12 MB of speeches.
        data = replace(run.data, shortest=128) if isinstance(run.data, Needles.Config) else run.data
        source = data.open(sequence_length=run.trainer.sequence_length, seed=0, validation_tokens=128)
    assert (source.validation().targets >= 0).any()


# ---- from a dictionary -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "", "a b", "a/b", "../up", ".hidden", "-x", "[red]", "a\n", 3])
def test_a_dictionary_needs_a_name_that_can_be_a_folder(mine, name):
    with pytest.raises(ConfigError, match=r"name=.* is not valid: a study's name: letters, digits and"):
        study(mine | {"name": name})
    del mine["name"]
    with pytest.raises(ConfigError, match="name=None is not valid: a study's name"):
        study(mine)


def test_a_dictionary_is_what_its_file_would_be(mine, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(mine, sort_keys=False))
    given, read = study(mine, seeds=[0, 1]), study(str(file), seeds=[0, 1])
    assert given.trials == read.trials
    assert given.accounting().equals(read.accounting())
    assert repr(given) == repr(read) == "study mine at scale smoke: 2 arms x 2 seeds"


def test_a_dictionary_is_checked_as_a_file_is(mine):
    with pytest.raises(ConfigError, match="colour='red' is not valid: unknown key"):
        study(mine | {"colour": "red"})
    with pytest.raises(ConfigError, match="baseline='nothing' is not valid: one of the arms"):
        study(mine | {"baseline": "nothing"})


def test_what_becomes_of_the_dictionary_later_is_no_part_of_the_study(mine):
    """As in a notebook that makes the next study out of the same dictionary before it runs the first."""
    first = study(mine, seeds=[0])
    mine["arms"]["more"] = {"about": "more", "overrides": ["loss.expert=0.5"]}
    first.remember()
    assert list(stored("mine").arms) == list(first.arms) == ["none", "expert"]


def test_a_dictionary_holds_what_a_file_could(mine):
    """What cannot be kept is refused before anything is trained."""
    del mine["arms"]
    levels = [0.0, 0.01]
    grid = study(mine | {"baseline": "expert0.0", "grid": {"loss.expert": tuple(levels)}}, seeds=[0])
    grid.remember()
    assert stored("mine").trials == grid.trials
    with pytest.raises(ConfigError, match="study='mine' is not valid: what a YAML file could hold"):
        study(mine | {"baseline": "expert0.0", "grid": {"loss.expert": list(np.array(levels))}}, seeds=[0])


def test_a_study_from_a_dictionary_runs_and_is_found_again(mine, corpus, here, tmp_path, monkeypatch, capsys):
    """From another directory and after its corpus was deleted: all that is asked of it lies in its folder."""
    texts = tmp_path / "texts"
    shutil.copytree(Path(corpus).parent, texts)
    mine["base"].append(f"data.path={texts}/*.txt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DSV2_RUNS")  # runs/ of the current directory
    made = study(mine, seeds=[0])
    assert made.run(workers=1) is True
    assert len(here) == 2
    assert (made.folder / "report" / "report.html").is_file()
    before = made.results()
    assert list(before["status"]) == ["finished"] * 2
    assert "No verdict: one seed per arm" in made.verdict()
    assert "report:  runs/mine/smoke/report/report.html" in capsys.readouterr().out

    shutil.rmtree(texts)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("DSV2_RUNS", str(tmp_path / "runs"))
    again = stored("mine")
    assert [trial.folder.name for trial in again.trials] == list(before["fingerprint"])
    assert all(finished(trial.folder) for trial in again.trials)
    after = results("mine")
    assert after.drop(columns="folder").equals(before.drop(columns="folder"))
    assert len(after.metrics()) == len(after.metrics().dropna()) > 0
    assert len(after.routing()) > 0
    assert list(Path().iterdir()) == []


def test_a_dictionary_declares_contrasts_too(mine):
    given = mine | {"contrasts": [{"arm": "expert", "metric": "routing/max_violation", "margin": 0.1}]}
    assert study(given).contrasts == (("expert", "none", "routing/max_violation", 0.1, None),)
    with pytest.raises(ConfigError, match=r"contrasts\.0\.arm='all' is not valid"):
        study(mine | {"contrasts": [{"arm": "all", "metric": "val/loss", "margin": 0.1}]})
    with pytest.raises(ConfigError, match="contrasts='expert' is not valid"):
        study(mine | {"contrasts": "expert"})


# ---- with_arm --------------------------------------------------------------------------------------------------------


def test_an_arm_more_runs_alone(mine, here, console):
    first = study(mine, seeds=[0])
    assert run_trials(first, workers=1, launcher="local", console=console) is True
    arms, folders = dict(first.arms), [trial.folder for trial in first.trials]
    more = first.with_arm("more", ["loss.expert=0.02"], about="twice of it")
    assert isinstance(more, StudyHandle)
    assert run_trials(more, workers=1, launcher="local", console=console) is True
    assert here == [trial.folder.resolve() for trial in more.trials]  # the first two from before
    assert [trial.folder for trial in more.trials[:2]] == folders
    assert list(more.results()["arm"]) == list(results("mine")["arm"]) == ["none", "expert", "more"]
    assert "3 trials, 2 already finished" in console.file.getvalue()
    assert (dict(first.arms), [trial.folder for trial in first.trials]) == (arms, folders)
    assert list(first.results()["arm"]) == ["none", "expert"]
    assert "more" not in first.node["arms"]
    assert "more" not in mine["arms"]


def test_an_arm_more_keeps_what_was_asked(pair):
    first = pair("optim.lr=1e-3")
    more = first.with_arm("more", ["loss.expert=0.02"]).with_arm("most", ["loss.expert=0.03"])
    assert (more.scale, more.seeds, more.overrides) == (first.scale, first.seeds, first.overrides)
    assert more.name == first.name
    assert more.folder == first.folder
    assert list(more.arms) == ["none", "expert", "more", "most"]
    assert more.arms["more"].about == "loss.expert=0.02"  # nothing else was said
    assert more.configs["most"].loss.expert == 0.03
    assert more.baseline_of("most") == "none"


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("expert", ["loss.expert=0.5"], "arms='expert' is not valid: choose a new name; pair has none, expert"),
        ("a/b", ["loss.expert=0.5"], "arms='a/b' is not valid: names of letters, digits"),
        ("same", ["loss.expert=0.01"], r"arms\.same=.* it is the same run as expert"),
        ("wide", ["model.ffn.expert_dim=16"], r"arms\.wide\.total_params=.* within 1% of the [\d,]+ of none"),
        ("typo", ["loss.exprt=1"], "loss.exprt=1 is not valid: unknown key"),
        ("seed", ["seed=3"], "seed=3 is not valid: a study sets this itself"),
    ],
)
def test_a_bad_arm_is_refused(small, name, overrides, message):
    with pytest.raises(ConfigError, match=message):
        small.with_arm(name, overrides)
    assert list(small.arms) == list(small.node["arms"]) == ["none", "expert"]


def test_a_grid_takes_no_arm():
    with pytest.raises(ConfigError, match="arms='more' is not valid: the arms of balance_grid are a"):
        study("balance_grid").with_arm("more", ["loss.expert=1"])


# ---- what a notebook shows -------------------------------------------------------------------------------------------


def test_the_page_of_a_study_escapes_its_text(mine):
    mine["question"] = "Is <script>alert(1)</script> [bold] & $x$ < 3?"
    mine["arms"]["none"]["about"] = (
        "<b>none</b> | & more, in as many words as an arm of a study may need to be told apart"
    )
    shown = study(mine, seeds=[0])._repr_html_()
    assert "<script>" not in shown
    assert "<b>none" not in shown
    assert "Is &lt;script&gt;alert(1)&lt;/script&gt; [bold] &amp; $x$ &lt; 3?" in shown
    assert (
        "&lt;b&gt;none&lt;/b&gt; | &amp; more, in as many words as an arm of a study may need to be told apart" in shown
    )
    assert "study mine at scale smoke: 2 arms x 1 seeds" in shown
    assert shown.count("<tr") == 3


def test_there_is_no_runner_to_stop(small):
    assert small.stop() is False


def test_a_verdict_is_one_of_stored_results(mine, fill):
    assert study(mine).verdict().startswith("No verdict: 6 of 6 trials have no result: none seed 0 (unfinished)")
    lines = fill(mine, seeds=(0, 1, 2)).verdict().splitlines()
    assert lines[0] == "Against none, 3 paired seeds, look 1, interval at 96%:"
    assert lines[1].startswith("validation loss, expert - better: -0.")
    assert max(map(len, lines)) <= 100
