"""`python -m ablations.wandb_sweeps`: write `configs/wandb/<study>.yaml`, a W&B sweep file for every study.

    wandb sweep configs/wandb/balance_losses.yaml     # prints the sweep ID
    wandb agent ENTITY/dsv2/ID                        # on any number of machines

An agent trains one trial after another with `python -m dsv2.train study=... arm=... seed=...`, into the study's folder,
where `python -m ablations.report` finds them like any other trials. For another scale, change
`parameters.scale.value` and, if the scale has other seeds, `parameters.seed.values`.
"""

import re
import sys
from pathlib import Path
from typing import Any

import yaml

from ablations.request import studies
from dsv2.config import CONFIG_DIR, ConfigError
from dsv2.printing import refuse
from dsv2.storage.files import write_text
from dsv2.study.plan import Plan

SCALE = "smoke"
HEADER = "# Made from configs/sweep/{name}.yaml by `python -m ablations.wandb_sweeps`: edit the study, not this file.\n"


def path_of(name: str) -> Path:
    return CONFIG_DIR / "wandb" / f"{name}.yaml"


def sweep_file(name: str) -> str:
    """Return the text of a study's sweep file: every arm with every seed, on the study's data and its probes."""
    plan = Plan(name, SCALE)
    parameters: dict[str, Any] = {
        "study": {"value": name},
        "scale": {"value": SCALE},
        "arm": {"values": list(plan.arms)},
        "seed": {"values": list(plan.seeds)},
    }
    if plan.probes:
        parameters["probe"] = {"values": ["null", *plan.probes]}
    goal = {"lower": "minimize", "higher": "maximize"}[plan.file.judged[plan.file.metric]]
    sweep = {
        "name": name,
        "project": "dsv2",
        "description": " ".join(plan.file.question.split()),
        "method": "grid",
        "metric": {"name": plan.file.metric, "goal": goal},
        "parameters": parameters,
        "command": ["${env}", "${interpreter}", "-m", "dsv2.train", "${args_no_hyphens}", "logger.wandb.mode=online"],
    }
    return HEADER.format(name=name) + yaml.dump(sweep, Dumper=_Dumper, sort_keys=False, width=120)


class _Dumper(yaml.SafeDumper):
    """YAML in which names stay text in every version: YAML 1.2 reads a plain 1e-3 as a number, unlike PyYAML."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = dumper.resolve(yaml.ScalarNode, text, (True, False)) == "tag:yaml.org,2002:str"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, "'" if plain and _NUMBER.fullmatch(text) else None)


_NUMBER = re.compile(r"[-+]?(0[ox][0-9a-fA-F]+|[0-9.][0-9.eE+-]*)")
_Dumper.add_representer(str, _text)


def main(arguments: list[str]) -> int:
    """Write the files of all studies, and delete those of studies that no longer exist; return the exit status."""
    if arguments in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    try:
        if arguments:
            raise ConfigError("arguments", " ".join(arguments), "none: all files are written")
        _write()
    except (ConfigError, OSError) as error:
        return refuse(error)
    return 0


def _write() -> None:
    for name in studies():
        path_of(name).parent.mkdir(exist_ok=True)
        write_text(path_of(name), sweep_file(name))
        print(path_of(name))
    for path in path_of("").parent.glob("*.yaml"):
        if path.stem not in studies():
            path.unlink()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
