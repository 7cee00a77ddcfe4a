"""Fixtures of the tests of kernels."""

from collections.abc import Iterator

import pytest

from dsv2.kernels.choice import using


@pytest.fixture(params=["torch", "cpu"])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each implementation in turn."""
    with using(request.param):
        yield request.param


@pytest.fixture
def compiled_ops() -> Iterator[None]:
    """The compiled ops alone."""
    with using("cpu"):
        yield
