"""Attention variants; their configs can be used as `model.attention`."""

from dsv2.models.attention.gqa import GQA
from dsv2.models.attention.mla import MLA

AttentionConfig = GQA.Config | MLA.Config
