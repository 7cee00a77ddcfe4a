"""The runs of a store: what is listed, from how few files, and the names by which a run is found."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsv2.storage.files import write_json
from dsv2.storage.locks import hold
from dsv2.storage.rundir import write_result
from dsv2.storage.runs import find_run, list_runs


def made(folder: Path) -> Path:
    """A folder that holds what a search looks for."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("model: {}\n")
    return folder


def made_study(study: Path, trials: Sequence[Sequence[Any]]) -> list[Path]:
    """A study with trials of [arm, seed, probe, folder]."""
    study.mkdir(parents=True)
    write_json(study / "study.json", {"trials": trials})
    return [made(study / "trials" / folder) for *_, folder in trials]


def test_runs_have_names(runs: Path) -> None:
    trials = [["paper", 0, None, "aaaa111122223333"], ["paper", 0, "recall", "aaaa444455556666"]]
    first, probed = made_study(runs / "mine" / "tiny", trials)
    alone = made(runs / "train" / "cccc111122223333")
    shorter = ("mine/paper/0", "paper/0", "paper-s0", "mine/tiny/paper-s0")
    for name in ("mine/tiny/paper/0", *shorter, "aaaa1", "aaaa111122223333", first, str(first)):
        assert find_run(name) == first
    for name in ("mine/tiny/paper/0/recall", "mine/paper/0/recall", "paper/0/recall", "paper-s0-recall"):
        assert find_run(name) == probed
    assert find_run("cccc") == alone
    with pytest.raises(ValueError, match=r"RUN='aaaa': matches 2 runs; choose one of .*aaaa1111.*, .*aaaa4444"):
        find_run("aaaa")
    with pytest.raises(ValueError, match=r"RUN='mine/tiny/paper/7': .*arms there are paper, seeds 0"):
        find_run("mine/tiny/paper/7")
    with pytest.raises(ValueError, match=r"RUN='mine/tny/paper/0': .*did you mean mine/tiny/paper/0( or .*)?\?$"):
        find_run("mine/tny/paper/0")
    for nowhere in ("bbbb", "mine/huge/paper/0", "no/such/folder", "", "mine/tiny/paper/0/copying"):
        with pytest.raises(ValueError, match=r"RUN=.*: a run directory, sweep/scale/arm/seed, or the first digits of"):
            find_run(nowhere)


def test_a_shorter_name_of_several_runs_is_refused_with_their_full_names(runs: Path) -> None:
    (tiny,) = made_study(runs / "mine" / "tiny", [["paper", 0, None, "aaaa111122223333"]])
    made_study(runs / "mine" / "smoke", [["paper", 0, None, "aaaa444455556666"]])
    made_study(runs / "other" / "smoke", [["paper", 0, None, "aaaa777788889999"]])
    for name, candidates in {
        "mine/paper/0": "2 runs; choose one of mine/smoke/paper/0, mine/tiny/paper/0",
        "paper-s0": "3 runs; choose one of mine/smoke/paper/0, mine/tiny/paper/0, other/smoke/paper/0",
    }.items():
        with pytest.raises(ValueError, match=rf"^RUN='{name}': matches {candidates}$"):
            find_run(name)
    assert find_run("mine/tiny/paper/0") == tiny


def test_a_full_name_is_not_taken_for_a_shorter_one(runs: Path) -> None:
    """An arm and a scale may have the same name, and a probe be called like a seed."""
    (full,) = made_study(runs / "mine" / "tiny", [["a", 0, None, "aaaa111122223333"]])
    made_study(runs / "mine" / "smoke", [["tiny", 0, "a/0", "aaaa444455556666"]])
    assert find_run("mine/tiny/a/0") == full


def test_trials_of_a_study_that_does_not_list_them_have_names(runs: Path) -> None:
    """As before names were stored: their configs say which they are."""
    study = runs / "mine" / "tiny"
    for arm, seed, probe in (("paper", 0, None), ("paper", 1, None), ("paper", 1, "recall")):
        folder = made(study / "trials" / f"aaaa{len(list(study.glob('trials/*')))}")
        (folder / "config.yaml").write_text(yaml.safe_dump({"arm": arm, "seed": seed, "probe": probe}))
    write_json(study / "study.json", {"source": "mine", "seeds": None, "overrides": []})
    assert find_run("mine/tiny/paper/1").name == "aaaa1"
    assert find_run("mine/tiny/paper/1/recall").name == "aaaa2"
    with pytest.raises(ValueError, match=r"arms there are paper, seeds 0, 1$"):
        find_run("mine/tiny/paper/2")
    (study / "trials" / "aaaa0" / "config.yaml").write_text("[]")
    with pytest.raises(ValueError, match="RUN='mine/tiny/paper/1': a run directory"):
        find_run("mine/tiny/paper/1")


