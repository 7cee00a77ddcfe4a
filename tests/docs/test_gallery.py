"""The gallery shows every figure function, from real results, and says how each is made."""

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

import dsv2.plots
from ablations.studies import study
from ablations.trials.results import Results
from dsv2.plots.style import figure_of, single

DOCS = Path(__file__).parents[2] / "docs"
sys.path.append(str(DOCS))  # as `python docs/make_gallery.py` has it
GALLERY, RUNS, STUDIES = map(importlib.import_module, ("make_gallery", "gallery_runs", "gallery_studies"))
NAMES = list(GALLERY.ENTRIES)
COPIED = [name for name, entry in GALLERY.ENTRIES.items() if getattr(entry.draw, "func", None) is STUDIES.copied]


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Page and images go to a folder of their own, and there are no runs."""
    monkeypatch.setattr(GALLERY, "DOCS", tmp_path)
    monkeypatch.setattr(GALLERY, "IMAGES", tmp_path / "figures" / "gallery")
    monkeypatch.setenv("DSV2_RUNS", str(tmp_path / "runs"))
    RUNS.ran.cache_clear()
    return tmp_path


def made_up(name: str, scale: str) -> tuple[object, Results]:
    """A study whose trials have all finished, at values that tell its arms apart."""
    one, draw = study(name, scale), np.random.default_rng(0)
    rows = [
        {"arm": arm, "seed": seed, "status": "finished"}
        | {metric: 1 + 0.1 * place + draw.normal(0, 0.01) for metric in one.file.judged}
        for place, arm in enumerate(one.arms)
        for seed in one.seeds
    ]
    return one, Results(rows)


def title_of(drawn: Figure | Axes) -> str:
    figure = drawn if isinstance(drawn, Figure) else drawn.figure
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    return figure.get_suptitle().replace("\n", " ")


def test_every_figure_function_has_an_entry() -> None:
    found = set()
    for module in pkgutil.iter_modules(dsv2.plots.__path__):
        for name, value in vars(importlib.import_module(f"dsv2.plots.{module.name}")).items():
            if inspect.isfunction(value) and value.__module__.startswith("dsv2.plots.") and not name.startswith("_"):
                found |= {value} if inspect.signature(value).return_annotation in (Axes, Figure) else set()
    found -= {single, figure_of}  # neither draws anything
    found -= {dsv2.plots.pipeline_timeline, dsv2.plots.layer_times}  # docs/parallel.md shows them
    found -= {dsv2.plots.metric_over_lr, dsv2.plots.answers_over_training}  # no such study has stored results
    assert len(found) > 25
    assert {entry.function for entry in GALLERY.ENTRIES.values()} == found
    assert {function.__name__ for function in found} <= set(dsv2.plots.__all__)


def test_the_page_is_what_the_images_say() -> None:
    assert (DOCS / "gallery.md").read_text() == GALLERY.page(), "run python docs/make_gallery.py"
    files = {path.stem for path in GALLERY.IMAGES.glob("*")}
    assert files <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_page_names_every_entry_and_its_image_exists(name: str) -> None:
    page, entry = (DOCS / "gallery.md").read_text(), GALLERY.ENTRIES[name]
    assert f"### {entry.heading}\n" in page
    assert f"python docs/make_gallery.py {name}\n" in page
    assert f"](figures/gallery/{name}.png)" in page
    path = GALLERY.IMAGES / f"{name}.png"
    assert path.stat().st_size <= GALLERY.MOST_BYTES
    with Image.open(path) as image:
        assert image.info["dpi"] == pytest.approx((150, 150), rel=1e-3)
        assert any(letter.isdigit() for letter in image.info["Title"]), "a finding has numbers"
        assert image.info["Description"]


@pytest.mark.parametrize("name", COPIED)
def test_findings_of_copied_figures_come_from_the_report(name: str) -> None:
    drawn = GALLERY.ENTRIES[name].draw()
    assert drawn.picture.is_file()
    assert any(letter.isdigit() for letter in drawn.finding)
    assert "nan" not in drawn.finding


def test_runs_that_are_missing_are_one_line_with_their_command(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert GALLERY.main(["loss_over_active", "false_verdicts"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("loss_over_active: no study moe_baselines at scale tiny")
    assert line.endswith("run: python -m ablations.run sweep=moe_baselines scale=tiny")
    page = (elsewhere / "gallery.md").read_text()
    assert [path.stem for path in (elsewhere / "figures" / "gallery").iterdir()] == ["false_verdicts"]
    assert page.count("![") == 1
    assert page.count("### ") == len(NAMES)


def test_a_name_that_is_none_is_said(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert GALLERY.main(["loss_over_activ"]) == 1
    assert "no figure loss_over_activ; there are losses_and_control," in capsys.readouterr().err
    assert not (elsewhere / "gallery.md").exists()


def test_a_title_made_of_nothing_is_an_error() -> None:
    nothing = pd.DataFrame({"val/loss mean": {"small_mha": 1.0}})
    with pytest.raises(RUNS.Missing, match="found no arms"):
        STUDIES.against_mha("", nothing)
    with pytest.raises(RUNS.Missing, match="found no rates of false verdicts"):
        STUDIES.told_apart("# a report without that section", nothing)
    with pytest.raises(RUNS.Missing, match=r"found no rates of 'beauty' in .*verdicts\.json"):
        STUDIES.simulated("beauty")


def test_figures_of_a_grid_and_of_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = made_up("balance_grid", "smoke")
    monkeypatch.setattr(STUDIES, "ran", lambda *_: grid)
    assert title_of(STUDIES.factorial_forest().picture) == (
        "Main effect of each loss on its own target: expert +0.40, device +0.20, communication +0.10"
    )
    assert "beyond the sum of what they do apart: " in title_of(STUDIES.interaction().picture)
    baselines = made_up("moe_baselines", "tiny")
    monkeypatch.setattr(STUDIES, "ran", lambda *_: baselines)
    assert title_of(STUDIES.loss_over_active().picture).startswith("Lowest: deepseek_moe, ")


def test_figures_of_a_ladder() -> None:
    draw = np.random.default_rng(0)
    runs = pd.DataFrame(
        {"scale": scale, "arm": arm, "seed": seed, "status": "finished", "flops": flops}
        | {"val/loss": (3 + offset) * (flops / 1e11) ** -0.07 * (1 + draw.normal(0, 1e-4))}
        for scale, flops in (("smoke", 1e11), ("tiny", 1e12))
        for arm, offset in (("none", 0.0), ("paper", -0.1))
        for seed in range(4)
    )
    said = title_of(STUDIES.loss_over_compute(lambda: runs).picture)
    assert said == "Mean loss by arm: 2.900 to 3.000 nats at smoke, 2.468 to 2.553 nats at tiny"
    said = title_of(STUDIES.difference_over_compute(lambda: runs).picture)
    assert said == "Against none, smoke to tiny: paper -0.100 to -0.085"
