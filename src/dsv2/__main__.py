"""`python -m dsv2 COMMAND`, or `dsv2 COMMAND`: new, ls, show, compare, rm, doctor, account, import-hf, export-hf,
generate, eval, analyse, export-traces, explore, serve, tasks, judge, corpus, simulate.

RUN is a run directory, the name of a trial as in `balance_losses/tiny/paper/0` (sweep, scale, arm, seed), the same
without the scale or without sweep and scale where one run matches, or the first digits of a fingerprint; `dsv2 ls`
lists them.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from dsv2.commands import corpus, simulate, traces
from dsv2.commands.account import account_command, add_arguments
from dsv2.commands.deployment import add_deployment, deployment_of
from dsv2.config import ConfigError
from dsv2.printing import refuse, shortened


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors are printed as one line on stderr.

    The exit status is 2 for user errors, and 1 for errors of the machine, such as a full disk, and if a task or
    analysis that was asked for by name failed.
    """
    arguments = _parser().parse_args(argv)
    try:
        failed = arguments.run(arguments)
    except BrokenPipeError:  # who reads the output, as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that flushing at exit does not fail too
        return 0
    except (ValueError, OSError) as error:
        return refuse(error)
    except KeyboardInterrupt:
        return 130
    return 1 if failed else 0


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        sys.exit(refuse(ValueError(f"{shortened(message)}; {self.prog} --help shows what is valid")))


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("'' is not a path")
    return Path(text)


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers, as in 512,1024") from None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="dsv2", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    parse = commands.add_parser("new", help="write the commented file of a study of your own")
    parse.add_argument("kind", choices=["study"])
    parse.add_argument("name", metavar="NAME")
    parse.add_argument("--out", type=_path, metavar="FILE.yaml", help="default: among the studies in configs/sweep")
    parse.set_defaults(run=_new)

    parse = commands.add_parser("ls", help="list the runs of the store")
    parse.add_argument("study", nargs="?", metavar="STUDY", help="a study, or study/scale (default: all runs)")
    form = parse.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print an object per run and line, with all metrics")
    form.add_argument("--html", action="store_true", help="write the page of all studies and print its path")
    parse.set_defaults(run=_ls)

    parse = commands.add_parser("show", help="print what is stored of a run")
    parse.add_argument("name", metavar="RUN")
    parse.add_argument("--config", action="store_true", help="print its config alone, as YAML")
    parse.set_defaults(run=_show)

    parse = commands.add_parser("compare", help="print two runs side by side: settings, metrics, load of experts")
    parse.add_argument("first", metavar="RUN")
    parse.add_argument("second", metavar="RUN")
    parse.set_defaults(run=_compare)

    parse = commands.add_parser("rm", help="remove runs from the store, after asking")
    parse.add_argument("names", nargs="+", metavar="RUN")
    parse.add_argument("--force", action="store_true", help="also what a report names or another run started from")
    parse.add_argument("--yes", action="store_true", help="do not ask")
    parse.set_defaults(run=_rm)

    parse = commands.add_parser("doctor", help="versions, device, kernels, store, and what is missing for what")
    parse.set_defaults(run=_doctor)

    parse = commands.add_parser("account", help="parameters, FLOPs, memory, traffic and cost of a model")
    add_arguments(parse, path=_path)
    parse.set_defaults(run=account_command)

    parse = commands.add_parser("import-hf", help="convert a Hugging Face DeepseekV2 folder to a run directory")
    parse.add_argument("path", type=_path)
    parse.add_argument("out", type=_path)
    parse.set_defaults(run=_import_hf)

    parse = commands.add_parser("export-hf", help="convert a run and its tokenizer to a Hugging Face DeepseekV2 folder")
    parse.add_argument("name", metavar="RUN")
    parse.add_argument("out", type=_path)
    parse.set_defaults(run=_export_hf)

    parse = commands.add_parser("generate", help="generate text with a trained or imported model")
    parse.add_argument("name", metavar="RUN")
    source = parse.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", metavar="TEXT")
    source.add_argument("--prompts", metavar="FILE", help="one prompt per line; -: standard input")
    parse.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="per answer (default 64)")
    parse.add_argument("--samples", type=int, default=1, metavar="N", help="answers per prompt (default 1)")
    parse.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default)")
    parse.add_argument("--top-k", type=int, metavar="K", help="draw from the K most likely tokens")
    parse.add_argument("--top-p", type=float, default=1.0, metavar="P", help="... that together have probability P")
    parse.add_argument(
        "--min-p", type=float, default=0.0, metavar="P", help="... that are P times as likely as the likeliest"
    )
    parse.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1: less of what is there already"
    )
    parse.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends an answer; may be repeated")
    parse.add_argument("--seed", type=int, default=0, metavar="S")
    parse.add_argument(
        "--context", type=int, metavar="N", help="tokens of a prompt and its answer (default: as in training)"
    )
    parse.add_argument("--batch-size", type=int, default=16, metavar="N", help="answers at a time (default 16)")
    parse.add_argument("--json", action="store_true", help="print an object per answer and line")
    parse.add_argument(
        "--log-probabilities", action="store_true", help="with --json: also those of the answer's tokens, in nats"
    )
    add_deployment(parse)
    parse.set_defaults(run=_generate)

    parse = commands.add_parser("eval", help="evaluate a model on our benchmarks and those of lm-evaluation-harness")
    parse.add_argument("name", metavar="RUN")
    parse.add_argument(
        "--tasks",
        required=True,
        metavar="A,B",
        help="cloze, copying, arithmetic, needle, following; humaneval, mmlu, bbh, math, ceval, cmmlu, cmrc; those of "
        "the harness",
    )
    parse.add_argument("--include-path", type=_path, metavar="DIR", help="a folder with your own task files")
    parse.add_argument("--data-dir", type=_path, metavar="DIR", help="a folder with the data sets of tasks")
    parse.add_argument("--limit", type=int, help="questions per task of the harness (default: all)")
    parse.add_argument("--batch-size", type=int, default=8, help="sequences per pass (default 8)")
    parse.add_argument("--out", type=_path, metavar="FILE.json", help="also write the scores as JSON")
    multiples = "1 to 16 times those of training, for an imported model up to its longest context"
    parse.add_argument("--lengths", type=_numbers, default=[], metavar="N,N", help=f"tokens for needle ({multiples})")
    parse.add_argument("--figure", type=_path, metavar="FILE.png", help="also draw the heat map of needle")
    add_deployment(parse)
    _add_text(parse)
    parse.set_defaults(run=_eval)

    parse = commands.add_parser("analyse", help="analyse the experts of a model, or routing traces")
    subject = parse.add_mutually_exclusive_group(required=True)
    subject.add_argument("name", nargs="?", metavar="RUN")
    subject.add_argument("--traces", type=_path, metavar="DIR", help="a folder with samples/ and actives/")
    parse.add_argument(
        "--out",
        type=_path,
        metavar="DIR",
        help="folder of the report (default RUN/analysis or DIR/analysis, with the choices below in its name)",
    )
    parse.add_argument("--only", default="", metavar="A,B", help="names of analyses (default: all that apply)")
    parse.add_argument("--against", metavar="RUN2", help="another run on the same text, for comparison")
    _add_text(parse)
    traces.add_arguments(parse)
    parse.set_defaults(run=_analyse)

    parse = commands.add_parser("export-traces", help="write the routing of a run's held-out text as traces")
    parse.add_argument("name", metavar="RUN")
    parse.add_argument("out", type=_path)
    _add_text(parse)
    parse.set_defaults(run=_export_traces)

    parse = commands.add_parser("explore", help="show on a local page how one run or two route a text")
    parse.add_argument("names", nargs="+", metavar="RUN", help="one run, or two to compare")
    parse.add_argument("--port", type=int, help="default: the first free port from 5006 on")
    parse.add_argument("--no-browser", action="store_true", help="only print the URL")
    parse.set_defaults(run=_explore)

    parse = commands.add_parser("serve", help="serve a model to OpenAI clients on this machine")
    parse.add_argument("name", metavar="RUN")
    parse.add_argument("--port", type=int, default=8000, help="default 8000; 0: any free port")
    parse.add_argument("--rows", type=int, default=8, metavar="N", help="answers at a time (default 8)")
    parse.add_argument(
        "--waiting", type=int, default=64, metavar="N", help="answers that may wait (default 64); beyond them, 429"
    )
    parse.add_argument(
        "--context", type=int, metavar="N", help="tokens of a prompt and its answer (default: as in training)"
    )
    add_deployment(parse)
    parse.set_defaults(run=_serve)

    parse = commands.add_parser("tasks", help="how hard the instructions of a run's data are for its model")
    _add_tasks(parse)
    parse.set_defaults(run=_tasks)

    parse = commands.add_parser("judge", help="whose answers to held-out prompts a judge prefers")
    _add_judge(parse)
    parse.set_defaults(run=_judge)

    parse = commands.add_parser("corpus", help="filter, deduplicate and mix documents, and show what became of them")
    corpus.add_arguments(parse, path=_path, numbers=_numbers)

    parse = commands.add_parser("simulate", help="pipeline schedules and expert parallelism at cluster size")
    simulate.add_arguments(parse)
    return parser


