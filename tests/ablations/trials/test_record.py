"""The record of a study: read as it was written, refused in one line where it is damaged."""

import json

import pytest

from ablations.trials.record import RECORD, TrialKey, known_record, origin_of, read_record
from ablations.trials.trials import Study, stored
from dsv2.config import ConfigError

VALUES = {
    "source": "balance_losses",
    "origin": "balance_losses",
    "seeds": [0, 1],
    "overrides": ["optim.lr=1e-3"],
    "trials": [["none", 0, None, "0123456789abcdef"], ["none", 1, "recall", "fedcba9876543210"]],
    "files": {"study.yaml": "00"},
}


def test_a_record_says_what_was_asked_for(pair_file, quick):
    planned = Study(pair_file, seeds=[3], overrides=quick)
    assert known_record(planned.folder) is None
    planned.remember()
    record = read_record(planned.folder)
    assert (record.source, record.origin) == (str(pair_file), str(pair_file.absolute()))
    assert (record.seeds, record.overrides) == ([3], quick)
    assert record.folders[TrialKey("none", 3, None)] == planned.trials[0].folder.name


def test_an_origin_is_the_same_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert origin_of("balance_losses") == "balance_losses"
    assert origin_of("s.yaml") == origin_of(tmp_path / "s.yaml") == str(tmp_path / "s.yaml")
    assert origin_of({"name": "s"}) == "a dictionary"


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
    assert known_record(folder) is None


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": ["0"]},
        {"overrides": "optim.lr=1"},
        {"overrides": [1]},
        {"trials": [["none", "0", None, "0123456789abcdef"]]},
        {"trials": [["none", 0, None, "../../elsewhere"]]},
        {"source": "a\nb"},
        {"files": 1},
    ],
    ids=str,
)
def test_a_damaged_entry_is_one_clear_error(tmp_path, change):
    (tmp_path / RECORD).write_text(json.dumps(VALUES | change))
    with pytest.raises(ConfigError, match=r"study\.json is damaged; run the study again to renew it") as error:
        read_record(tmp_path)
    assert "\n" not in str(error.value)
