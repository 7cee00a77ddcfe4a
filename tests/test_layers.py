"""Imports go one way, and `models/` stays free of frameworks (decision 4 of the design)."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "dsv2"
ABLATIONS = Path(__file__).parents[1] / "ablations"
ALLOWED = {  # package -> parts of dsv2 it may import
    "kernels": {"kernels"},
    "models": {"kernels", "models", "config"},
    "inference": {"models", "config", "data", "inference", "saved"},
    "interop": {"models", "config", "files", "interop", "saved"},
    "data": {"config", "paths", "files", "data"},
    "evaluation": {"models", "config", "data", "evaluation", "inference", "saved", "files", "metrics"},
    "analysis": {"models", "config", "data", "analysis", "metrics"},
    "accounts": {"accounts", "analysis", "config", "interop", "models", "run"},
    "training": {"analysis", "config", "data", "evaluation", "files", "kernels", "models", "run", "training"},
    "explore": {"analysis", "data", "explore", "models", "paths", "run", "saved", "training"},
}
FRAMEWORKS = {"lightning", "hydra", "omegaconf", "wandb", "ablations"}


def imports(path: Path) -> set[str]:
    """Every module a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_go_one_way(package):
    for path in (SOURCE / package).rglob("*.py"):
        used = {name.split(".")[1] for name in imports(path) if name.startswith("dsv2.")}
        assert used <= ALLOWED[package], f"{path.relative_to(SOURCE)} imports {used - ALLOWED[package]}"


@pytest.mark.parametrize("package", ["kernels", "models"])
def test_models_know_no_framework(package):
    for path in (SOURCE / package).rglob("*.py"):
        names = imports(path)
        assert not {name.split(".")[0] for name in names} & FRAMEWORKS, path
        assert not any(name.startswith("torch.distributed") for name in names), path


def test_the_library_never_imports_the_studies():
    for path in SOURCE.rglob("*.py"):
        assert not any(name.split(".")[0] == "ablations" for name in imports(path)), path


def test_the_check_sees_imports(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from dsv2.training import fit\n    import lightning.pytorch\n")
    assert {"dsv2.training", "dsv2.training.fit", "lightning.pytorch"} <= imports(file)
