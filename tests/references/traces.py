"""A text through a small model whose weights are large enough that experts differ."""

import dsv2
from dsv2.data.tokenizer import Tokenizer
from dsv2.explore.trace import Trace, trace

TOKENIZER = Tokenizer.train(["the cat sat on the mat, and the hat of the cat was flat"] * 3, 300)
TEXT = "the cat <b>sat</b> on\n\nthe 数学 & mat"
SHAPE = [
    "data.vocab_size=300",
    "model.dim=16",
    "model.shape.num_experts=8",
    "model.shape.top_k=3",
    "model.shape.num_devices=4",
    "model.init_std=0.5",
]


def of(text: str, *, seed: int = 0, overrides: tuple[str, ...] = ()) -> Trace:
    model = dsv2.load([*SHAPE, *overrides]).model.build(seed=seed).eval()
    return trace(model, TOKENIZER, text, most_tokens=64, num_devices=model.config.ffn.num_devices)
