"""docs/extending.md to the letter: its files are written into a copy of the repository, its commands run there."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"`([\w/]+\.(?:py|yaml))`:\n\n```\w+\n(.*?)```", TEXT, flags=re.S))
PYTHON = [
    block
    for where, block in re.findall(r"([^\n]*)\n\n```python\n(.*?)```", TEXT, flags=re.S)
    if not re.fullmatch(r"`[\w/.]+`:", where)  # what is no file, but can be run as it stands
]
COMMANDS = [
    line
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", TEXT, flags=re.S | re.M)
    if not language
    for line in block.splitlines()
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    for part in ("src", "ablations", "configs"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in FILES.items():
        assert not (folder / name).exists(), f"{name} is there already"
        (folder / name).write_text(text)
    return folder


def run(words: list[str], copy: Path) -> str:
    paths = f"{copy / 'src'}{os.pathsep}{copy}"
    settings = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "DSV2_RUNS": str(copy / "runs")}
    done = subprocess.run([sys.executable, *words], cwd=copy, env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stderr[-2000:]}"
    return done.stdout


def test_the_page_has_a_study_and_two_variants():
    assert {Path(name).parts[:2] for name in FILES} == {("configs", "sweep"), ("configs", "model"), ("src", "dsv2")}
    assert len(FILES) == 5
    assert len(COMMANDS) == 8
    assert len(PYTHON) == 3


@pytest.mark.parametrize("code", PYTHON)
def test_every_python_block_runs(code):
    exec(compile(code, "extending.md", "exec"), {})


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_runs(command, copy):
    words = shlex.split(command)
    assert words[0] == "python"
    extra = ["logger.wandb.mode=disabled"] if "dsv2.train" in command else []
    assert run(words[1:] + extra, copy).strip()


def test_the_new_study_is_planned_at_equal_budgets(copy):
    printed = run(["-m", "ablations.run", "sweep=tied_embeddings", "dry_run=true"], copy)
    assert "tied: one matrix; adjusted to equal budgets: " in printed


@pytest.mark.parametrize("variant", ["model/attention=gated", "model/ffn=relu2"])
def test_the_accounting_of_a_new_variant_is_its_modules_own_and_it_runs(variant, copy):
    code = (
        f"import dsv2, torch; model = dsv2.load(['model=tiny', '{variant}']).model; built = model.build()\n"
        "built(torch.zeros(2, 4, dtype=torch.int64), positions=torch.tensor([[0, 1, 2, 3], [-1, -1, 0, 1]]))\n"
        "print(dsv2.account(model).total_params - sum(weight.numel() for weight in built.parameters()))"
    )
    assert run(["-c", code], copy).strip() == "0"
