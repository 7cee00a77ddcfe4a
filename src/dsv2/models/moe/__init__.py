"""Mixture-of-experts layers: DeepSeekMoE, and the baselines it is compared with; all can stand under `model.ffn`.

Router, balance losses, dropping, experts and dispatch have one file each.
"""

from dsv2.models.moe.gshard import GShard
from dsv2.models.moe.hash import Hash
from dsv2.models.moe.layer import MoE
from dsv2.models.moe.switch import Switch

MoEConfig = MoE.Config | GShard.Config | Switch.Config | Hash.Config
