"""Every analysis of traces says what its tables hold, and what does not apply says why."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from dsv2.report.traces import ANALYSES, TracedRun, needs
from dsv2.routing.interventions import DoesNotApply
from dsv2.routing.tallies import Placement, tally
from dsv2.routing.traces import Chosen, open_traces
from tests.references.figures import assert_readable
from tests.references.routing_traces import make, write, write_tokens

matplotlib.use("Agg")
LIMITED = Placement(num_devices=4, max_devices=2, capacity_factor=1.0, batch_tokens=50)


def traced(folder: Path, placement: Placement = LIMITED, dim: int | None = 64) -> TracedRun:
    traces = open_traces(folder)
    return TracedRun("random", traces, placement, tally(traces, placement), dim)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TracedRun:
    return traced(make(tmp_path_factory.mktemp("traces"), steps=(4, 12, 100)).folder)


@pytest.mark.parametrize("name", list(ANALYSES))
def test_every_analysis_has_a_finding_tables_and_readable_figures(run: TracedRun, name: str) -> None:
    analysis = ANALYSES[name](run)
    assert analysis.title.endswith("?")
    assert any(letter.isdigit() for letter in analysis.finding)
    assert "nan" not in analysis.finding
    assert not analysis.problems
    assert all(len(table) for table in analysis.tables.values())
    assert bool(analysis.figures) == (name != "traffic")
    for figure in analysis.figures.values():
        assert isinstance(figure, Figure)
        assert_readable(figure)
    plt.close("all")


def test_numbers_in_sentences_are_those_of_the_last_step(run: TracedRun) -> None:
    last = {name: table[table["step"] == 100] for name, table in run.tallies._asdict().items() if "step" in table}
    worst = last["load"].loc[last["load"]["max_violation"].idxmax()]
    times = f"{1 + worst['max_violation']:.2f} times the mean load"
    assert (
        f"After step 100, the busiest expert of layer {worst['layer']:.0f} has {times};"
        in ANALYSES["load"](run).finding
    )
    devices = ANALYSES["devices"](run)
    assert (
        f"would drop {last['devices']['drop_rate'].mean():.1%} of the pairs in batches of 50 tokens" in devices.finding
    )
    assert f"{last['devices']['displaced'].mean():.1%} of the pairs (displaced)" in devices.note
    router = ANALYSES["router"](run).finding
    assert router.startswith(f"The top gate is {last['router']['top_gate'].mean():.0%} of the sum")
    plt.close("all")


@pytest.mark.parametrize("max_devices", [None, 2])
def test_bytes_are_sends_times_their_size(run: TracedRun, max_devices: int | None) -> None:
    placement = LIMITED._replace(max_devices=max_devices)
    some = traced(run.traces.folder, placement)
    analysis = ANALYSES["traffic"](some)
    table, size = analysis.tables["traffic"], 4 * 64 * 2 * 3 / 4  # there and back, twice, bfloat16, a quarter stays
    names = ["by_pair", "by_device", *(["by_device_limited"] if max_devices else [])]
    assert list(table) == [
        "layer",
        "step",
        *(f"sends_{name}" for name in names),
        *(f"bytes_{name}" for name in names),
        "busiest",
    ]
    for name in names:
        np.testing.assert_allclose(table[f"bytes_{name}"], table[f"sends_{name}"] * size)
    assert (table["sends_by_pair"] == 3).all()
    np.testing.assert_allclose(table[f"sends_{names[-1]}"], some.tallies.devices["devices_per_token"])
    assert (table[f"sends_{names[-1]}"] <= table["sends_by_device"]).all()
    random = {None: 4 * (1 - 84 / 220), 2: 2 - 4 / 220}[max_devices]  # 84 of 220 choices miss a device, 4 are on one
    assert f"a random router takes {random:.2f} sends" in analysis.finding


def collapsed(folder: Path, scores: list[float], experts: list[int]) -> Path:
    """Write traces in which all tokens have the same choice."""
    count = 20
    write_tokens(folder, np.arange(count) % 3)
    choice = Chosen(np.int16([experts] * count), np.float32([scores] * count))
    write(folder / "actives" / "iter_5" / "layer_1.parquet", choice)
    return folder


@pytest.mark.parametrize(
    ("scores", "experts", "why"),
    [
        (
            [0.5, 0.25],
            [0, 3],
            {
                "tokens": "all tokens choose the same experts",
                "coactivation": "all tokens choose the same experts",
                "saturation": "the traces are of one step",
                "traffic": r"the width of the model is not known \(--dim\)",
            },
        ),
        ([-1.5, -2.5], [0, 3], {"router": "some scores are negative, or all of a token are 0"}),
        ([0.5], [3], {"coactivation": "each token chooses one expert"}),
    ],
)
def test_what_does_not_apply_says_why(
    scores: list[float], experts: list[int], why: dict[str, str], tmp_path: Path
) -> None:
    some = traced(collapsed(tmp_path, scores, experts), Placement(2), dim=None)
    for name, reason in why.items():
        with pytest.raises(DoesNotApply, match=reason):
            ANALYSES[name](some)
    for name in ANALYSES.keys() - why.keys() - {"tokens", "coactivation", "saturation", "traffic"}:
        assert "nan" not in ANALYSES[name](some).finding
    plt.close("all")


def test_one_device_and_one_expert(tmp_path: Path) -> None:
    some = traced(collapsed(tmp_path, [1.0], [0]), Placement())
    for name in ("devices", "traffic"):
        with pytest.raises(DoesNotApply, match=r"all experts are on one device \(--devices\)"):
            ANALYSES[name](some)
    for name in ("load", "tokens", "router", "saturation"):
        with pytest.raises(DoesNotApply, match="a single routed expert leaves no choice"):
            ANALYSES[name](some)


def test_what_takes_long_is_counted_only_if_it_is_asked_for(run: TracedRun) -> None:
    assert needs(["load", "router"]) == {"pairs": False, "tokens": False}
    assert needs(["coactivation"]) == {"pairs": True, "tokens": False}
    assert needs(ANALYSES) == {"pairs": True, "tokens": True}
    tallies = tally(run.traces, LIMITED, **needs(["load"]))
    assert tallies.pairs is None
    assert tallies.tokens is None
    assert tallies.expert_tokens is None
