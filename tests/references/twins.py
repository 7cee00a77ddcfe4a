"""Tiny DeepseekV2 models of transformers with weights large enough that attention and routing matter.

H heads, E experts. float32, eager attention and experts: sums in one order, on one thread.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "moe_intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "max_position_embeddings": 4096,
}
LIMITED = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
STD = 0.2  # against 0.02 at initialisation: scores of order 1, affinities far from 1 / E


def yarn(**chosen: float) -> dict[str, Any]:
    """RoPE parameters of a YaRN whose three kinds of pairs (kept, between, slowed) all occur at a width of 8."""
    return {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 512, "rope_theta": 1e4, **chosen}


def twin(**overrides: Any) -> DeepseekV2ForCausalLM:
    """A model of transformers with random weights, norms included."""
    config = DeepseekV2Config(**(SHAPE | overrides), attn_implementation="eager", experts_implementation="eager")
    with torch.device("meta"):
        model = DeepseekV2ForCausalLM(config)
    model.to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its buffers are no weights
    model.tie_weights()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            mean = 1.0 if weight.dim() == 1 else 0.0
            weight.copy_(mean + STD * torch.randn(weight.shape, generator=generator))
    return model


def save_with_tokenizer(folder: Path, kind: str, texts: Sequence[str], **overrides: Any) -> None:
    """Save a model with a tokenizer of its own: "byte-level" with DeepSeek's settings, or "metaspace" as SentencePiece.

    The special tokens are outside of the vocabulary that was trained, as DeepSeek's are.
    """
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=kind == "metaspace"))
    if kind == "byte-level":
        words = pre_tokenizers.Split(tokenizers.Regex(r"\s?\p{L}+"), "isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.Digits(individual_digits=True), level])
        backend.decoder = decoders.ByteLevel()
        known: dict[str, Any] = {"initial_alphabet": sorted(pre_tokenizers.ByteLevel.alphabet())}
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
        known = {"special_tokens": [f"<0x{byte:02X}>" for byte in range(256)]}
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=320, show_progress=False, **known))
    special = {
        "bos_token": "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
        "eos_token": "<\uff5cend\u2581of\u2581sentence\uff5c>",
    }
    backend.add_special_tokens([*special.values()])
    ids = {f"{name}_id": backend.token_to_id(content) for name, content in special.items()}
    twin(vocab_size=384, **ids, **overrides).save_pretrained(folder)
    backend.save(str(folder / "tokenizer.json"))
    added = {name: {"__type": "AddedToken", "content": content} for name, content in special.items()}
    settings = {"add_bos_token": True, "add_eos_token": False, "tokenizer_class": "LlamaTokenizerFast"} | added
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def tokens(batch: int = 2, length: int = 24) -> Tensor:
    """(B, T) int64."""
    return torch.randint(SHAPE["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(3))


def relative(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest element of `expected`; without a floor, 0 where both are 0."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert torch.isfinite(actual).all()
    if not expected.numel() or torch.equal(actual, expected):
        return 0.0
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).abs().max() / expected.abs().max())
