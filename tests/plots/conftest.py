"""Every test of figures draws without a screen and leaves no figure open."""

from collections.abc import Iterator

import matplotlib
import matplotlib.pyplot as plt
import pytest

from tests.references.tables import Tables, fake

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def six() -> Tables:
    """A study of six arms, logged at eight steps."""
    return fake(steps=8)
