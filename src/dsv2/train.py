"""`python -m dsv2.train [overrides]`: train one model. A plain Hydra application.

The last line on stdout is the path of the run directory, `runs/train/<fingerprint>`. Exit status: 2 for a mistake in
the configuration, 1 for a run that failed or diverged, 130 and 143 for one that was stopped.
"""

import os
import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from dsv2.config import CONFIG_DIR, ConfigError, compose, without_shape


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="train")
def train(composed: DictConfig) -> None:
    values: Any = OmegaConf.to_container(composed, resolve=True)
    try:
        print(_train(values))
    except ConfigError as error:
        stop(2, f"error: {error}")
    except OSError as error:
        stop(1, f"error: {error}")


def _train(values: dict[str, Any]) -> Path:
    """Train what was composed; the run directory."""
    from dsv2.paths import runs_root
    from dsv2.run import from_plain

    run = from_plain(without_shape(values))
    folder = runs_root() / (run.study or "train") / run.fingerprint()

    from dsv2.training import process
    from dsv2.training.fit import Diverged, Interrupted, fit

    process.prepare()
    try:
        fit(run, folder)
    except Diverged as error:
        stop(1, f"error: {error}; the last good checkpoint is in {folder / 'checkpoints'}")
    except Interrupted as error:
        stop(143, f"{error}; the same command resumes it")
    return folder


def stop(status: int, message: str) -> None:
    """End with one line on stderr."""
    print(message, file=sys.stderr)
    sys.exit(status)


def main() -> None:
    """The application, its errors told in one line instead of Hydra's way."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, where Hydra would print them and exit with 1
    try:
        train()
    except (HydraException, OmegaConfBaseException) as error:
        stop(2, f"error: {_explained(error)}")
    except KeyboardInterrupt:
        stop(130, "stopped; the same command resumes it")


def _explained(error: Exception) -> str:
    """What `compose` says of the same overrides, which names key, value and what is valid; else Hydra's first line."""
    try:
        compose([word for word in sys.argv[1:] if "=" in word and not word.startswith("-")], "train")
    except ConfigError as better:
        return str(better)
    return str(error).splitlines()[0]


if __name__ == "__main__":
    main()
