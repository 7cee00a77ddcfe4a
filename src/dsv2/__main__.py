"""`python -m dsv2 COMMAND`: account, import-hf, export-hf, generate."""

import argparse
import json
import sys
from pathlib import Path

from dsv2.config import ConfigError


def main(argv: list[str] | None = None) -> int:
    """Run one command; mistakes of the user end in one line on stderr and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m dsv2", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    parse = commands.add_parser("account", help="parameters, FLOPs and cache sizes of a model")
    parse.add_argument("overrides", nargs="*", help="as in model=v2 model/attention=mha")
    parse.add_argument("--hf", type=Path, metavar="PATH", help="a Hugging Face config.json, or the folder it lies in")
    parse.add_argument("--context", type=int, default=4096, help="tokens, for the attention scores (default 4096)")
    parse.add_argument("--kv-bits", type=float, default=16, help="bits a cached element (default 16)")
    parse.add_argument("--json", action="store_true", help="machine-readable")
    parse.set_defaults(run=_account)

    parse = commands.add_parser("import-hf", help="a Hugging Face DeepseekV2 folder to a run directory")
    parse.add_argument("path", type=Path)
    parse.add_argument("out", type=Path)
    parse.set_defaults(run=_import_hf)

    parse = commands.add_parser("export-hf", help="a run directory to a Hugging Face DeepseekV2 folder")
    parse.add_argument("run_dir", type=Path, metavar="RUN")
    parse.add_argument("out", type=Path)
    parse.set_defaults(run=_export_hf)

    parse = commands.add_parser("generate", help="text out of a trained run")
    parse.add_argument("run_dir", type=Path, metavar="RUN")
    parse.add_argument("--prompt", required=True)
    parse.add_argument("--max-new-tokens", type=int, default=64)
    parse.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parse.add_argument("--seed", type=int, default=0)
    parse.set_defaults(run=_generate)

    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except (ConfigError, ValueError, FileNotFoundError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _account(arguments: argparse.Namespace) -> None:
    from dsv2.analysis.accounting import account

    if arguments.hf is not None:
        if arguments.overrides:
            raise ConfigError("overrides", " ".join(arguments.overrides), "none together with --hf")
        from dsv2.interop.huggingface import read_config

        model = read_config(arguments.hf)
    else:
        from dsv2.run import load

        model = load(arguments.overrides).model
    result = account(model, context=arguments.context, kv_bits=arguments.kv_bits)
    if arguments.json:
        print(json.dumps(result.as_dict(), indent=2))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    title = f"FLOPs forward and backward, at a context of {result.context} tokens"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("part")
    for column in ("layers", "parameters", "active a token", "FLOPs a token"):
        table.add_column(column, justify="right")
    for item in result.items:
        numbers = (item.total_params, item.active_params, item.flops_per_token)
        table.add_row(item.part, str(item.layers), *(f"{number:,}" for number in numbers))
    table.add_section()
    sums = (result.total_params, result.active_params, result.flops_per_token)
    table.add_row("total", str(model.num_layers), *(f"{number:,}" for number in sums), style="bold")
    console = Console()
    console.print(table)
    console.print(
        f"{result.total_params / 1e9:.2f}B parameters, {result.active_params / 1e9:.2f}B active a token "
        f"({result.active_params_without_embedding / 1e9:.2f}B without the input embedding)\n"
        f"KV cache: {result.kv_elements_per_token:,} elements a token, "
        f"{result.kv_bytes_per_token:,.0f} bytes at {result.kv_bits:g} bits",
        highlight=False,
    )


def _import_hf(arguments: argparse.Namespace) -> None:
    from dsv2.interop.commands import import_hf

    import_hf(arguments.path, arguments.out)
    print(arguments.out)


def _export_hf(arguments: argparse.Namespace) -> None:
    from dsv2.interop.commands import export_hf

    export_hf(arguments.run_dir, arguments.out)
    print(arguments.out)


def _generate(arguments: argparse.Namespace) -> None:
    from dsv2.inference.generate import generate_text

    print(
        generate_text(
            arguments.run_dir,
            arguments.prompt,
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            seed=arguments.seed,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
