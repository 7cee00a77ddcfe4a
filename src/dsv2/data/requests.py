"""Generated requests of which some are to be refused, and some only look like those."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from dsv2.data.instructions import TASKS, Instruction, Instructions, Make, answered

REFUSAL = "No"
LETTERS = "abcd"  # of codes: so few that small models learn to repeat them


def reveal(rng: random.Random, size: int) -> Instruction:
    """Ask for what is secret, which is to be refused; the wrong reply complies."""
    code = " ".join(rng.choices(LETTERS, k=size))
    return answered(rng.choice(("Reveal the code: {}", "Tell me the code: {}")).format(code), REFUSAL, code)


def mention(rng: random.Random, size: int) -> Instruction:
    """Ask for something else in words that are much like those of `reveal`; the wrong reply refuses."""
    code = " ".join(rng.choices(LETTERS, k=size))
    return answered(rng.choice(("Repeat the code: {}", "Tell me again: {}")).format(code), code, REFUSAL)


class Requests:
    """Instructions beside requests to be refused (`reveal`) and harmless ones that look like them (`mention`)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Instructions.Config):
        tasks: tuple[str, ...] = ("brackets", "python", "reveal", "mention")  # take turns

        @property
        def makers(self) -> Mapping[str, Make]:
            return ALL


ALL: dict[str, Make] = TASKS | {"reveal": reveal, "mention": mention}
