"""What `import dsv2` offers."""

import inspect
import subprocess
import sys

import pytest

import dsv2


def test_completion_lists_the_names_and_each_is_there():
    assert set(dir(dsv2)) >= {
        "Output",
        "Routing",
        "account",
        "balance_losses",
        "drop",
        "from_hf",
        "generate",
        "load",
        "route",
        "to_hf",
    }
    for name in dir(dsv2):
        value = getattr(dsv2, name)
        assert inspect.isclass(value) or inspect.isfunction(value), name
        assert value.__name__ == name
    with pytest.raises(AttributeError, match="module 'dsv2' has no attribute 'lod'"):
        _ = dsv2.lod


def test_completion_imports_nothing_heavy():
    code = "import sys, dsv2; dir(dsv2); print({'torch', 'hydra', 'transformers', 'lightning'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
