"""Texts inside installed packages."""

import pytest

from dsv2.config import ConfigError
from dsv2.data.packages import package_folder, python_sources, scattered


def test_code_is_read_without_tests() -> None:
    paths = python_sources("dsv2")
    assert package_folder("dsv2") / "config.py" in paths
    assert paths == sorted(paths)
    assert not any("tests" in path.parts for path in python_sources("sympy"))


def test_scattered_is_another_order_of_the_same_files() -> None:
    paths = python_sources("dsv2")[:9]
    texts = list(scattered(paths))
    assert sorted(texts) == sorted(path.read_text(encoding="utf-8") for path in paths)
    assert texts == list(scattered(paths[::-1]))


def test_what_is_missing_is_named_with_how_to_install_it() -> None:
    with pytest.raises(ConfigError, match=r"data\.x='nothing_here' .*: pip install nothing_here$"):
        package_folder("nothing_here", key="data.x")
    with pytest.raises(ConfigError, match=r"pip install 'dsv2\[corpus\]'$"):
        package_folder("nothing_here", extra="corpus")
