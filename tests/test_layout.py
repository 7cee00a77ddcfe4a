"""The order of the code: which package imports from which, and which test belongs to which module.

README, "Code layout", says the same in words.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = (  # a module imports from earlier rows or from its own package only; imports inside functions count
    ("dsv2.annotations", "dsv2.caches", "dsv2.printing"),
    ("dsv2.config", "dsv2.metrics", "dsv2.storage", "dsv2.kernels"),
    ("dsv2.composition", "dsv2.models", "dsv2.data", "dsv2.statistics"),
    ("dsv2.accounting", "dsv2.routing", "dsv2.inference", "dsv2.interop"),
    ("dsv2.distributed", "dsv2.evaluation", "dsv2.plots"),
    ("dsv2.training", "dsv2.report"),
    ("dsv2.study", "dsv2.alignment", "dsv2.explore"),
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
    names = set()
    for statement in ast.walk(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"{path}:{statement.lineno}: a relative import, which would go unseen here"
            names |= {f"{statement.module}.{alias.name}" for alias in statement.names}
    return frozenset(names)


def used(name: str) -> set[str]:
    """Our modules that a module imports."""
    modules = set()
    for imported in imports(MODULES[name]):
        while imported and imported not in MODULES:
            imported = imported.rpartition(".")[0]
        modules |= {imported} if imported else set()
    return modules - {name}


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


# ---- tests -----------------------------------------------------------------------------------------------------------

TESTS = ROOT / "tests"
LAZY = {"__getattr__", "__dir__"}  # what an `__init__.py` needs to export names on first use


def holds_logic(path: Path) -> bool:
    """Whether a function or method of a module does anything; exporting names on first use does not count."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return any(
        isinstance(statement, functions)
        and not all(map(_is_empty, statement.body))
        and not (path.name == "__init__.py" and statement.name in LAZY)
        for statement in ast.walk(ast.parse(path.read_text()))
    )


def _is_empty(statement: ast.stmt) -> bool:
    """Whether a statement is a docstring, `...` or `pass`."""
    constant = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return constant or isinstance(statement, ast.Pass)


def place_of_test(name: str) -> Path:
    """Where the test file of a module lies: that of `dsv2.data.store` at `tests/data/test_store.py`."""
    *packages, module = re.sub(r"^dsv2(\.|$)", "", name).split(".")
    if MODULES[name].name == "__init__.py":
        packages, module = [*filter(None, [*packages, module])], "init"
    return TESTS.joinpath(*packages, f"test_{module.strip('_')}.py")


@pytest.mark.parametrize("name", sorted(name for name, path in MODULES.items() if holds_logic(path)))
def test_a_module_that_holds_logic_has_its_test_file(name: str) -> None:
    expected = place_of_test(name)
    assert expected.is_file(), f"{name} has no {expected.relative_to(ROOT)}"


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_tests_share_references_and_fixtures_of_conftest(path: Path) -> None:
    """No test file imports another: what several need lies in `tests/references/`, fixtures in a `conftest.py`."""
    ours = {name for name in imports(path) if name.partition(".")[0] == "tests"}
    shared = {name for name in ours if re.fullmatch(r"tests\.references(\.(?!test_).+)?", name)}
    assert not ours - shared, f"imports {sorted(ours - shared)}"
    if path.relative_to(TESTS).parts[0] == "references" and not path.name.startswith("test_"):
        assert "pytest.fixture" not in path.read_text(), "fixtures come from a conftest.py"


@pytest.mark.parametrize(
    ("source", "logic"),
    [
        ("X = 1\nclass A(NamedTuple):\n    x: int\n", False),
        ("class A(Protocol):\n    def f(self) -> int:\n        'Say what.'\n    def g(self) -> int: ...\n", False),
        ("class A:\n    def f(self):\n        'Say what.'\n        return 1\n", True),
        ("async def f():\n    pass\n", False),
        ("def f():\n    raise ValueError\n", True),
        ("def __getattr__(name):\n    return 1\ndef __dir__():\n    return []\n", True),
    ],
)
def test_the_check_sees_logic(tmp_path: Path, source: str, logic: bool) -> None:
    for name, expected in (("module.py", logic), ("__init__.py", logic and "__dir__" not in source)):
        (tmp_path / name).write_text(source)
        assert holds_logic(tmp_path / name) is expected


def test_the_check_knows_where_tests_lie() -> None:
    places = {"dsv2.config": "test_config.py", "dsv2.__main__": "test_main.py", "dsv2.plots": "plots/test_init.py"}
    places |= {
        "dsv2.models.moe.hash": "models/moe/test_hash.py",
        "ablations.run": "ablations/test_run.py",
        "dsv2": "test_init.py",
    }
    assert {name: str(place_of_test(name).relative_to(TESTS)) for name in places} == places
