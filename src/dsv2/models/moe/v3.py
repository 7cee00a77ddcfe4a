"""DeepSeek-V3's layer (arXiv 2412.19437, section 2.1.2): sigmoid affinities, normalised gates, a balancing bias."""

from dataclasses import dataclass

from dsv2.models.moe.loss_free import LossFree
from dsv2.models.moe.sigmoid import Sigmoid
from dsv2.models.ops import PLAIN, Ops


class V3(LossFree, Sigmoid):
    """Chooses experts as `LossFree` and weighs them as `Sigmoid`.

    V3's complementary loss per sequence (17) is `loss.expert`, with a coefficient of 0.0001.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(LossFree.Config, Sigmoid.Config):
        def build(self, dim: int, ops: Ops = PLAIN) -> "V3":
            return V3(self, dim, ops)
