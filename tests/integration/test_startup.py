"""What starts in no time imports nothing heavy: help, accounts, plans and tab completion."""

import subprocess
import sys

import pytest

HEAVY = {
    "lightning",
    "transformers",
    "datasets",
    "matplotlib",
    "pandas",
    "scipy",
    "pyarrow",
    "wandb",
    "panel",
    "IPython",
}
TORCH = {"torch"}
CODE = """
import runpy, sys
module, *sys.argv[1:] = sys.argv[1:]
status = 0
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as end:
    status = end.code
print("imported:", *sys.modules, file=sys.stderr)
sys.exit(status)
"""


def imported(*command: str) -> set[str]:
    """The modules that a process has imported by its end."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "words",
    [
        "dsv2 --help",
        "dsv2 analyse --help",
        "dsv2 ls",
        "ablations.run --help",
        "ablations.report --help",
        "dsv2.train --help",
    ],
)
def test_help_and_lists_import_nothing_heavy(words: str) -> None:
    assert not imported("-c", CODE, *words.split()) & (HEAVY | TORCH)


@pytest.mark.parametrize(
    "words", ["dsv2 account model=v2", "ablations.run sweep=balance_losses dry_run=true", "dsv2.train --cfg job"]
)
def test_accounts_and_plans_import_torch_for_shapes_alone(words: str) -> None:
    assert not imported("-c", CODE, *words.split()) & HEAVY


def test_tab_completion_imports_nothing_of_ours() -> None:
    names = "import sys, dsv2, ablations, dsv2.plots; shown = dir(dsv2) + dir(ablations) + dir(dsv2.plots)"
    check = "assert {'open_run', 'study', 'loss_over_tokens'} <= {*shown}, shown"
    modules = imported("-c", f"{names}; {check}; print('imported:', *sys.modules, file=sys.stderr)")
    assert not modules & (HEAVY | TORCH)
    assert {name for name in modules if name.startswith(("dsv2.", "ablations."))} == {"dsv2.plots"}