def _add_tasks(parse: argparse.ArgumentParser) -> None:
    parse.add_argument("name", metavar="RUN")
    parse.add_argument("--prompts", type=int, default=200, metavar="N", help="of the training data (default 200)")
    parse.add_argument("--samples", type=int, default=8, metavar="G", help="replies per prompt (default 8)")
    parse.add_argument("--temperature", type=float, default=1.0, metavar="T", help="default 1")
    parse.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="per reply (default 32)")
    parse.add_argument("--seed", type=int, default=0, metavar="S")
    parse.add_argument("--json", action="store_true", help="print an object per task and line")
    default = "default: the run's own"
    parse.add_argument(
        "--text", nargs="+", default=[], metavar="data=...", help=f"overrides that select data ({default})"
    )


def _add_judge(parse: argparse.ArgumentParser) -> None:
    parse.add_argument("name", metavar="RUN")
    parse.add_argument("other", metavar="OTHER", help="the run that it is compared with")
    by = "rule, by which the right answer wins (the default), or the URL of an OpenAI-compatible endpoint"
    parse.add_argument(
        "--by", nargs="+", default=["rule"], metavar="JUDGE", help=f"{by}; of two, also how far they agree"
    )
    parse.add_argument("--model", default="default", metavar="NAME", help="of the judge at the endpoint")
    parse.add_argument("--prompts", type=int, default=80, metavar="N", help="held-out prompts (default 80)")
    parse.add_argument("--max-new-tokens", type=int, default=32, metavar="N", help="per answer (default 32)")
    parse.add_argument("--json", action="store_true", help="print an object per judge and line")
    own = "overrides that select the data of the prompts (default: those of RUN)"
    parse.add_argument("--text", nargs="+", default=[], metavar="data=...", help=own)


