"""Which token-expert pairs dropping takes: those of low affinity, if it does what section 2.2.4 says.

B sequences, T tokens, K experts a token.
"""

import pandas as pd

from dsv2.models.moe.router import Routing


def drops_by_affinity(routing: Routing, *, bins: int = 10) -> pd.DataFrame:
    """A row for each of so many equal groups of pairs, lowest affinity first, over all experts of one layer.

    Columns bin (from 1), low and high (affinity), pairs, dropped, share. ValueError where nothing may be dropped.
    """
    if routing.dropped is None:
        raise ValueError("routing.dropped=None: a routing with drops; `dsv2.drop` finds them")
    pairs = routing.experts.numel()
    if not 1 <= bins <= pairs:
        raise ValueError(f"bins={bins}: between 1 and the number of pairs, {pairs}")
    table = pd.DataFrame(
        {
            "affinity": routing.gates.detach().flatten().float().cpu().numpy(),
            "dropped": routing.dropped.flatten().cpu().numpy(),
        }
    )
    table["bin"] = (table["affinity"].rank(method="first") - 1) * bins // pairs + 1
    found = table.groupby("bin").agg(
        low=("affinity", "min"), high=("affinity", "max"), pairs=("dropped", "size"), dropped=("dropped", "sum")
    )
    found = found.assign(share=found["dropped"] / found["pairs"]).reset_index()
    return found.astype({"bin": int})
