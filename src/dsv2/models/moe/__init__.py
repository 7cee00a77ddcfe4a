"""Mixture-of-experts layers: DeepSeekMoE and its baselines; their configs can be used as `model.ffn`.

Router, balance losses, z-loss, dropping, experts and dispatch have one file each.
"""

from dsv2.models.moe.gshard import GShard
from dsv2.models.moe.hash import Hash
from dsv2.models.moe.layer import MoE
from dsv2.models.moe.loss_free import LossFree
from dsv2.models.moe.sigmoid import Sigmoid
from dsv2.models.moe.switch import Switch
from dsv2.models.moe.v3 import V3

MoEConfig = MoE.Config | LossFree.Config | Sigmoid.Config | V3.Config | GShard.Config | Switch.Config | Hash.Config
