"""What training will take on a kind of hardware, before it is started: a range, with what it rests on."""

from dataclasses import dataclass
from typing import NamedTuple

from dsv2.distributed.hardware import GPUS


class Span(NamedTuple):
    """A likely value, and what it lies between."""

    low: float
    likely: float
    high: float

    def times(self, factor: float) -> "Span":
        return Span(*(value * factor for value in self))


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """A device, and the share of its peak that training reaches."""

    name: str
    peak_flops: float  # per second, in the precision that training uses there
    memory: float  # bytes
    utilisation: Span  # model FLOPs over the peak
    source: str

    def rate(self) -> Span:
        """Return the model FLOPs per second of one device."""
        return self.utilisation.times(self.peak_flops)


_TRAINING = Span(0.2, 0.32, 0.46)  # lowest, geometric mean and highest of the sources below
_MFU = (
    "21% of the peak are what DeepSeek-V2's 172.8K GPU hours per trillion tokens imply (`dsv2 simulate hours`), 46% is "
    "the best of arXiv 2204.02311; models below a billion parameters reach less"
)
HARDWARE = {
    hardware.name: hardware
    for hardware in (
        *(
            Hardware(
                name=name,
                peak_flops=GPUS[name].peak_flops,
                memory=GPUS[name].memory,
                utilisation=_TRAINING,
                source=f"{GPUS[name].source.partition(':')[0]}; {_MFU}",
            )
            for name in ("h100", "a100")
        ),
        Hardware(
            name="laptop",
            peak_flops=8 * 3e9 * 32,
            memory=16e9,
            utilisation=Span(0.05, 0.15, 0.4),
            source="8 cores at 3 GHz with two 256-bit units for multiply-add: 32 float32 FLOPs per cycle and core; "
            "the range allows for clocks that fall under load and for small matrices",
        ),
    )
}


class Need(NamedTuple):
    """What one run, or several together, will take."""

    tokens: float
    flops: float
    memory: float  # bytes at the peak, of one process
    disk: float  # bytes of checkpoints, logs and routing tables

    def seconds(self, rate: Span) -> Span:
        """Return how long one device takes at a rate in FLOPs per second."""
        return Span(self.flops / rate.high, self.flops / rate.likely, self.flops / rate.low)


def together(needs: list[Need]) -> Need:
    """Add up runs that follow one another on a device."""
    return Need(
        tokens=sum(need.tokens for need in needs),
        flops=sum(need.flops for need in needs),
        memory=max((need.memory for need in needs), default=0.0),
        disk=sum(need.disk for need in needs),
    )
