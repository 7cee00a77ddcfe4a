"""JSON files and hashes that notice when a byte has changed."""

import json
import math

import pytest

from dsv2.storage.sealed import SEAL, Damaged, changed, file_hash, hashes, read_object, read_sealed, write_sealed
from tests.references.faults import flip

VALUE = {
    "metrics": {"val/loss": 2.0512345678901234, "nan": math.nan, "n": 3},
    "text": "naïve",
    "none": None,
    "l": [1, 2],
}


def same(value, other):
    return json.dumps(value, sort_keys=True) == json.dumps(other, sort_keys=True)


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "x.json"
    write_sealed(path, VALUE | {"keys": {1: "one"}, "pair": (1, 2)})  # as JSON would have them
    assert same(read_sealed(path), VALUE | {"keys": {"1": "one"}, "pair": [1, 2]})
    assert len(json.loads(path.read_text())[SEAL]) == 64


def test_every_flipped_byte_is_detected_or_changes_nothing(tmp_path):
    path, detected = tmp_path / "x.json", 0
    write_sealed(path, VALUE)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :])
            try:
                read = read_sealed(path)
            except Damaged:
                detected += 1
            else:
                assert same({key: value for key, value in read.items() if key in VALUE}, VALUE)
    assert detected > 0.9 * 8 * len(whole)


def test_older_files_without_a_hash_are_read(tmp_path):
    (tmp_path / "x.json").write_text('{"seeds": [0]}')
    assert read_sealed(tmp_path / "x.json") == {"seeds": [0]}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"3", b"null", b"\xff\xfe", b"[" * 200_000, b'{"a": ' * 200_000, b"1" * 5_000]
)
def test_what_is_no_object_is_damaged(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    for read in (read_object, read_sealed):
        with pytest.raises(Damaged, match=r"x\.json: damaged, not "):
            read(tmp_path / "x.json")


def test_a_missing_file_is_not_a_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_sealed(tmp_path / "x.json")


def test_hashes_are_of_the_files_that_exist(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    expected = {"a": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    assert hashes(tmp_path, ["a", "b"]) == expected == {"a": file_hash(tmp_path / "a")}
    assert changed(tmp_path, expected) == []
    assert changed(tmp_path, expected | {"b": "0"}) == [tmp_path / "b"]
    flip(tmp_path / "a")
    assert changed(tmp_path, expected) == [tmp_path / "a"]
