"""What a model's RoPE says of its context: the kind of extension, its limit, and what it does to the pairs."""

from dataclasses import asdict, dataclass
from typing import Any

from dsv2.models.rope import Partition
from dsv2.models.transformer import Transformer

NAMES = {"interpolation": "position interpolation", "ntk": "NTK-aware scaling", "yarn": "YaRN"}


@dataclass(frozen=True)
class Positions:
    """The positions that a model can be given, and the pairs of channels that encode them."""

    kind: str  # plain, interpolation, ntk or yarn
    pairs: int  # per head, or of the key that MLA's heads share
    limit: int | None = None  # tokens; None: none is stated
    factor: float | None = None
    original_length: int | None = None
    partition: Partition | None = None  # of YaRN
    betas: tuple[float, float] | None = None  # beta_fast and beta_slow with which it would be divided as in DeepSeek-V2

    def as_dict(self) -> dict[str, Any]:
        partition = None if self.partition is None else self.partition._asdict()
        return asdict(self) | {"partition": partition}

    def text(self) -> str:
        """Describe them in one sentence."""
        if self.limit is None:
            return f"RoPE: {self.pairs} pairs, without extension"
        line = f"RoPE: {NAMES[self.kind]} by {self.factor:g} from {self.original_length:,} to {self.limit:,} tokens"
        if self.partition is None or self.betas is None:
            return f"{line}, {self.pairs} pairs"
        kept, ramped, interpolated = self.partition
        fast, slow = self.betas
        return (
            f"{line}; of {self.pairs} pairs {kept} keep their frequency, {ramped} are on the ramp, {interpolated} are "
            f"interpolated (in V2's proportions with beta_fast={fast:.3g}, beta_slow={slow:.3g})"
        )


def positions_of(model: Transformer.Config) -> Positions:
    """Describe the positions of a model."""
    rope, dim = model.rope, model.attention.rotary_dim
    extended = rope.extended
    if extended is None:
        return Positions("plain", dim // 2)
    kind = type(extended).__qualname__.partition(".")[0].lower()
    partition = None if rope.yarn is None else rope.yarn.partition(rope.base, dim)
    betas = None if rope.yarn is None else rope.yarn.proportional(rope.base)
    return Positions(kind, dim // 2, extended.limit, extended.factor, extended.original_length, partition, betas)
