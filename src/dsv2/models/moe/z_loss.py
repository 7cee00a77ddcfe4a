"""The z-loss of ST-MoE (arXiv 2202.08906), which keeps the logits of routers small.

B batch, T tokens, E routed experts.
"""

from torch import Tensor


def z_loss(logits: Tensor, real: Tensor | None = None) -> Tensor:
    """Return the mean over tokens of (log sum_e exp x_e)^2 (5), a float32 scalar, from a router's logits x (B, T, E).

    `real` (B, T) bool says which tokens count; padding does not. By default all do.
    """
    squared = logits.float().logsumexp(-1).square()  # (B, T)
    return squared.mean() if real is None else squared[real].mean()
