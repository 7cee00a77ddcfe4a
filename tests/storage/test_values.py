"""Values from YAML and JSON files: plain, bounded, and refused in one line otherwise."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dsv2.storage.values import MOST_BYTES, parse_object, parse_yaml, read_yaml

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("aä无 \n-:#'\"", max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=9,
)


@given(PLAIN)
def test_plain_values_are_read_as_written(value):
    assert parse_yaml(yaml.safe_dump(value, allow_unicode=True)) == value


def test_aliases_and_merges_are_values():
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a\n") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
        "c": {"x": 1},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "duplicate key a"),
        ("a: &a [*a]", "more than 100,000 values"),
        ("[" * 9999, "nested too deeply"),
        ("a: " + "9" * 9999, "digits"),
        ('a: "\\e[2J"', "control characters"),
        ("a: [", "expected"),
        ("!!python/name:os.system", "could not determine a constructor"),
    ],
)
def test_anything_else_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_yaml(text)
    assert str(caught.value).isprintable()


def test_a_file_is_named(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"a\.yaml: .*utf-8"):
        read_yaml(path)
    path.write_text("x" * (MOST_BYTES + 1))
    with pytest.raises(ValueError, match=r"a\.yaml: larger than 1,000,000 bytes"):
        read_yaml(path)


def test_json_holds_an_object():
    assert parse_object('{"a": [1, null]}') == {"a": [1, None]}
    for content, message in ((b"[1]", "not a JSON object"), (b"{", "not JSON"), (b"\xff", "not JSON")):
        with pytest.raises(ValueError, match=message):
            parse_object(content)
