"""`python -m dsv2.train [overrides]`: train one model. A plain Hydra application.

`study=NAME arm=ARM [scale=...] [probe=...] [seed=...]` expand to all overrides of that arm, so that a W&B agent or a
job can train one trial of a study, in the study's folder.

The last line on stdout is the path of the run directory, `runs/train/<fingerprint>`. Exit status: 2 for an invalid
configuration, 1 for a run that failed or diverged, 130 and 143 for one that was stopped.
"""

import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dsv2.composition import as_text, checked, compose, override, register_resolvers, resolved, without_shape
from dsv2.config import CONFIG_DIR, ConfigError, plain
from dsv2.printing import complain, described, refuse

if TYPE_CHECKING:
    from dsv2.study.plan import Plan

_typed: list[str] = []  # arguments, before `study` and `arm` are expanded to others
SWEEP = "WANDB_SWEEP_ID"  # set by a W&B agent for the processes that it starts


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="train")
def train(composed: DictConfig) -> None:
    try:
        words: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
        checked(words)
        values: Any = resolved(composed)
        several = HydraConfig.get().mode == RunMode.MULTIRUN
        folder = _train(values, words, words if several else _typed)
    except (ConfigError, OSError) as error:
        _refuse(error)
    if folder is not None and os.environ.get("RANK", "0") == "0":
        print(folder)


def _train(values: dict[str, Any], words: list[str], typed: list[str]) -> Path | None:
    """Train the composed run and return its directory.

    Returns None if other processes trained it, which have named it; they are given the arguments `typed`.
    """
    from dsv2.storage.checkpoints import require_no_pickles
    from dsv2.storage.rundir import RESULT, finished, require_in_store, runs_root
    from dsv2.study.words import LABELS, require_name
    from dsv2.training.run import folder_of, loaded

    run = loaded(without_shape(values), words)
    for label in LABELS:
        if (name := getattr(run, label)) is not None:
            require_name(label, name)
    place = f"{run.study}/{run.scale}/trials" if run.study and run.scale else run.study or "train"
    try:
        folder = folder_of(run, runs_root() / place)
        require_no_pickles()
        require_in_store(folder)
    except ValueError as error:
        _refuse(error)

    from dsv2.storage.space import DiskFull
    from dsv2.training import machine
    from dsv2.training.fit import Busy, Diverged, Interrupted, fit, record_failure
    from dsv2.training.launch import LOST, launch, launched
    from dsv2.training.processes import PeerLost, require_devices, started

    if run.mesh.size > 1 and started() == 1:
        require_devices(run)
        begun = time.time()
        try:
            status = launch(typed, run.mesh.size)
        except PeerLost as error:  # the others may have been ended before they could record it
            if folder.is_dir() and finished(folder) is None:
                record_failure(run, folder, error, begun)
            stop(1, f"error: {error}; run the same command again to resume")
        if status:  # they have said why
            sys.exit(status)
        return None

    machine.prepare()
    try:
        fit(run, folder)
    except Busy as error:
        stop(1, f"error: {error}")
    except DiskFull as error:
        stop(1, f"error: {error}; make space and run the same command again to resume")
    except Diverged as error:
        stop(1, f"error: {error}; the last good checkpoint is in {folder / 'checkpoints'}")
    except PeerLost as error:
        if launched():
            sys.exit(LOST)
        stop(1, f"error: {error}; run the same command again to resume")
    except Interrupted as error:
        stop(143, f"{error}; run the same command again to resume")
    except (ConfigError, OSError):
        raise
    except Exception as error:  # of any library; `fit` has recorded it
        complain(f"error: {described(error)}; its traceback is in {folder / RESULT}")
        sys.exit(1)
    return folder


def stop(status: int, message: str) -> NoReturn:
    """Exit with one line on stderr, also of several processes."""
    if _first():
        complain(message)
    sys.exit(status)


def _refuse(error: Exception) -> NoReturn:
    everywhere = isinstance(error, ConfigError)  # a fault of a disk may be that of one process
    sys.exit(2 if everywhere and not _first() else refuse(error))


