"""`python -m ablations.wandb_workspace sweep=NAME [entity=...] [project=dsv2]`: create a W&B workspace for a study.

Runs are filtered to the study and grouped by arm, so that seeds are shown as a mean with its range. There are panels
for losses, balance, speed and every judged metric. Saving needs W&B's server and a key (`wandb login`); without
`entity=` the workspace is printed as JSON, offline.
"""

import json
import sys
from typing import Any

from dsv2.config import ConfigError
from dsv2.metrics import quantity
from dsv2.printing import complain
from dsv2.study.plan import Plan

LOSSES = ("val/loss", "train/loss", "val/accuracy")
BALANCE = ("max_violation", "device_max_violation", "received_max_violation", "entropy", "dead_experts", "overflow")
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
    given = dict(word.split("=", 1) for word in arguments if "=" in word)
    try:
        if unknown := sorted(set(given) - {"sweep", "entity", "project"}):
            raise ConfigError(unknown[0], given[unknown[0]], "unknown key; valid keys are sweep, entity, project")
        if "sweep" not in given:
            raise ConfigError("sweep", None, "name a study, as in sweep=balance_losses")
        made = workspace(given["sweep"], given.get("entity", "ENTITY"), given.get("project", "dsv2"))
    except ConfigError as error:
        complain(f"error: {error}")
        return 2
    except ModuleNotFoundError as error:
        complain(f"error: {error}; pip install 'dsv2[wandb]'")
        return 2
    if "entity" in given:
        print(made.save().url)
    else:
        print(json.dumps(json.loads(made._to_model().model_dump_json(by_alias=True)), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
