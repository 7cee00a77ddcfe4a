"""A study as data: its trials, and what of it is kept beside them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ablations.studies import study
from ablations.trials.record import DEFINITION, RECORD
from ablations.trials.results import results
from ablations.trials.trials import Study, stored
from dsv2.config import ConfigError, plain
from dsv2.data import corpora
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
        ConfigError, match=r"seeds=.* is not valid: (at least one, without duplicates|(a list of )?whole numbers)"
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


# ---- which request is reported ---------------------------------------------------------------------------------------


def finish(trials):
    for trial in trials:
        trial.folder.mkdir(parents=True, exist_ok=True)
        (trial.folder / "result.json").write_text(json.dumps({"status": "finished", "metrics": {}, "tokens": 1}))


def test_fewer_seeds_leave_the_report_of_more(mine):
    whole = Study(mine, seeds=[0, 1, 2])
    assert whole.reported() is whole
    finish(whole.trials)
    assert Study(mine, seeds=[1]).reported().seeds == (0, 1, 2)
    assert stored("mine").trials == whole.trials


def test_more_seeds_join_once_they_are_finished(mine):
    first, more = Study(mine, seeds=[0, 1]), Study(mine, seeds=[2])
    first.remember()
    finish(first.trials)
    more.remember()  # as when it starts
    finish(more.trials[:1])  # and is then aborted
    assert stored("mine").trials == first.trials
    assert stored("mine").others == (2,)
    table = results("mine")
    assert list(table["seed"]) == [0, 0, 1, 1, 2]
    assert list(results("mine", seeds=[2])["status"]) == ["finished", "unfinished"]
    finish(more.trials)
    assert more.reported().seeds == stored("mine").seeds == (0, 1, 2)


def test_where_no_request_is_complete_all_seeds_are_reported(mine):
    first, more = Study(mine, seeds=[0]), Study(mine, seeds=[1])
    first.remember()
    finish(first.trials[:1])
    assert more.reported().seeds == (0, 1)
    finish(more.trials)
    assert more.reported().seeds == (1,)  # what was asked for is complete


@pytest.mark.parametrize("change", ["overrides", "an arm"])
def test_another_request_takes_the_place_of_a_smaller_one_alone(mine, change):
    whole = Study(mine, seeds=[0, 1, 2])
    whole.remember()
    finish(whole.trials)
    if change == "an arm":
        mine = mine | {"arms": {**mine["arms"], "third": {"about": "more", "overrides": ["loss.expert=0.02"]}}}
    other = Study(mine, seeds=[0, 1, 3], overrides=["optim.lr=1e-3"] if change == "overrides" else [])
    assert other.reported() is other
    finish(other.trials[:5])
    other.remember()
    assert stored("mine").trials == whole.trials
    assert other.report_folder.parent == other.folder / "reports"
    assert Study(other.source, seeds=[0, 1, 3], overrides=other.overrides).trials == other.trials
    finish(other.trials)
    assert Study(mine, seeds=[0, 1, 3], overrides=other.overrides).reported().report_folder.name == "report"
    assert stored("mine").trials == other.trials


def test_a_notebook_runner_of_a_smaller_study_with_one_more_arm_is_no_other_study(mine):
    """It reads what the notebook wrote, `study-<hash>.yaml`, since `study.yaml` is the larger study's."""
    whole = study(mine, seeds=[0, 1, 2])
    whole.remember()
    finish(whole.trials)
    extended = study(mine, seeds=[0]).with_arm("third", ["loss.expert=0.02"])
    extended.remember()
    assert Path(extended.source).name.startswith("study-")
    runner = Study(extended.source, seeds=[0])
    runner.remember()
    assert runner.reported() is runner
    assert runner.trials == extended.trials
    assert stored("mine").trials == whole.trials


def test_trials_of_other_data_do_not_join(mine, monkeypatch):
    """The format of the data is part of a trial's name: seeds from before it changed are another study's."""
    before = Study(mine, seeds=[0, 1])
    before.remember()
    finish(before.trials)
    monkeypatch.setattr(corpora, "FORMAT", corpora.FORMAT + 1)
    now = Study(mine, seeds=[0, 1, 2])
    now.remember()
    finish(now.trials)
    assert now.reported() is now
    assert stored("mine").trials == now.trials


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
    with pytest.raises(ConfigError, match=r"mesh\.dp=2 is not valid: 1 in a study"):
        Study("kv_rank", overrides=["mesh.dp=2"])


def test_another_study_does_not_take_the_place_of_one_that_was_run(pair_file, quick, tmp_path, monkeypatch):
    """A file of the same name elsewhere, or a dictionary; the same file may change, and move unchanged."""
    first, second = tmp_path / "first" / "s.yaml", tmp_path / "second" / "s.yaml"
    for path in (first, second):
        path.parent.mkdir()
        path.write_text(pair_file.read_text())
    Study(first, seeds=[0], overrides=quick).remember()
    Study(second, seeds=[0], overrides=quick).remember()  # the same contents: moved
    second.write_text(second.read_text().replace("0.01", "0.05"))
    Study(second, seeds=[0], overrides=quick).remember()  # the same file: changed
    before = (Study(second, seeds=[0], overrides=quick).folder / RECORD).read_bytes()

    node = yaml.safe_load(pair_file.read_text()) | {"name": "s"}
    for other, origin in ((first, first), (node, "a dictionary")):
        with pytest.raises(ConfigError, match=f"holds the study of {second}, and this one is of {origin}"):
            Study(other, seeds=[0], overrides=quick).remember()
    assert (stored("s").folder / RECORD).read_bytes() == before
    assert stored("s").file == stored(second).file
    monkeypatch.chdir(first.parent)
    with pytest.raises(ConfigError, match=f"sweep='s.yaml' is not valid: .* of {second}; report it with sweep=s"):
        stored("s.yaml")
    monkeypatch.chdir(tmp_path)
    assert stored("s.yaml").file == stored("s").file  # there is no such file here


def test_a_dictionary_does_not_take_the_place_of_a_study_of_ours(quick):
    short = [*quick, "model.shape.num_experts=16", "model.shape.num_devices=8", "trainer.log_every=4"]
    Study("balance_losses", seeds=[0], overrides=short).remember()
    node = read("sweep", "balance_losses")
    node["question"] = "Another question?"
    with pytest.raises(ConfigError, match="holds the study of balance_losses, and this one is of a dictionary"):
        Study(node | {"name": "balance_losses"}, seeds=[0], overrides=short).remember()


def test_trials_that_a_changed_corpus_makes_anew_are_announced(pair_file, quick, tmp_path, monkeypatch, capsys):
    """As by a relative path from another folder, or a newer package of texts."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        for number in range(4):
            (tmp_path / name / f"{number}.txt").write_text(f"{name} {number} " * 200)
    words = [*quick, "data.path='*.txt'"]
    monkeypatch.chdir(tmp_path / "here")
    Study(pair_file, seeds=[0], overrides=words).remember()
    Study(pair_file, seeds=[0], overrides=words).remember()
    assert capsys.readouterr().err == ""
    monkeypatch.chdir(tmp_path / "there")
    Study(pair_file, seeds=[0], overrides=words).remember()
    assert "pair: its corpus, its tokenizer or the code has changed since it was last run" in capsys.readouterr().err
