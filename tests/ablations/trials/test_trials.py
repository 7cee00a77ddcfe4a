"""A study as data: its trials, and what of it is kept beside them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ablations.trials.trials import DEFINITION, RECORD, Study, stored
from dsv2.config import ConfigError, plain
from dsv2.study.files import read


def test_arms_are_paired_by_seed():
    trials = Study("balance_losses", seeds=[0, 1]).trials
    assert [(trial.seed, trial.arm) for trial in trials[:2]] == [(0, "none"), (0, "expert")]
    by_seed = {seed: [trial.run for trial in trials if trial.seed == seed] for seed in (0, 1)}
    for seed, runs in by_seed.items():
        assert {run.seed for run in runs} == {seed}
        assert len({run.data for run in runs}) == len({run.trainer for run in runs}) == 1
    assert len({trial.folder for trial in trials}) == 12


def test_identical_arms_differ_in_their_seeds_alone():
    trials = {trial.arm: trial.run for trial in Study("aa", seeds=[3]).trials}
    assert {arm: run.seed for arm, run in trials.items()} == {"a": 3, "b": 1003, "c": 2003, "d": 3003, "twin": 3}
    twin = trials.pop("twin")
    assert len({plain(replace(run, seed=0), identity=True).__repr__() for run in trials.values()}) == 1
    same = replace(twin.trainer, validate_every=trials["a"].trainer.validate_every)
    assert plain(replace(twin, trainer=same), identity=True) == plain(trials["a"], identity=True)


def test_probes_are_trials_of_the_same_model():
    trials = [trial for trial in Study("attention_dense", seeds=[0]).trials if trial.arm == "mqa"]
    assert [trial.probe for trial in trials] == [None, "recall"]
    assert [trial.name for trial in trials] == ["mqa-s0", "mqa-s0-recall"]
    text, *tasks = (trial.run.model for trial in trials)
    assert {(task.num_layers, task.ffn, task.attention) for task in tasks} == {
        (text.num_layers, text.ffn, text.attention)
    }


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_a_study_of_ones_own_is_a_path(tmp_path, suffix):
    node = read("sweep", "kv_rank")
    path = tmp_path / f"mine{suffix}"
    path.write_text(yaml.safe_dump(node))
    assert Study(str(path)).folder.parts[-2:] == ("mine", "smoke")
    with pytest.raises(ConfigError, match=rf"there is no .*yours\{suffix}"):
        Study(f"{tmp_path}/yours{suffix}")


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1], [2**32], [0.0], [True]])
def test_bad_seeds_are_refused(small, seeds):
    with pytest.raises(
        ConfigError, match=r"seeds=.* is not valid: (at least one, without duplicates|whole numbers from 0)"
    ):
        Study(small.source, seeds=seeds, overrides=small.overrides)


def test_trials_that_are_one_run_are_refused(mine):
    """Arms alike but for their seeds may not share one."""
    mine["arms"] = {"none": {"about": "", "overrides": []}, "same": {"about": "", "overrides": [], "seed_offset": 1}}
    assert len(Study(mine, seeds=[0, 2]).trials) == 4
    with pytest.raises(ConfigError, match=r"arms\.same\.seed_offset=1 is not valid: .* and same-s0 are the same run"):
        Study(mine, seeds=[0, 1])


# ---- what is kept ----------------------------------------------------------------------------------------------------


def test_a_study_is_stored_as_it_was_run(small):
    small.remember()
    again = stored("pair")
    assert again.node == small.node | {"name": "pair"}
    assert (again.source, again.asked, again.overrides) == (small.source, (0,), small.overrides)
    assert again.trials == small.trials
    assert again.command == small.command


def test_a_study_that_was_never_run_is_planned_from_its_file(pair_file):
    assert not (planned := stored(str(pair_file))).folder.exists()
    assert planned.seeds == Study(str(pair_file)).seeds
    with pytest.raises(ConfigError, match=r"sweep='pair' is not valid: choose one of"):
        stored("pair")


def test_a_study_is_found_without_its_file_corpus_and_directory(mine, corpus, tmp_path, monkeypatch, runs):
    """By its name alone, from elsewhere, for its definition and the names of its trials lie in the store."""
    texts = tmp_path / "texts"
    shutil.copytree(Path(corpus).parent, texts)
    mine["base"].append(f"data.path={texts}/*.txt")
    file = tmp_path / "mine.yml"
    file.write_text(yaml.safe_dump(mine))
    for source in (mine, str(file)):
        before = Study(source, seeds=[0, 1])
        before.remember()
        texts.rename(tmp_path / "gone")
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        with monkeypatch.context() as moved:
            moved.chdir(elsewhere)
            assert stored("mine").trials == stored("mine.yml").trials == before.trials
        with pytest.raises(ConfigError, match=r"data\.path"):
            Study(source, seeds=[0, 1])  # planning it anew takes the corpus
        (tmp_path / "gone").rename(texts)
        elsewhere.rmdir()
    assert sorted(path.name for path in (runs / "mine" / "smoke").iterdir()) == [RECORD, DEFINITION]


def test_a_name_may_have_dots(mine):
    planned = Study(mine | {"name": "mine.v2"}, seeds=[0])
    planned.remember()
    assert stored("mine.v2").trials == planned.trials


def test_the_command_of_a_study_from_a_dictionary_names_what_was_kept(mine):
    planned = Study(mine, seeds=[0])
    planned.remember()
    assert planned.arguments == [f"sweep={planned.folder / DEFINITION}", "scale=smoke", "seeds=[0]"]
    assert Study(planned.source, seeds=[0]).trials == planned.trials


def test_a_store_from_before_studies_were_kept_is_planned_from_its_file(six):
    six.remember()
    (six.folder / DEFINITION).unlink()
    record = six.folder / RECORD
    record.write_text(json.dumps({key: json.loads(record.read_text())[key] for key in ("seeds", "overrides")}))
    assert stored("balance_losses").trials == six.trials


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1]",
        "null",
        '{"seeds": "abc"}',
        '{"seeds": "abc", "overrides": []}',
        '{"seeds": null, "overrides": "abc"}',
        '{"seeds": null, "overrides": [3]}',
        '{"seeds": null, "overrides": [], "trials": [["none", 0, null, 3]]}',
        '{"seeds": null, "overrides": [], "trials": [["none", 0, null, null]]}',
        '{"seeds": null, "overrides": [], "trials": [["none", 0]]}',
        '{"seeds": null, "overrides": [], "trials": [[["none"], 0, null, "abc"]]}',
    ],
)
def test_a_damaged_record_is_one_clear_error(runs, content):
    folder = runs / "balance_losses" / "smoke"
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(content)
    with pytest.raises(ConfigError, match=r"study\.json is damaged; run the study again") as damaged:
        stored("balance_losses")
    assert "\n" not in str(damaged.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"[1]", b"question: [", b"question: a\nquestion: b\n", b"\xff\xfe\x00", b"question: Does it?\n"],
    ids=["empty", "a list", "cut short", "a key twice", "no text", "a question alone"],
)
def test_a_damaged_definition_is_one_clear_error(small, content):
    small.remember()
    (small.folder / DEFINITION).write_bytes(content)
    with pytest.raises(ConfigError) as damaged:
        stored("pair")
    assert "\n" not in str(damaged.value)
    assert f"{small.folder / DEFINITION} cannot be used; run the study again to renew it" in str(damaged.value)


def test_trials_are_not_shared_by_processes():
    with pytest.raises(ConfigError, match=r"trainer\.devices=2 is not valid: 1 in a study"):
        Study("kv_rank", overrides=["trainer.devices=2"])
