"""What a GPU and its links can do, with the source of every number."""

from dataclasses import dataclass

from dsv2.accounting.cost import H800_PEAK
from dsv2.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class GPU:
    """Peak rates of one GPU, and the network that it shares with nobody; bytes per second are in one direction."""

    name: str
    peak_flops: float  # dense bfloat16 FLOPs per second
    memory: float  # bytes
    nvlink: float  # bytes per second to the other GPUs of its node
    network: float  # bytes per second to other nodes
    latency: float = 10e-6  # seconds per message; an assumption, of the order that nccl-tests shows
    gpus_per_node: int = 8
    source: str


_IB_400 = 50e9  # a 400 Gb/s adapter per GPU
GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU(name="h800", peak_flops=H800_PEAK, memory=80e9, nvlink=160e9, network=_IB_400,
            source="NVIDIA H100 SXM data sheet (FLOPs); arXiv 2412.19437, 3.2.2: NVLink 160 GB/s, InfiniBand 50"),
        GPU(name="h100", peak_flops=989e12, memory=80e9, nvlink=450e9, network=_IB_400,
            source="NVIDIA H100 SXM data sheet: 900 GB/s of NVLink in both directions; DGX H100: 400 Gb/s per GPU"),
        GPU(name="h200", peak_flops=989e12, memory=141e9, nvlink=450e9, network=_IB_400,
            source="NVIDIA H200 SXM data sheet: 900 GB/s of NVLink in both directions; DGX H200: 400 Gb/s per GPU"),
        GPU(name="a100", peak_flops=312e12, memory=80e9, nvlink=300e9, network=25e9,
            source="NVIDIA A100 SXM data sheet: 600 GB/s of NVLink in both directions; DGX A100: 200 Gb/s per GPU"),
    )
}  # fmt: skip


def gpu_named(name: str) -> GPU:
    """Return a GPU of `GPUS`. Raises ConfigError for another name."""
    if name not in GPUS:
        raise ConfigError("gpu", name, f"one of {', '.join(GPUS)}")
    return GPUS[name]
