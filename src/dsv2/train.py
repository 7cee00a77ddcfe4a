"""`python -m dsv2.train [overrides]`: train one model. A plain Hydra application.

The last line on stdout is the path of the run directory, `runs/train/<fingerprint>`.
"""

import sys
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from dsv2.config import CONFIG_DIR, ConfigError, without_shape


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="train")
def main(composed: DictConfig) -> None:
    from dsv2.paths import runs_root
    from dsv2.run import from_plain

    values: Any = OmegaConf.to_container(composed, resolve=True)
    try:
        run = from_plain(without_shape(values))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

    from dsv2.training import process
    from dsv2.training.fit import Diverged, Interrupted, fit

    process.prepare()
    folder = runs_root() / (run.study or "train") / run.fingerprint()
    try:
        fit(run, folder)
    except Diverged as error:
        print(f"error: {error}; the last good checkpoint is in {folder / 'checkpoints'}", file=sys.stderr)
        sys.exit(1)
    except Interrupted as error:
        print(f"{error}; the same command resumes it", file=sys.stderr)
        sys.exit(143)
    print(folder)


if __name__ == "__main__":
    main()