def _first() -> bool:
    """Whether this is the first of the processes that torchrun started on this machine, or the only one."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


NAMES = ("study", "scale", "arm", "probe")  # text, whatever else it could be read as


def expanded(words: list[str]) -> list[str]:
    """Expand an arm of a study on the command line to its overrides; explicit ones take precedence.

    Names need no quotes: `arm=64` is the arm called 64. Under a W&B agent the words are those of a sweep file, which
    may say no more than a study file.
    """
    if os.environ.get(SWEEP):
        from dsv2.study.words import require_allowed

        require_allowed(words)
    given = dict(word.split("=", 1) for word in words if "=" in word)
    names = {key: as_text(given[key]) for key in NAMES if given.get(key) not in (None, "null")}
    words_of = {key: override(key, value) for key, value in names.items()}
    if {"-m", "--multirun"} & set(words):
        return words  # names may be lists
    if not ("study" in names and "arm" in names):
        return [words_of.get(word.partition("=")[0], word) for word in words]
    from dsv2.study.plan import Plan

    arm, seed = names["arm"], given.get("seed", "0")
    plan = Plan(names["study"], names.get("scale", "smoke"))
    plan.require_rates()
    own = [*plan.words(arm, names.get("probe")), override("study", plan.name), override("scale", plan.scale)]
    if not re.fullmatch("[0-9]+", seed):
        raise ConfigError("seed", seed, "one seed, 0 or more; use ablations.run for several")
    own += [word for key, word in words_of.items() if key in ("arm", "probe")]
    own += _origins(plan, arm, int(seed), names.get("probe"))
    flags = [word for word in words if "=" not in word]
    values = [word for word in words if "=" in word and word.partition("=")[0] not in (*NAMES, "seed")]
    return [*flags, *own, *values, f"seed={int(seed) + plan.arms[arm].seed_offset}"]


def _origins(plan: "Plan", arm: str, seed: int, probe: str | None) -> list[str]:
    """Return the words that name the trials from whose weights an arm starts, and whose it reads.

    Raises ConfigError if one has not finished.
    """
    from dsv2.storage.rundir import finished, runs_root
    from dsv2.study.plan import from_trial
    from dsv2.training.run import folder_of

    root, words = runs_root() / plan.name / plan.scale / "trials", []
    for key, first in plan.named_by(arm).items():
        run = plan.trial(first, seed, probe, root)
        folder = folder_of(run, root)
        if finished(folder) is None:
            of_probe = "" if probe is None else f" probe={probe}"
            command = f"python -m dsv2.train study={plan.name} scale={plan.scale} arm={first}{of_probe} seed={seed}"
            raise ConfigError("arm", arm, f"one whose origin has finished; run {command} first")
        words.append(override(key, plain(from_trial(run, folder, run.fingerprint()))))
    return words


def _reaching(words: list[str]) -> list[str]:
    """Return the words so that they can set every key of the run that `init_from` names."""
    overrides = _overrides(words)
    if not any(word.lstrip("+").startswith("init_from=") for word in overrides):
        return words
    from dsv2.training.origin import reaching

    forms = dict(zip(overrides, reaching(overrides), strict=True))
    return [forms.get(word, word) for word in words]


def main() -> None:
    """Run the application, with errors printed in one line."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    _typed[:] = sys.argv[1:]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints errors itself and exits with 1
    register_resolvers()
    try:
        sys.argv[1:] = _reaching(expanded(sys.argv[1:]))
        _require_flags(sys.argv[1:])
        checked(_overrides(sys.argv[1:]))  # before Hydra, whose errors are of many kinds
    except (ConfigError, OSError) as error:
        _refuse(error)
    try:
        train()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        stop(2, f"error: {_explained(error)}")
    except KeyboardInterrupt:
        stop(130, "stopped; run the same command again to resume")


FLAGS = "flags stand before or after all overrides, --hydra-help lists them"
MODES = ("run", "multirun", "cfg", "info", "shell_completion")  # of which Hydra takes one


def _require_flags(words: list[str]) -> None:
    """Raise `ConfigError` for flags that Hydra does not take; it would print its usage, or a traceback."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()

    def refused(message: str) -> NoReturn:
        raise ConfigError("arguments", " ".join(words), f"{message}; {FLAGS}")

    parser.error = refused  # type: ignore[method-assign]
    given = parser.parse_args(words)
    modes = [name for name in MODES if getattr(given, name)]
    if len(modes) > 1:
        refused(f"only one of {', '.join(f'--{mode}' for mode in modes)}")
    if given.experimental_rerun is not None:
        refused("give the overrides again, since --experimental-rerun would load a pickle")


def _overrides(words: list[str]) -> list[str]:
    """Return the overrides among words; with --multirun none, since they may have several values each."""
    if {"-m", "--multirun"} & set(words):
        return []
    return [word for word in words if "=" in word and not word.startswith("-")]


def _explained(error: Exception) -> str:
    """Return the error of `compose` for the same overrides, which names key and value; else Hydra's first line."""
    from hydra.errors import OverrideParseException

    try:
        compose([error.override] if isinstance(error, OverrideParseException) else _overrides(sys.argv[1:]), "train")
    except ConfigError as better:
        return str(better)
    return str(error).splitlines()[0]


if __name__ == "__main__":
    main()
