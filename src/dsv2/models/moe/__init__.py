"""Mixture-of-experts layers: DeepSeekMoE and its baselines; their configs can be used as `model.ffn`.

Router, balance losses, dropping, experts and dispatch have one file each.
"""

from dsv2.models.moe.gshard import GShard
from dsv2.models.moe.hash import Hash
from dsv2.models.moe.layer import MoE
from dsv2.models.moe.switch import Switch

MoEConfig = MoE.Config | GShard.Config | Switch.Config | Hash.Config
