"""What `from ablations import ...` offers."""

import subprocess
import sys

import pytest

import ablations
from ablations.studies import study
from ablations.trials.results import results


def test_completion_lists_the_names_and_each_is_there():
    assert dir(ablations) == ["results", "study"]
    assert (ablations.results, ablations.study) == (results, study)
    with pytest.raises(AttributeError, match="module 'ablations' has no attribute 'reslts'"):
        _ = ablations.reslts


def test_completion_imports_nothing_heavy():
    code = "import sys, ablations; dir(ablations); print({'torch', 'pandas', 'hydra'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
