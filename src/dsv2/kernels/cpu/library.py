"""The compiled ops: built with the machine's C++ compiler at installation or first use, and kept for later processes.

The library is stored under a hash of its sources, compiler flags and torch's version, so that none of them can change
without a new build.
"""

import hashlib
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock

from dsv2.caches import cache_folder
from dsv2.kernels.cpu import fakes
from dsv2.kernels.unavailable import Unavailable
from dsv2.printing import complain, warn

HERE = Path(__file__).parent
NAME = "dsv2_cpu.so"
COMMON = ["-std=c++20", "-O3", "-fPIC", "-fopenmp", "-DAT_PARALLEL_OPENMP=1"]  # no -ffast-math: it changes training
INSTRUCTIONS = {  # by torch's name for what the CPU can do; anything else is compiled for the compiler's default
    "AVX2": ["-mavx2", "-mfma", "-mf16c", "-DCPU_CAPABILITY=AVX2", "-DCPU_CAPABILITY_AVX2"],
    "AVX512": [
        *("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
        *("-DCPU_CAPABILITY=AVX512", "-DCPU_CAPABILITY_AVX512"),
    ],
}


@cache
def available() -> bool:
    """Return whether the ops are loaded, building them if needed; warns once if that is not possible."""
    try:
        load()
    except Unavailable as error:
        warn(f"plain torch is used instead of compiled kernels, which takes longer: {error}")
        return False
    return True


@cache
def load() -> None:
    """Load the ops, building them first if needed. Raises Unavailable."""
    flags, path = _flags(), kept()
    try:
        if path is None:
            with tempfile.TemporaryDirectory() as folder:
                _build(flags, Path(folder, NAME))
                torch.ops.load_library(Path(folder, NAME))
        else:
            torch.ops.load_library(_built(flags, path))
    except OSError as error:
        raise Unavailable(str(error).partition("\n")[0]) from None
    fakes.register()


def kept() -> Path | None:
    """Return the file in which the ops are kept, which is there once they were used; None if nothing is kept."""
    folder = cache_folder("kernels")
    return None if folder is None else folder / _key(_flags()) / NAME


def compiler() -> str:
    """Return the C++ compiler, as it is called."""
    return os.environ.get("CXX", "c++")


def _flags() -> list[str]:
    return [*COMMON, *INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), [])]


def _built(flags: list[str], path: Path) -> Path:
    """Return `path`, where the library is built unless it is there. Raises Unavailable and OSError."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.is_file():
                _build(flags, path)
    return path


def _key(flags: list[str]) -> str:
    """Return a hash of all that goes into a build."""
    key = hashlib.sha256("\0".join([torch.__version__, compiler(), *flags]).encode())
    for source in sorted((*HERE.glob("*.cpp"), *HERE.glob("*.h"))):
        key.update(source.read_bytes())
    return key.hexdigest()[:16]


def _build(flags: list[str], path: Path) -> None:
    """Compile all sources as one, since most of the time goes into torch's headers. Raises Unavailable."""
    complain("compiling kernels for this CPU, once, in about a minute ...")
    home = Path(torch.__file__).parent
    includes = [f"-I{folder}" for folder in (HERE, home / "include", home / "include/torch/csrc/api/include")]
    libraries = [f"-L{home / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        whole, made = Path(scratch, "all.cpp"), Path(scratch, NAME)
        whole.write_text("".join(f'#include "{source.name}"\n' for source in sorted(HERE.glob("*.cpp"))))
        command = [compiler(), *flags, *includes, "-shared", str(whole), *libraries, "-o", str(made)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            raise Unavailable(f"there is no C++ compiler {command[0]!r}; install one, or name it in CXX") from None
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error:" in line]
            raise Unavailable(f"{command[0]} failed: {(errors or ['no message'])[0]}")
        made.replace(path)
