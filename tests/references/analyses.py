"""Tables of expert analyses and a routing of four tokens, with values that need no model."""

import numpy as np
import pandas as pd
import torch

import dsv2


def changes(names: list) -> pd.DataFrame:
    values = np.linspace(0, 0.6, len(names))
    table = pd.DataFrame({"model": names, "loss": 1.8 + values, "difference": values})
    return table.assign(low=values * 0.9, high=values * 1.1)


def masked(run: str) -> pd.DataFrame:
    return changes([0, 2, 4, 6]).assign(run=run, ratio=[0, 1 / 16, 1 / 8, 3 / 16])


def grid(layers: list[int], experts: int, **columns: list) -> pd.DataFrame:
    """Make a row per layer, expert and whatever else, with a value between 0 and 1."""
    index = pd.MultiIndex.from_product([layers, range(experts), *columns.values()], names=["layer", "expert", *columns])
    return index.to_frame(index=False).assign(value=np.random.default_rng(0).random(len(index)))


def shares(layers: list[int], experts: int) -> pd.DataFrame:
    table = grid(layers, experts, domain=["code", "english", "maths"])
    return table.assign(share=table["value"] / experts, lift=2 * table["value"])


def four_tokens(dropped: bool = True) -> dsv2.Routing:
    """Four tokens over four experts on two devices; the second choice of the last token is dropped."""
    experts = torch.tensor([[[0, 3], [1, 0], [2, 1], [3, 2]]])
    affinities = torch.full((1, 4, 4), 0.1).scatter(-1, experts, torch.tensor([[[0.5, 0.3]] * 4]))
    drops = torch.zeros(1, 4, 2, dtype=torch.bool)
    drops[0, 3, 1] = True
    return dsv2.Routing(affinities, experts, affinities.gather(-1, experts), drops if dropped else None)
