"""`python -m dsv2 corpus build OUT [overrides]` and `corpus show DIR`: filtered corpora and their data cards."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from dsv2.config import ConfigError

LARGEST_VOCAB = 102_400  # DeepSeek-V2's


def add_arguments(
    parser: argparse.ArgumentParser, *, path: Callable[[str], Path], numbers: Callable[[str], list[int]]
) -> None:
    """Declare the two commands; `path` and `numbers` read their arguments."""
    commands = parser.add_subparsers(dest="corpus", required=True)
    parse = commands.add_parser("build", help="build a corpus as the directory OUT")
    parse.add_argument("out", metavar="OUT", type=path)
    parse.add_argument("overrides", nargs="*", metavar="data.KEY=VALUE", help="settings of data=filtered")
    parse.add_argument(
        "--vocabularies",
        type=numbers,
        default=[],
        metavar="V,V",
        help=f"sizes of tokenizers for the table of bytes per token, up to {LARGEST_VOCAB}",
    )
    parse.set_defaults(run=lambda arguments: build_corpus(arguments.out, arguments.overrides, arguments.vocabularies))
    parse = commands.add_parser("show", help="verify a corpus and print what became of its documents")
    parse.add_argument("folder", metavar="DIR", type=path)
    parse.set_defaults(run=lambda arguments: show_corpus(arguments.folder))


def build_corpus(out: Path, overrides: Sequence[str], vocabularies: Sequence[int] = ()) -> None:
    """Build a corpus and print its tables. Raises ValueError, before anything is written, if OUT is taken."""
    from dsv2.composition import compose
    from dsv2.config import structure
    from dsv2.data.corpus.source import FilteredCorpus
    from dsv2.data.source import Source
    from dsv2.data.tokenizer import SMALLEST_VOCAB
    from dsv2.storage.files import require_free

    for size in vocabularies:
        if not SMALLEST_VOCAB <= size <= LARGEST_VOCAB:
            raise ConfigError("--vocabularies", size, f"sizes from {SMALLEST_VOCAB} to {LARGEST_VOCAB}")
    for word in overrides:
        if not word.lstrip("+~").startswith("data."):
            raise ConfigError("overrides", word, "settings of data=filtered, as in data.most_mb=2")
    require_free(out)
    config = structure(compose(["data=filtered", *overrides])["data"], Source.Config, "data")
    if not isinstance(config, FilteredCorpus.Config):
        raise ConfigError("data", config.label, "filtered; other data are not built")
    from dsv2.data.corpus.build import build  # imports what the extra `corpus` has

    build(config.anchored().order(), out.absolute(), vocabularies=vocabularies)
    show_corpus(out)


def show_corpus(folder: Path) -> None:
    """Print what became of the documents of a corpus. Raises ValueError naming what is missing or damaged."""
    from dsv2.data.corpus.page import SHARE_HEADER, STEP_HEADER, share_rows, step_rows
    from dsv2.data.corpus.stored import CARD_PAGE, open_corpus
    from dsv2.report.terminal import add_row, open_console, open_table, say

    corpus = open_corpus(folder.absolute())
    card, console = corpus.card, open_console()
    for side in card["steps"]:
        table = open_table(STEP_HEADER, title=f"{side.replace('_', '-')} documents")
        for row in step_rows(card, side):
            add_row(table, row)
        console.print(table)
    table = open_table(SHARE_HEADER, title="mixture")
    for row in share_rows(card):
        add_row(table, row)
    console.print(table)
    for size, ratios in card["bytes_per_token"].items():
        say(f"bytes per token, {size} tokens: {', '.join(f'{name} {value:.2f}' for name, value in ratios.items())}")
    say(f"content {corpus.content}")
    say(f"A name in brackets is of a filter that was not applied. Samples of what was dropped: {folder / CARD_PAGE}")
    say(f"data=corpus data.path={folder}")
