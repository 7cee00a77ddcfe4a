"""The site builds without a warning, its commands are ones that exist, and its Python runs."""

import functools
import importlib.util
import math
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ablations.request import parse
from ablations.studies import study
from dsv2.__main__ import main
from dsv2.config import ConfigError
from dsv2.metrics import METRICS
from dsv2.training.fit import fit
from dsv2.training.run import load
from tests.references.markdown import Block, blocks, commands
from tests.references.processes import run_line

ROOT = Path(__file__).parents[2]
OWN = "extending.md"  # run to the letter by its own test
PAGES = {
    path.name: path.read_text()
    for path in (*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md")
    if path.name != OWN
}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
COMMANDS = [(page, command) for page, text in PAGES.items() for command in commands(text)]
PYTHON = [(page, block) for page, text in PAGES.items() for block in blocks(text) if block.language == "python"]


class References(HTMLParser):
    """What a page makes a browser load or follow."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value}
        if tag in ("script", "img", "iframe") and "src" in found:
            self.loads.append(found["src"])
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.loads.append(found["href"])
        elif tag == "a" and "href" in found:
            self.links.append(found["href"])


def test_every_page_is_built_and_asks_no_other_host(site: Path) -> None:
    built = {path.stem for path in site.glob("*.html")}
    assert {
        "index",
        "tutorial",
        "studies",
        "report",
        "equations",
        "gallery",
        "extending",
        "cluster",
        "wandb",
        "runs",
        "generation",
        "context",
    } <= built
    for page in site.glob("*.html"):
        loads = References(page.read_text()).loads
        assert loads
        assert not [url for url in loads if "//" in url], page.name


def test_links_and_images_lead_to_files(site: Path) -> None:
    for page in site.glob("*.html"):
        if page.name == "404.html":
            continue  # its links are absolute
        found = References(page.read_text())
        for target in (*found.links, *found.loads):
            if "://" in target or target.startswith(("#", "mailto:", "data:")):
                continue
            assert (site / target.partition("#")[0].partition("?")[0]).exists(), f"{page.name}: {target}"


planned = functools.cache(study)  # pages name the same ones again and again


def check(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Raise unless everything that can be known of a command line without running it is right."""
    words = shlex.split(command)
    while words and re.fullmatch(r"[A-Z0-9_]+=\S*", words[0]):
        words = words[1:]
    match words:
        case ["make", target]:
            assert target in TARGETS, target
        case ["source" | "export" | "git" | "cd" | "wandb", *_]:
            pass
        case ["pip", "install", *_]:
            pass
        case ["torchrun", number, *rest] if re.fullmatch(r"--nproc-per-node=\d+", number):
            sizes = [int(word.partition("=")[2]) for word in rest if word.startswith("mesh.")]
            assert math.prod(sizes) == int(number.partition("=")[2]), command
            check(shlex.join(["python", *rest]), monkeypatch, capsys)
        case ["dsv2", *rest]:
            check(shlex.join(["python", "-m", "dsv2", *rest]), monkeypatch, capsys)
        case ["python", "-m", "ablations.run" | "ablations.report", *rest]:
            request, overrides = parse(rest)
            for scale in request.scales:
                planned(request.sweep, scale, request.seeds, tuple(overrides))
        case ["python", "-m", "dsv2.train", *rest]:
            named = {word.partition("=")[0] for word in rest}
            if "study" not in named:
                origin = r"\1={run: RUN, weights: some}"  # which is looked up no further
                load(
                    [
                        re.sub(r"^(init_from|objective\.reward_models\.\w+)=(RUN|REWARD).*", origin, word)
                        for word in rest
                        if word != "-m"
                    ]
                )
        case ["python", "-m", "dsv2", name, *rest]:
            subject = rest[:1] if name in ("simulate", "corpus") else []
            with pytest.raises(SystemExit, match="0"):
                main([name, *subject, "--help"])
            shown = capsys.readouterr().out
            assert not [word for word in rest if word.startswith("--") and word.partition("=")[0] not in shown]
            if name == "account" and not {"--hf", "--run"} & set(rest):
                assert main([name, *rest]) == 0
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module), module
        case ["python", path, *_]:
            assert (ROOT / path).is_file(), path
        case _:
            raise AssertionError(f"no test knows the command {words[0]}")


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_line_is_one_that_exists(
    page: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check(command, monkeypatch, capsys)


@pytest.mark.parametrize(
    "command",
    [
        "make tea",
        "python -m ablations.run sweep=nothing",
        "python -m dsv2.train model=tiny optim.rate=1",
        "python -m dsv2 generate RUN --promt x",
        "python -m dsv2 sing",
        "python -m dsv2 simulate pipeline --traces DIR",
        "python -m benchmarks.nothing",
        "sudo make demo",
        "torchrun --nproc-per-node=2 -m dsv2.train model=tiny",
        "dsv2 sing",
    ],
)
def test_a_wrong_command_line_is_seen(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((AssertionError, ConfigError, pytest.fail.Exception)):
        check(command, monkeypatch, capsys)


@pytest.fixture(scope="module")
def trained(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run for blocks that open one."""
    folder = tmp_path_factory.mktemp("trained")
    words = [
        "data=files",
        f"data.path={corpus}",
        "data.vocab_size=300",
        "trainer.tokens=2048",
        "trainer.progress=false",
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DSV2_RUNS", str(folder))
        fit(load([*words, "trainer.validation_tokens=1024", "logger.wandb.mode=disabled"]), folder / "run")
    return folder / "run"


@pytest.mark.parametrize(("page", "block"), PYTHON)
def test_every_python_block_runs(page: str, block: Block, request: pytest.FixtureRequest) -> None:
    names = {"RUN": request.getfixturevalue("trained")} if re.search(r"\bRUN\b", block.text) else {}
    exec(compile(block.text, page, "exec"), names)


def test_pages_have_commands_and_python() -> None:
    assert len({page for page, _ in COMMANDS}) >= 6
    assert len({page for page, _ in PYTHON}) >= 4


def test_metrics_have_the_same_name_and_unit_in_the_pages_as_in_figures() -> None:
    rows = [line.strip("|").split("|") for line in PAGES["report.md"].splitlines() if re.match(r"\| `\w+/", line)]
    assert len(rows) == 10
    for logged, name, unit, _ in rows:
        assert METRICS[logged.strip(" `")][:2] == (name.strip(), unit.strip()), logged


@pytest.mark.slow
def test_the_tutorial_runs_from_top_to_bottom(tmp_path: Path) -> None:
    made, trained = tmp_path / "runs", ""
    for command in commands(PAGES["tutorial.md"]):
        if not command.startswith("python"):
            continue
        if "ablations.run" in command and "dry_run" not in command:
            command += " trainer.tokens=10240 trainer.checkpoint_every=10"  # minutes otherwise
            command = command if "seeds" in command else f"{command} 'seeds=[0,1]'"
        printed = run_line(re.sub(r"\bRUN\b", trained, command), tmp_path)
        if "dsv2.train" in command:
            trained = printed.splitlines()[-1]
    assert (made / "balance_losses" / "smoke" / "report" / "report.html").is_file()
