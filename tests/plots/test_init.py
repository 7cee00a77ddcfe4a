"""`dsv2.plots` knows every figure by name, and importing it costs nothing."""

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dsv2 import plots


def test_every_figure_function_can_be_had_by_name() -> None:
    figures = {
        name
        for module in pkgutil.iter_modules(plots.__path__)
        if module.name != "style"
        for name, value in vars(importlib.import_module(f"dsv2.plots.{module.name}")).items()
        if inspect.isfunction(value) and value.__module__ == f"dsv2.plots.{module.name}" and not name.startswith("_")
        if inspect.signature(value).return_annotation in (Axes, Figure, "Widget", "Html")
    }
    assert figures <= set(plots.__all__) == set(dir(plots))
    for name in plots.__all__:
        assert getattr(plots, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'forrest'"):
        plots.forrest  # noqa: B018


def test_importing_the_names_does_not_import_matplotlib() -> None:
    code = "import sys; from dsv2 import plots; print('matplotlib' in sys.modules, len(dir(plots)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", str(len(plots.__all__))]
