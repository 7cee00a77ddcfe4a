"""Paths that stay under their root."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv2.storage.paths import as_path, home_of, require_own_files, within


def test_a_path_is_text_or_a_path():
    assert as_path("x", "a/b") == as_path("x", Path("a/b")) == Path("a/b")
    with pytest.raises(TypeError, match=r"^x=3: must be a path"):
        as_path("x", 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^x='': must be a path"):
        as_path("x", "")


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
