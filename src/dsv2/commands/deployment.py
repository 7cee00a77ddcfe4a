"""The options that say how a command's model is deployed: `--kv-bits`, `--rope-bits` and `--device`."""

import argparse
import re
from typing import TYPE_CHECKING

from dsv2.printing import complain

if TYPE_CHECKING:
    from dsv2.inference.deployed import Deployed
    from dsv2.models.transformer import Transformer


def add_deployment(parse: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parse.add_argument(
        "--kv-bits",
        type=int,
        metavar="N",
        help="bits per cached element: 16, 8, 6, 5, 4, 3 or 2 (default: as computed)",
    )
    parse.add_argument(
        "--rope-bits", type=int, metavar="N", help="... of the part of keys that RoPE rotates (default: the same)"
    )
    parse.add_argument("--device", type=_device, default="cpu", metavar="NAME", help="cpu (default), cuda, cuda:1, ...")


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a device, as cpu, cuda or cuda:1")
    return text


def deployment_of(arguments: argparse.Namespace) -> "Deployed.Config":
    """Return what the options ask for, the device aside. Raises ConfigError for bits that are not offered."""
    from dsv2.inference.deployed import with_cache_of

    return with_cache_of(arguments.kv_bits, arguments.rope_bits)


def tell_of_cache(model: "Transformer.Config", deployment: "Deployed.Config") -> None:
    """Say on stderr what a quantised cache of the model holds."""
    if deployment.kv is None:
        return
    from dsv2.accounting.account import account

    held = account(model, kv=deployment.kv)
    complain(
        f"KV cache: {held.kv_bytes_per_token:,.0f} bytes per token, {held.kv_bits:.2f} bits per element on average, "
        "scales and offsets included"
    )
