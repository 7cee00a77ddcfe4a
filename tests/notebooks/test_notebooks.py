"""Notebooks: what every one of them keeps to, and each of them from top to bottom in a kernel of its own."""

import ast
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_LINES = 15
SMALL = " ".join(
    f"trainer.{setting}"
    for setting in ("tokens=10240", "validation_tokens=2048", "log_every=2", "validate_every=10", "checkpoint_every=10")
)
MAGIC = "%matplotlib inline"

every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_all_are_there():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{number:02d}" for number in (*range(11), 12)]


@every
def test_rules(path: Path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    first, last = notebook.cells[0], notebook.cells[-1]
    assert (first.cell_type, last.cell_type) == ("markdown", "markdown")
    title = first.source.splitlines()[0]
    assert title.startswith("# ")
    assert title.endswith("?"), "the first cell asks the question"
    assert last.source.startswith("## The answer\n")
    assert code(notebook)[0].source.startswith(MAGIC), "else the figures of some cells are not shown"
    for cell in code(notebook):
        assert not cell.outputs
        assert cell.execution_count is None
        assert len(cell.source.splitlines()) <= MOST_LINES, cell.source
        tree = ast.parse("\n".join(line for line in cell.source.splitlines() if not line.startswith("%")))
        defined = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        assert not [node for node in ast.walk(tree) if isinstance(node, defined)], "functions live in the package"


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that the notebooks share: a study that several of them show is trained once."""
    return tmp_path_factory.mktemp("notebooks") / "runs"


@pytest.mark.slow
@every
def test_it_runs_from_top_to_bottom(path: Path, store: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DSV2_RUNS", str(store))
    monkeypatch.setenv("DSV2_QUICK", SMALL)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(path.parent)}}).execute()
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    pages = ["".join(output.get("data", {}).get("text/html", "")) for output in outputs]
    assert any("line-through" in page for page in pages) == (path.name[:2] == "04")  # the only one that promises it
    if keep := os.environ.get("DSV2_KEEP_NOTEBOOKS"):  # to look at
        nbformat.write(notebook, Path(keep) / path.name)