def _add_text(parse: argparse.ArgumentParser) -> None:
    default = "default: the run's own, or data=english for an imported model"
    parse.add_argument(
        "--text", nargs="+", default=[], metavar="data=...", help=f"overrides that select held-out text ({default})"
    )


def _new(arguments: argparse.Namespace) -> None:
    from dsv2.commands.new import new_command

    new_command(arguments.name, arguments.out)


def _ls(arguments: argparse.Namespace) -> None:
    from dsv2.commands.runs import print_runs

    print_runs(arguments.study, as_json=arguments.json, html=arguments.html)


def _show(arguments: argparse.Namespace) -> None:
    from dsv2.commands.runs import show_run

    show_run(arguments.name, config=arguments.config)


def _compare(arguments: argparse.Namespace) -> None:
    from dsv2.commands.runs import compare_runs

    compare_runs(arguments.first, arguments.second)


def _rm(arguments: argparse.Namespace) -> None:
    from dsv2.commands.runs import remove_runs

    remove_runs(arguments.names, force=arguments.force, yes=arguments.yes)


def _doctor(_: argparse.Namespace) -> bool:
    from dsv2.commands.doctor import doctor

    return doctor()


def _import_hf(arguments: argparse.Namespace) -> None:
    from dsv2.commands.huggingface import import_hf

    import_hf(arguments.path, arguments.out)
    print(arguments.out)


def _export_hf(arguments: argparse.Namespace) -> None:
    from dsv2.commands.huggingface import export_hf

    export_hf(arguments.name, arguments.out)
    print(arguments.out)


def _generate(arguments: argparse.Namespace) -> None:
    from dsv2.commands.generate import generate_command

    generate_command(arguments)


def _eval(arguments: argparse.Namespace) -> bool:
    from dsv2.commands.evaluate import evaluate_run, require_writable, show, write

    for option, path in (("--out", arguments.out), ("--figure", arguments.figure)):
        if path is not None:
            require_writable(path, option)  # before the evaluation, which may take hours
    deployment = deployment_of(arguments)
    scores, failed = evaluate_run(
        arguments.name,
        arguments.tasks.split(","),
        include_path=arguments.include_path,
        data_dir=arguments.data_dir,
        limit=arguments.limit,
        batch_size=arguments.batch_size,
        text=arguments.text,
        deployment=deployment,
        device=arguments.device,
        lengths=arguments.lengths,
        figure=arguments.figure,
    )
    show(scores)
    if arguments.out is not None:
        write(arguments.out, arguments.name, scores)
    return bool(failed)


def _analyse(arguments: argparse.Namespace) -> bool:
    names = [name for name in arguments.only.split(",") if name]
    if arguments.only and not names:
        raise ConfigError("only", arguments.only, "names of analyses")
    options = traces.options(arguments)
    if arguments.traces is not None:
        report, failed = traces.analyse_traces(arguments.traces, out=arguments.out, only=names, **options)
    else:
        from dsv2.commands.analyse import analyse

        report, failed = analyse(
            arguments.name, out=arguments.out, only=names, against=arguments.against, text=arguments.text
        )
    if report is not None:
        print(report)
    return bool(names and failed)


def _export_traces(arguments: argparse.Namespace) -> None:
    traces.export_traces(arguments.name, arguments.out, text=arguments.text)
    print(arguments.out)


def _explore(arguments: argparse.Namespace) -> None:
    if len(arguments.names) > 2:
        raise ConfigError("RUN", " ".join(arguments.names), "one run, or two to compare")
    from dsv2.explore.serve import serve

    serve(arguments.names, port=arguments.port, browser=not arguments.no_browser)


def _serve(arguments: argparse.Namespace) -> None:
    from dsv2.commands.serve import serve

    serve(
        arguments.name,
        port=arguments.port,
        num_rows=arguments.rows,
        max_waiting=arguments.waiting,
        context=arguments.context,
        deployment=deployment_of(arguments),
        device=arguments.device,
    )


def _tasks(arguments: argparse.Namespace) -> None:
    from dsv2.commands.tasks import tasks_command

    tasks_command(arguments)


def _judge(arguments: argparse.Namespace) -> None:
    from dsv2.commands.judge import judge_command

    judge_command(arguments)


if __name__ == "__main__":
    sys.exit(main())
