"""What a process that trains sets up once: quiet libraries, and an allocator that keeps the memory it was given."""

import ctypes
import logging
import platform
import warnings

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # glibc's numbers for mallopt


def prepare() -> None:
    """Call once in every process that trains, before the first step."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Have glibc reuse large blocks, which a step otherwise maps and faults in again; nothing on other C libraries.

    `benchmarks/allocator.py` measures what it brings: little on a quiet machine, more where memory is contended.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_THRESHOLD, 32 << 20)  # the most it takes
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
