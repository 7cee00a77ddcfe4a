"""What one pass over traces counts is what the functions for whole texts compute, in memory that does not grow."""

import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from dsv2.models.moe.dropping import drop
from dsv2.models.moe.router import Routing, route, token_devices
from dsv2.routing import coactivation, specialisation, tallies
from dsv2.routing.measures import count, measure
from dsv2.routing.observed import Observed, SequenceLosses
from dsv2.routing.tallies import Placement, Tallies, tally, within_devices
from dsv2.routing.traces import Chosen, open_traces
from tests.references.routing_traces import LAYERS, STEPS, E, K, Made, N, make, write, write_tokens


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("traces"))


def observed(made: Made, step: int) -> Observed:
    """What `observe` would have recorded at a step."""
    experts = np.stack([made.choices[step, layer].experts for layer in LAYERS])[:, None]
    gates = np.stack([made.choices[step, layer].scores for layer in LAYERS])[:, None].astype(np.float32)
    none = np.zeros(0)
    return Observed(
        losses=SequenceLosses(none, none),
        tokens=made.tokens[None],
        domains=None,
        num_experts=E,
        layers=LAYERS,
        experts=experts,
        gates=gates,
        entropy=np.zeros(experts.shape[:3], dtype=np.float32),
        mean_affinity=np.zeros((len(LAYERS), E)),
    )


def routing(made: Made, step: int, layer: int) -> Routing:
    experts, scores = made.choices[step, layer]
    chosen, gates = torch.from_numpy(experts.astype(np.int64))[None], torch.from_numpy(scores.astype(np.float32))[None]
    return Routing(made.affinities[step, layer], chosen, gates)


def counted(made: Made, placement: Placement | None = None, **options: int) -> Tallies:
    return tally(open_traces(made.folder), placement or Placement(), **options)


def same(found: pd.DataFrame | None, expected: pd.DataFrame) -> None:
    assert found is not None
    by = [name for name in ("layer", "step", "expert", "other") if name in expected]
    found, expected = (table.sort_values(by).reset_index(drop=True) for table in (found, expected))
    pd.testing.assert_frame_equal(found[list(expected)], expected, check_dtype=False, rtol=1e-12)


# ---- against whole texts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [16, 1000])
def test_measures_are_those_of_the_routing(made: Made, rows: int) -> None:
    found = counted(made, Placement(num_devices=4, batch_tokens=N), rows=rows)
    for step in STEPS:
        for layer in LAYERS:
            expected = measure(count(routing(made, step, layer), num_devices=4))._asdict()
            at = f"step == {step} and layer == {layer}"
            (load,), (devices,) = (table.query(at).to_dict("records") for table in (found.load, found.devices))
            for name in ("max_violation", "entropy", "dead_experts"):
                assert load[name] == expected[name]
            for name in ("device_max_violation", "received_max_violation", "devices_per_token"):
                assert devices[name] == expected[name]
            assert devices["drop_rate"] == expected["overflow"]
            chosen = np.bincount(made.choices[step, layer].experts.ravel(), minlength=E)
            assert found.expert_load.query(at)["load"].tolist() == chosen.tolist()
            assert found.device_load.query(at)["load"].tolist() == chosen.reshape(4, -1).sum(1).tolist()


@pytest.mark.parametrize("rows", [16, 1000])
def test_coactivation_certainty_and_saturation_are_those_of_the_text(made: Made, rows: int) -> None:
    found, last = counted(made, rows=rows), observed(made, STEPS[-1])
    same(found.pairs, coactivation.coactivation(last))
    router = found.router[found.router["step"] == STEPS[-1]]
    same(router, coactivation.router_certainty(last)[["layer", "chosen_mass", "top_gate"]])
    rows_of = [
        (step, layer, token, slot, expert)
        for (step, layer), choice in made.choices.items()
        for token, experts in enumerate(choice.experts.tolist())
        for slot, expert in enumerate(experts)
    ]
    snapshots = pd.DataFrame(rows_of, columns=["step", "layer", "token", "slot", "expert"])
    same(found.saturation, coactivation.saturation(snapshots, E))


def test_specialisation_by_token_is_that_of_the_text(made: Made) -> None:
    """In one block even the shuffled values are the same; in several they are close."""
    found, last = counted(made), observed(made, STEPS[-1])
    tokens, by_expert = specialisation.token_information(last), specialisation.expert_tokens(last, str)
    same(found.tokens, tokens)
    same(found.expert_tokens, by_expert)
    split = counted(made, rows=16)
    random = ["chance", "p", "share_of_most"]
    assert split.tokens is not None
    assert split.expert_tokens is not None
    same(split.tokens.drop(columns=random), tokens.drop(columns=random))
    same(split.expert_tokens.drop(columns="chance"), by_expert.drop(columns="chance"))
    np.testing.assert_allclose(split.tokens["chance"], tokens["chance"], rtol=0.1)


