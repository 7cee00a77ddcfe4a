"""Paths that stay under their root, and YAML of bounded size."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dsv2.storage.paths import MOST_BYTES, home_of, parse_yaml, read_yaml, require_own_files, within

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


@given(st.lists(st.sampled_from(["..", "a", "b", ".", "link", "out"]), max_size=6))
def test_a_path_stays_under_its_root(tmp_path_factory, parts):
    base = tmp_path_factory.getbasetemp() / "tree"
    for folder in ("root/a/b", "root/b", "elsewhere/a"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for name, target in {"link": "a/b", "out": "../elsewhere"}.items():
        if not (base / "root" / name).is_symlink():
            (base / "root" / name).symlink_to(target)
    path = (base / "root").joinpath(*parts)
    if path.resolve().is_relative_to(base / "root"):
        assert within(base / "root", path) == path
    else:
        with pytest.raises(ValueError, match="leads to"):
            within(base / "root", path)


def test_links_are_found_at_any_depth(tmp_path):
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "inside").symlink_to("..")
    (deep / "gone").symlink_to("nothing")
    require_own_files(tmp_path)
    (deep / "self").symlink_to("self")
    with pytest.raises(ValueError, match="leads to itself"):
        require_own_files(tmp_path)
    (deep / "self").unlink()
    (deep / "outside").symlink_to("../../..")
    with pytest.raises(ValueError, match="outside: leads to"):
        require_own_files(tmp_path)
    require_own_files(tmp_path, tmp_path.parent)
    require_own_files(tmp_path / "nothing")


def test_a_cache_of_the_hub_links_into_its_blobs(tmp_path):
    snapshot = tmp_path / "models--x" / "snapshots" / "1"
    (snapshot / "deep").mkdir(parents=True)
    assert home_of(snapshot) == snapshot
    (tmp_path / "models--x" / "blobs").mkdir()
    assert home_of(snapshot) == home_of(snapshot / "deep") == tmp_path / "models--x"
    assert home_of(Path("x")) == Path("x")


def test_links_within_what_wandb_keeps_are_its_own(tmp_path):
    """As its core's log, in the home of the user."""
    run = tmp_path / "run"
    (run / "wandb" / "offline-run-1" / "logs").mkdir(parents=True)
    (run / "wandb" / "offline-run-1" / "logs" / "debug-core.log").symlink_to(tmp_path / "elsewhere.log")
    require_own_files(run)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "wandb").symlink_to(run / "wandb")
    with pytest.raises(ValueError, match=r"leads to .*, outside"):
        require_own_files(tmp_path / "other")
