"""What a study will take, before it is started: time, memory, disk, tokens, device hours and their price.

Time on this machine rests on earlier runs on it, else on a measured matmul; on other hardware, on its peak.
"""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from ablations.trials.trials import Study
from dsv2.accounting.account import account
from dsv2.accounting.memory import WIDE, training_memory
from dsv2.accounting.throughput import USABLE
from dsv2.config import ConfigError
from dsv2.distributed.outlook import HARDWARE, Need, Span, together
from dsv2.storage.checkpoints import KEEP
from dsv2.storage.rundir import CONFIG, read_result, runs_root
from dsv2.storage.runs import list_runs
from dsv2.storage.values import read_yaml
from dsv2.training.machine import cpu_name, peak_flops
from dsv2.training.run import Run, from_plain

HERE = "here"
KINDS = (HERE, *HARDWARE)
PROCESS = 0.45e9  # bytes of a training process without its model: Python, torch, corpus (measured, CPU)
ROW, PLACE = 800, 8  # bytes of a logged row of metrics, and of a logged expert's load
MOST_READ = 24  # runs, the newest ones
NEAR = 4.0  # factor in FLOPs per token within which runs are taken for alike
UNLIKE = 2.0  # factor by which the range of other runs is widened
FEWEST = 3  # runs whose spread is taken for the uncertainty
MEASURED = Span(0.15, 0.3, 0.8)  # share of a matmul's rate: from small models to the largest of `benchmarks.bench`


class Speed(NamedTuple):
    """Model FLOPs per second of one worker, and what that rests on."""

    rate: Span
    source: str


class Outlook(NamedTuple):
    """A study's needs on some hardware."""

    hardware: str
    speed: Speed
    trial: Need  # of the trial that takes longest
    left: Need  # all trials that have not finished
    trials: int  # how many these are
    workers: int  # trials at a time
    devices: int  # that the states of the largest model and the activations of one sequence need; 1 for a CPU

    @property
    def study_seconds(self) -> Span:
        """How long the study takes, with `workers` trials at a time."""
        return self.left.seconds(self.speed.rate).times(1 / min(self.workers, max(self.trials, 1)))


def outlook(study: Study, hardware: str, workers: int) -> Outlook:
    """Estimate what the unfinished trials of a study will take. Raises ConfigError for unknown hardware."""
    if hardware not in KINDS:
        raise ConfigError("hardware", hardware, f"one of {', '.join(KINDS)}")
    needs = {(arm, probe): need_of(study.run_of(arm, probe)) for arm in study.arms for probe in (None, *study.probes)}
    todo = [trial for trial in study.trials if read_result(trial.folder).get("status") != "finished"]
    left = [needs[trial.arm, trial.probe] for trial in todo]
    longest = max(needs.values(), key=lambda need: need.flops)
    if hardware == HERE:
        largest = max(study.configs.values(), key=lambda run: account(run.model).total_params)
        speed = speed_here(longest.flops / max(longest.tokens, 1), largest.trainer.precision, workers)
        return Outlook(HERE, speed, longest, together(left), len(left), workers, 1)
    kind = HARDWARE[hardware]
    states = max(_memory(run, batch=1) for run in study.configs.values())
    devices = -(-states // (USABLE * kind.memory))
    return Outlook(hardware, Speed(kind.rate(), kind.source), longest, together(left), len(left), 1, int(devices))


def need_of(run: Run.Config) -> Need:
    """Return what one run takes."""
    result, batches = account(run.model, context=run.trainer.sequence_length), run.trainer.batches()
    memory = _memory(run, batch=max(batches.sizes, default=1))
    moe = run.model.moe
    logged = batches.num_steps // run.trainer.log_every
    places = 0 if moe is None else len(run.model.moe_layers) * moe.num_experts
    disk = KEEP * 3 * WIDE * result.total_params + logged * (ROW + places * PLACE)
    tokens = batches.total_tokens
    return Need(tokens, float(result.flops_per_token) * tokens, memory + PROCESS, disk)


def _memory(run: Run.Config, *, batch: int) -> float:
    """Return the bytes of weights, gradients, moments and the activations of `batch` sequences."""
    settings = run.trainer
    return training_memory(
        run.model,
        batch=batch,
        length=settings.sequence_length,
        precision=settings.precision,
        recompute_layers=settings.recompute_layers,
    ).total


# ---- speed on this machine -------------------------------------------------------------------------------------------


def speed_here(flops_per_token: float, precision: str, workers: int = 1) -> Speed:
    """Return the rate of runs on this machine, of those with about as many FLOPs per token where there are any.

    Without runs, a matmul is measured, which takes 0.2 s, and shared by the workers.
    """
    runs = runs_here()
    if not runs:
        import torch

        rate = peak_flops(torch.device("cuda" if torch.cuda.is_available() else "cpu"), precision)
        source = f"no run on this machine yet; a matmul runs at {rate / 1e9:,.0f} GFLOP/s"
        return Speed(MEASURED.times(rate / workers), source)
    alike = [rate for flops, rate in runs if 1 / NEAR <= flops / flops_per_token <= NEAR]
    rates = sorted(alike or [rate for _, rate in runs])
    wider = 1.0 if len(alike) >= FEWEST else UNLIKE
    likely = statistics.median(rates)
    kind = "runs" if alike else "runs of models of other sizes"
    source = f"{len(rates)} earlier {kind} on this machine"
    return Speed(Span(rates[0] / wider, likely, rates[-1] * wider), source)


def runs_here() -> list[tuple[float, float]]:
    """Return FLOPs per token and FLOPs per second of the newest runs that finished on this kind of CPU or GPU."""
    if not runs_root().is_dir():
        return []
    names = _device_names()
    done = [run for run in list_runs() if run.status == "finished" and run.tokens and run.seconds]
    rates: list[tuple[float, float]] = []
    for run in sorted(done, key=lambda run: run.ended, reverse=True):
        if len(rates) == MOST_READ:
            break
        if read_result(run.folder).get("provenance", {}).get("device") in names:
            config = from_plain(read_yaml(run.folder / CONFIG))
            flops = account(config.model, context=config.trainer.sequence_length).flops_per_token
            rates.append((float(flops), float(flops) * (run.tokens or 0) / (run.seconds or 1.0)))
    return rates


def _device_names() -> Sequence[str]:
    import torch

    return [cpu_name(), *([torch.cuda.get_device_name()] if torch.cuda.is_available() else [])]
