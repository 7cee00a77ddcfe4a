"""Which token-expert pairs are dropped, by affinity: the lowest ones, according to section 2.2.4.

B sequences, T tokens, K experts per token.
"""

import pandas as pd

from dsv2.models.moe.router import Routing


def drops_by_affinity(routing: Routing, *, bins: int = 10) -> pd.DataFrame:
    """Group the token-expert pairs of one layer by affinity into bins of equal size, lowest first, one row each.

    Columns: bin (1 to `bins`), low and high (affinity), pairs, dropped, share. Raises ValueError for a routing without
    dropping.
    """
    if routing.dropped is None:
        raise ValueError("routing.dropped=None: needs a routing with drops; compute them with `dsv2.drop`")
    pairs = routing.experts.numel()
    if not 1 <= bins <= pairs:
        raise ValueError(f"bins={bins}: must be between 1 and the number of pairs, {pairs}")
    table = pd.DataFrame(
        {
            "affinity": routing.affinities.detach().gather(-1, routing.experts).flatten().float().cpu().numpy(),
            "dropped": routing.dropped.flatten().cpu().numpy(),
        }
    )
    table["bin"] = (table["affinity"].rank(method="first") - 1) * bins // pairs + 1
    groups = table.groupby("bin").agg(
        low=("affinity", "min"), high=("affinity", "max"), pairs=("dropped", "size"), dropped=("dropped", "sum")
    )
    groups = groups.assign(share=groups["dropped"] / groups["pairs"]).reset_index()
    return groups.astype({"bin": int})
