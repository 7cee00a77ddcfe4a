"""`python -m ablations.wandb_workspace sweep=NAME [entity=...] [project=dsv2]`: create a W&B workspace for a study.

Runs are filtered to the study and grouped by arm, so that seeds are shown as a mean with its range. There are panels
for losses, balance, speed and every judged metric. Saving needs W&B's server and a key (`wandb login`); without
`entity=` the workspace is printed as JSON, offline.
"""

import json
import sys
from typing import Any

from ablations.request import studies, usage
from dsv2.config import ConfigError, one_of
from dsv2.metrics import quantity
from dsv2.printing import complain, described, refuse
from dsv2.study.plan import Plan

LOSSES = ("val/loss", "train/loss", "val/accuracy")
BALANCE = ("max_violation", "device_max_violation", "received_max_violation", "entropy", "dead_experts", "overflow")
KEYS = ("sweep", "entity", "project")
COST = ("perf/tokens_per_s", "perf/mfu", "train/grad_norm", "train/lr")


def workspace(name: str, entity: str, project: str) -> Any:
    """Build the study's workspace without saving it. Raises ConfigError for an unknown study."""
    plan = Plan(name, "smoke")
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as ws

    def lines(metrics: tuple[str, ...]) -> list[Any]:
        return [panels.LinePlot(title=quantity(metric).label, x="tokens", y=[metric]) for metric in metrics]

    bars: list[Any] = [panels.BarPlot(title=quantity(metric).label, metrics=[metric]) for metric in plan.file.judged]
    sections = [
        ws.Section(name="At the end, by arm", panels=bars, is_open=True),
        ws.Section(name="Loss", panels=lines(LOSSES), is_open=True),
        ws.Section(name="Balance", panels=lines(tuple(f"routing/{name}" for name in BALANCE)), is_open=True),
        ws.Section(name="Speed and optimiser", panels=lines(COST), is_open=False),
    ]
    runs = ws.RunsetSettings(filters=f"Config('study') = '{plan.name}'", groupby=[ws.Config("arm")])
    return ws.Workspace(
        entity=entity, project=project, name=f"{plan.name}: arms", sections=sections, runset_settings=runs
    )


def main(arguments: list[str]) -> int:
    """Save the workspace and print its URL; return the exit status, 2 for an invalid request."""
    if any(word in ("-h", "--help") for word in arguments):
        print(usage(__doc__))
        return 0
    try:
        given = _given(arguments)
        made = workspace(given["sweep"], given.get("entity", "ENTITY"), given.get("project", "dsv2"))
        if "entity" in given:
            print(_save(made))
        else:
            print(json.dumps(json.loads(made._to_model().model_dump_json(by_alias=True)), indent=1))
    except (ConfigError, OSError) as error:
        return refuse(error)
    except ModuleNotFoundError as error:
        complain(f"error: {error}; pip install 'dsv2[wandb]'")
        return 2
    return 0


def _given(arguments: list[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for word in arguments:
        key, _, value = word.partition("=")
        if key not in KEYS:
            raise ConfigError(key, value, one_of(key, KEYS))
        if not value or key in given:
            raise ConfigError(key, value, "one value, after the equals sign")
        given[key] = value
    if "sweep" not in given:
        raise ConfigError("sweep", None, f"name a study, as in sweep=balance_losses; there are {', '.join(studies())}")
    return given


def _save(made: Any) -> str:
    """Save a workspace and return its URL. Raises ConfigError if W&B refuses, as without a key."""
    import wandb

    try:
        return str(made.save().url)
    except wandb.Error as error:
        raise ConfigError("entity", made.entity, f"one whose projects you may change; {described(error)}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