@pytest.mark.parametrize("name", ["aaa", "AAAA", "aaaa*", "aaaa111122223333f", "../runs/*/aaaa"])
def test_only_the_digits_of_a_fingerprint_are_searched_for(runs: Path, name: str) -> None:
    made(runs / "train" / "aaaa111122223333f")
    with pytest.raises(ValueError, match=r"the first digits of a fingerprint under .*runs; `dsv2 ls` lists them$"):
        find_run(name)


def test_a_folder_without_a_config_is_not_found_by_its_fingerprint(runs: Path) -> None:
    (runs / "train" / "aaaa111122223333").mkdir(parents=True)
    with pytest.raises(ValueError, match="RUN='aaaa': a run directory"):
        find_run("aaaa")


def test_many_runs_of_one_beginning_are_named_by_the_first_four(runs: Path) -> None:
    for digit in range(6):
        made(runs / "train" / f"aaaa{digit}")
    with pytest.raises(ValueError, match=r"matches 6 runs; choose one of .*aaaa0, .*aaaa1, .*aaaa2, .*aaaa3, \.\.\.$"):
        find_run("aaaa")


def test_a_trial_whose_folder_is_gone_is_not_found(runs: Path) -> None:
    (folder,) = made_study(runs / "mine" / "tiny", [["paper", 0, None, "aaaa111122223333"]])
    (folder / "config.yaml").unlink()
    folder.rmdir()
    with pytest.raises(ValueError, match=r"RUN='mine/tiny/paper/0': .*arms there are paper, seeds 0"):
        find_run("mine/tiny/paper/0")


@pytest.mark.parametrize(
    "content", ['{"tri', "[]", "{}", '{"trials": 3}', '{"trials": [3]}', '{"trials": [["paper", 0]]}', "\udcff"]
)
def test_a_damaged_record_of_a_study_names_no_runs(runs: Path, content: str) -> None:
    made_study(runs / "mine" / "tiny", [["paper", 0, None, "aaaa111122223333"]])
    (runs / "mine" / "tiny" / "study.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(
        ValueError, match=r"RUN='mine/tiny/paper/0': a run directory, .* under .*runs; `dsv2 ls` lists them$"
    ):
        find_run("mine/tiny/paper/0")
    assert find_run("aaaa").name == "aaaa111122223333"


# ---- lists -----------------------------------------------------------------------------------------------------------


def ended(folder: Path, status: str = "finished", **more: Any) -> None:
    """Give a run a result."""
    header = {"status": status, "study": "mine", "arm": "paper", "seed": 5, "ended": "2026-11-27T10:00:00+00:00"}
    write_result(folder, header | {"metrics": {"val/loss": 2.5}, "tokens": 640, "seconds": 3.0} | more)


def test_runs_are_listed_with_name_status_and_metrics(runs: Path) -> None:
    trials = [["b", 1, None, "bbbb000000000001"], ["a", 0, "recall", "aaaa000000000000"], ["a", 1, None, "aaaa1"]]
    first, probed, _ = made_study(runs / "mine" / "tiny", trials)
    former = made(runs / "mine" / "tiny" / "trials" / "9999000000000000")
    single = made(runs / "train" / "cccc000000000000")
    for folder in (first, former, single):
        ended(folder)
    ended(probed, "diverged", metrics={})
    made(runs / ".data" / "dddd000000000000")
    made(runs / "mine" / "tiny" / "trials" / "scratch")
    listed = list_runs()
    assert [run.name for run in listed] == [
        *("mine/tiny/b/1", "mine/tiny/a/0/recall", "mine/tiny/a/1"),
        *("9999000000000000", "cccc000000000000"),
    ]
    assert [run.status for run in listed] == ["finished", "diverged", "unfinished", "finished", "finished"]
    # The seed of a trial is that of its study, which an arm's offset may change in the run.
    assert listed[0][1:-1] == (
        *("mine", "tiny", "b", 1, None, "bbbb000000000001", "finished"),
        *({"val/loss": 2.5}, 640, 3.0, "2026-11-27T10:00:00+00:00"),
    )
    assert (listed[3].arm, listed[3].seed) == ("paper", 5)
    assert [find_run(run.name) for run in listed] == [run.folder for run in listed]