def test_a_large_vocabulary_is_shuffled_less_often(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    distinct = len(set(made.tokens.tolist()))
    monkeypatch.setattr(tallies, "CELLS", 3 * distinct * E)
    found = counted(made).tokens
    assert found is not None
    same(found, specialisation.token_information(observed(made, STEPS[-1]), shuffles=3))
    monkeypatch.setattr(tallies, "CELLS", 1)
    found = counted(made).tokens
    assert found is not None
    same(found, specialisation.token_information(observed(made, STEPS[-1]), shuffles=1))


@pytest.mark.parametrize("size", [1, 7, 16, 40, N, 1000])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25])
def test_drops_are_those_of_batches_of_that_size(made: Made, size: int, factor: float) -> None:
    """Blocks of rows that cut batches change nothing; the last batch is smaller, and so is its budget."""
    for rows in (16, 1000):
        found = counted(made, Placement(3, None, factor, size), rows=rows, tokens=False, pairs=False)
        for step, layer in made.choices:
            whole = routing(made, step, layer)
            dropped = torch.zeros(3, dtype=torch.int64)
            for first in range(0, N, size):
                part = Routing(*(tensor[:, first : first + size] for tensor in whole[:3]))
                over = drop(part, num_devices=3, capacity_factor=factor)
                dropped += torch.bincount(part.experts[over] // (E // 3), minlength=3)
            at = f"step == {step} and layer == {layer}"
            assert found.device_load.query(at)["dropped"].tolist() == dropped.tolist()
            assert found.devices.query(at)["drop_rate"].tolist() == [int(dropped.sum()) / (N * K)]


@pytest.mark.parametrize(("num_devices", "max_devices"), [(4, 1), (4, 2), (4, 3), (4, 4), (12, 3), (3, 1)])
def test_a_limit_of_devices_is_that_of_the_router(made: Made, num_devices: int, max_devices: int) -> None:
    """Devices are those of device-limited routing; kept experts are among its experts, and drops are close to its."""
    placement = Placement(num_devices, max_devices, 1.0, N)
    found = counted(made, placement, rows=16, tokens=False, pairs=False)
    for (step, layer), choice in made.choices.items():
        affinities = made.affinities[step, layer]
        experts, gates = route(affinities, top_k=K, num_devices=num_devices, max_devices=max_devices)
        sent = token_devices(experts, E, num_devices)[0]
        kept = within_devices(Chosen(*(part.T for part in choice)), E, placement)[1].T
        untied = (affinities.sort(-1, descending=True).values.diff() != 0).all(-1)[0].numpy()  # float16 has equal ones
        assert untied.mean() > 0.9
        for token in np.flatnonzero(untied):
            stays = set(choice.experts[token][kept[token]].tolist())
            assert stays <= set(experts[0, token].tolist())
            assert {e // (E // num_devices) for e in stays} == set(sent[token].nonzero()[:, 0].tolist())
        at = f"step == {step} and layer == {layer}"
        (row,) = found.devices.query(at).to_dict("records")
        assert row["displaced"] == pytest.approx(1 - kept.mean())
        free = token_devices(routing(made, step, layer).experts, E, num_devices).sum(-1).double()
        assert row["devices_without_limit"] == pytest.approx(float(free.mean()))
        assert row["devices_per_token"] == pytest.approx(float(free.clamp(max=max_devices).mean()))
        limited = Routing(affinities, experts, gates)
        rate = float(drop(limited, num_devices=num_devices, capacity_factor=1.0).double().mean())
        assert abs(row["drop_rate"] - rate) <= min(row["displaced"], 0.02) + 0.01  # ties
        if max_devices == 1 and untied.all():  # all replacements are on the one device
            assert row["drop_rate"] == pytest.approx(rate)
        if untied.all():
            assert found.device_load.query(at)["received"].tolist() == sent.sum(0).tolist()


# ---- by hand ---------------------------------------------------------------------------------------------------------


def by_hand(folder: Path, experts: list[list[int]], scores: list[list[float]], tokens: list[int]) -> Made:
    write_tokens(folder, np.array(tokens))
    write(folder / "actives" / "iter_3" / "layer_1.parquet", Chosen(np.int16(experts), np.float32(scores)))
    return Made(folder, np.array(tokens), {}, {})


def test_four_tokens_by_hand(tmp_path: Path) -> None:
    """Experts 0, 1 | 2, 3 on two devices; scores of different size, not in order; a limit of one device."""
    experts = [[0, 2], [1, 0], [3, 0], [2, 1]]
    scores = [[0.5, 0.25], [0.125, 0.375], [0.125, 0.875], [0.25, 0.25]]
    found = counted(by_hand(tmp_path, experts, scores, [7, 7, 9, 9]), Placement(2, 1, 1.0, 2))
    assert found.expert_load["load"].tolist() == [3, 2, 2, 1]
    (load,) = found.load.to_dict("records")
    assert load == {
        "layer": 1,
        "step": 3,
        "max_violation": 0.5,
        "entropy": pytest.approx((3 / 8 * np.log(8 / 3) + 4 / 8 * np.log(4) + 1 / 8 * np.log(8)) / np.log(4)),
        "dead_experts": 0.0,
    }
    # Kept: 0 | 1, 0 | 0 | 2 (the first of equal scores), and three others on the same devices. In batches of two tokens
    # the budget is 2 pairs per device.
    assert found.device_load.to_dict("list") == {
        "layer": [1, 1],
        "step": [3, 3],
        "device": [0, 1],
        "load": [6, 2],
        "received": [3, 1],
        "dropped": [2, 0],
    }
    (devices,) = found.devices.to_dict("records")
    assert devices == {
        "layer": 1,
        "step": 3,
        "device_max_violation": 0.5,
        "received_max_violation": 0.5,
        "devices_per_token": 1.0,
        "drop_rate": 2 / 8,
        "displaced": 3 / 8,
        "devices_without_limit": 7 / 4,
    }
    (router,) = found.router.to_dict("records")
    assert router["chosen_mass"] == (0.75 + 0.5 + 1 + 0.5) / 4
    assert router["top_gate"] == pytest.approx((2 / 3 + 3 / 4 + 7 / 8 + 1 / 2) / 4)
    assert found.saturation.to_dict("records") == [
        {"layer": 1, "step": 3, "overlap": 1, "chance": pytest.approx((9 + 4 + 4 + 1) / (4 * 8))}
    ]
    assert found.pairs is not None
    assert found.pairs["tokens"].tolist() == [1, 1, 1, 1, 0, 0]  # 01 02 03 12 13 23
    assert found.expert_tokens is not None
    assert found.expert_tokens["load"].tolist() == [1.5, 1, 1, 0.5]


@pytest.mark.parametrize("scores", [[-0.5, 0.75], [0.0, 0.0]])
def test_scores_that_are_no_shares_have_no_certainty(tmp_path: Path, scores: list[float]) -> None:
    found = counted(by_hand(tmp_path, [[0, 1], [2, 3]], [[0.5, 0.25], scores], [0, 1]))
    assert found.router[["chosen_mass", "top_gate", "entropy_chosen"]].isna().all(axis=None)
    assert found.load["max_violation"].tolist() == [0]


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path) -> None:
    """Neither that of Python and NumPy, nor that of Arrow, whose files have one row group of small pages."""
    pools, peaks = [], []
    for factor in (2, 16):
        num_tokens = 4096 * factor
        rng = np.random.default_rng(0)
        experts = rng.random((num_tokens, 8)).argsort(1)[:, :2].astype(np.int16)
        choice = Chosen(experts, rng.random((num_tokens, 2), dtype=np.float32))
        folder = tmp_path / str(factor)
        write_tokens(folder, rng.integers(50, size=num_tokens))
        for step in (1, 2):
            path = folder / "actives" / f"iter_{step}" / "layer_0.parquet"
            write(path, choice, rows=num_tokens, data_page_size=1 << 12, use_dictionary=False)
        traces = open_traces(folder)
        ordinary = pa.default_memory_pool()
        pools.append(pa.proxy_memory_pool(ordinary))
        pa.set_memory_pool(pools[-1])
        tracemalloc.start()
        try:
            tally(traces, Placement(2, 1, 1.0, 1000), rows=1024)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
            pa.set_memory_pool(ordinary)
    assert peaks[1] < 1.05 * peaks[0] + 100_000
    assert pools[1].max_memory() < 1.1 * pools[0].max_memory()


def test_every_row_is_seen_once(made: Made) -> None:
    seen: list[int] = []
    tally(open_traces(made.folder), Placement(), rows=64, tokens=False, pairs=False, seen=seen.append)
    assert sum(seen) == N * len(STEPS) * len(LAYERS)
    assert max(seen) == 64 * len(STEPS)
