"""The record of a study: read as it was written, refused in one line where it is damaged."""

import pytest

from ablations.trials.record import RECORD, TrialKey, known_record, origin_of, read_record
from ablations.trials.trials import Study, stored
from dsv2.config import ConfigError


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