def test_a_study_or_a_scale_of_it_is_listed_alone(runs: Path) -> None:
    made_study(runs / "mine" / "tiny", [["a", 0, None, "aaaa000000000000"]])
    made_study(runs / "mine" / "smoke", [["a", 0, None, "aaaa000000000001"]])
    made(runs / "train" / "cccc000000000000")
    names = {word: [run.name for run in list_runs(word)] for word in ("mine", "mine/tiny", "mine/tiny/", "train")}
    assert names == {
        "mine": ["mine/smoke/a/0", "mine/tiny/a/0"],
        "mine/tiny": ["mine/tiny/a/0"],
        "mine/tiny/": ["mine/tiny/a/0"],
        "train": ["cccc000000000000"],
    }
    for word, there in {"mien": "mine", "mine/huge": "mine", "../runs": "mine", "": "mine"}.items():
        with pytest.raises(ValueError, match=rf"STUDY='{word}': must be a study, .*runs; those are .*{there}"):
            list_runs(word)


def test_an_empty_store_has_no_runs_and_no_studies(runs: Path) -> None:
    assert list_runs() == []
    with pytest.raises(ValueError, match=r"with runs under .*runs; there are none$"):
        list_runs("mine")


def test_a_run_that_is_trained_now_is_told_from_one_that_was_left(runs: Path) -> None:
    trained, left = made_study(runs / "mine" / "tiny", [["a", 0, None, "aaaa0"], ["a", 1, None, "aaaa1"]])
    (left / "lock").touch()
    (left / "lock.json").write_text("{}")  # of a process that was killed
    with hold(trained / "lock", "this run"):
        assert [run.status for run in list_runs()] == ["training", "unfinished"]
    assert [run.status for run in list_runs()] == ["unfinished", "unfinished"]


@pytest.mark.parametrize("content", ["", "[]", '{"status": "finished", "metrics": [], "sha256": "0"}'])
def test_a_damaged_result_is_listed_as_such(runs: Path, content: str) -> None:
    (folder,) = made_study(runs / "mine" / "tiny", [["a", 0, None, "aaaa0"]])
    (folder / "result.json").write_text(content)
    assert [(run.name, run.status, run.metrics) for run in list_runs()] == [("mine/tiny/a/0", "damaged", {})]


def test_a_folder_that_leads_out_of_the_store_is_not_read(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended(made(tmp_path / "elsewhere"))
    (runs / "train").mkdir(parents=True)
    (runs / "train" / "cccc000000000000").symlink_to(tmp_path / "elsewhere")
    assert list_runs() == []
    assert "outside" in capsys.readouterr().err


def test_a_list_reads_one_small_file_per_run(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a store of a thousand runs answers at once, whatever else its folders hold."""
    for number in range(3):
        folders = made_study(runs / f"s{number}" / "tiny", [["a", seed, None, f"aaaa{seed:04}"] for seed in range(5)])
        for folder in folders:
            ended(folder)
            for name in ("metrics.jsonl", "tokenizer.json", "routing.parquet"):
                (folder / name).write_text("long")
    read = list[str]()
    read_bytes, open_path = Path.read_bytes, Path.open

    def reading(path: Path) -> bytes:
        read.append(path.name)
        return read_bytes(path)

    def opening(path: Path, *arguments: Any, **options: Any) -> Any:
        read.append(path.name)
        return open_path(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_bytes", reading)
    monkeypatch.setattr(Path, "open", opening)
    assert len(list_runs()) == 15
    opened = {name: read.count(name) for name in read}
    assert set(opened) == {"study.json", "result.json"}
    assert opened["study.json"] <= 2 * 3  # `read_bytes` may open
    assert opened["result.json"] <= 2 * 15
