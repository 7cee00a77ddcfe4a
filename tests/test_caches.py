"""Where caches lie."""

from pathlib import Path

import pytest

from dsv2.caches import cache_folder


def test_a_folder_that_is_named_comes_before_the_users_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV2_CACHE", "/mine")
    assert cache_folder("corpora") == Path("/mine/corpora")
    monkeypatch.setenv("DSV2_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder("kernels") == Path("/caches/dsv2/kernels")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder("kernels") == Path("/home/me/.cache/dsv2/kernels")


def test_nothing_is_kept_where_caches_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV2_CACHE", "off")
    assert cache_folder("corpora") is None


@pytest.mark.parametrize("path", ["~", "~/caches", "~nobody/caches"])
def test_no_folder_is_called_like_the_users_home(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("DSV2_CACHE", path)
    with pytest.raises(ValueError, match=r"^the path of a folder, or off; a shell"):
        cache_folder("corpora")
