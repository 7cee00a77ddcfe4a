"""The house has an order: who may import whom, and which test belongs to which module (README, "Where things lie")."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = (  # a module imports from earlier rows or from its own package only; imports inside functions count
    ("dsv2.config", "dsv2.metrics", "dsv2.storage", "dsv2.kernels"),
    ("dsv2.composition", "dsv2.models", "dsv2.data", "dsv2.statistics"),
    ("dsv2.accounting", "dsv2.routing", "dsv2.inference", "dsv2.interop"),
    ("dsv2.evaluation", "dsv2.plots"),
    ("dsv2.training", "dsv2.report"),
    ("dsv2.study", "dsv2.explore"),
    ("dsv2.commands", "dsv2.train", "ablations.trials"),
    ("ablations.running", "ablations.reporting"),
    ("dsv2", "ablations"),  # what people call: the public names, `python -m dsv2`, `python -m ablations.run` and others
)
FRAMEWORKS = {"lightning", "hydra", "omegaconf", "wandb"}


def modules() -> dict[str, Path]:
    """Dotted name of every module of ours to its file."""
    files = [*(ROOT / "src" / "dsv2").rglob("*.py"), *(ROOT / "ablations").rglob("*.py")]
    names = {path: path.relative_to(ROOT / "src" if "src" in path.parts else ROOT).with_suffix("") for path in files}
    return {".".join(name.parts).removesuffix(".__init__"): path for path, name in names.items()}


MODULES = modules()


@cache
def imports(path: Path) -> frozenset[str]:
    """Every name that a file imports, also inside functions and for type checkers."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def used(name: str) -> set[str]:
    """Our modules that a module imports."""
    found = set()
    for imported in imports(MODULES[name]):
        while imported and imported not in MODULES:
            imported = imported.rpartition(".")[0]
        found |= {imported} if imported else set()
    return found - {name}


def place(name: str) -> tuple[int, str]:
    """Row of the order and package of a module: its longest prefix that the order names."""
    packages = {package: row for row, packages in enumerate(ORDER) for package in packages}
    package = name
    while package not in packages:
        package = package.rpartition(".")[0]
    return packages[package], package


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_one_way(name: str) -> None:
    row, package = place(name)
    wrong = {other for other in used(name) if place(other)[0] >= row and place(other)[1] != package}
    assert not wrong, f"{name} imports {sorted(wrong)}"


def test_there_is_no_circle() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in used(name):
                visit(other, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


@pytest.mark.parametrize("package", ["kernels", "models"])
def test_models_know_no_framework(package: str) -> None:
    for name, path in MODULES.items():
        if name.startswith(f"dsv2.{package}"):
            assert not {imported.split(".")[0] for imported in imports(path)} & FRAMEWORKS, name
            assert not any(imported.startswith("torch.distributed") for imported in imports(path)), name


def test_the_check_sees_imports(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from dsv2.training import fit\n    import lightning.pytorch\n")
    assert imports(file) == {"dsv2.training.fit", "lightning.pytorch"}
