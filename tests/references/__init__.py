"""Every equation of the model as plain loops in float64: the specification that the implementation is held to.

B sequences, T queries, S keys, d model width, H heads, G key-value groups, E routed experts, K chosen per token,
D devices (equal groups of experts), M devices per token, r latent width, q query latent width.
Equations are numbered as in the DeepSeek-V2 report (2405.04434). No equation imports dsv2; none is fast.
"""

# ruff: noqa: F403
from tests.references.attention import *
from tests.references.basics import *
from tests.references.moe import *
from tests.references.sides import *
