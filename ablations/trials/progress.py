"""The progress of a study's trials, read from the files they write."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.trials.trials import Trial
from dsv2.storage.rundir import METRICS, RESULT, read_result

if TYPE_CHECKING:
    import pandas as pd

SURE_SECONDS = 5.0  # of progress, before a rate is shown


class StudyProgress:
    """Tracks tokens trained out of the total, their rate, and how many trials have ended."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self.trials = list(trials)
        self.totals = {trial.folder: trial.run.trainer.batches().total_tokens for trial in trials}
        self.seen = {folder: tokens_logged(folder) for folder in self.totals}  # from earlier attempts
        self.from_tokens, self.from_time = sum(self.seen.values()), time.monotonic()  # start of the rate's window
        self.moving = False  # workers take seconds to start; the rate counts from their first step
        self.errors: dict[Path, str | None] = {}  # of every trial that has ended; None: it finished

    def look(self) -> None:
        """Update the progress from the trials' files."""
        for folder, total in self.totals.items():
            if self.seen[folder] < total:
                self.seen[folder] = min(tokens_logged(folder), total)
        done = sum(self.seen.values())
        if done < self.from_tokens or (done > self.from_tokens and not self.moving):
            self.moving = done > self.from_tokens  # fewer: a resumed trial went back to its checkpoint
            self.from_tokens, self.from_time = done, time.monotonic()

    def look_for_ends(self, since: float) -> None:
        """Note trials that have finished, or failed after `since` (compared with a file's mtime)."""
        for trial in self.trials:
            if trial.folder in self.errors or not (path := trial.folder / RESULT).is_file():
                continue
            result = read_result(trial.folder)
            if result.get("status") == "finished":
                self.end(trial, None)
            elif result and path.stat().st_mtime > since:
                self.end(trial, f"{result.get('status')}: {result.get('error')}")

    def end(self, trial: Trial, error: str | None) -> None:
        """Note that a trial has ended; its error is None if it finished."""
        self.errors[trial.folder] = error
        if error is None:
            self.seen[trial.folder] = self.totals[trial.folder]
        else:
            self.totals[trial.folder] = self.seen[trial.folder]

    @property
    def share(self) -> float:
        """Share of the tokens trained, from 0 to 1."""
        return sum(self.seen.values()) / max(sum(self.totals.values()), 1)

    def count(self) -> str:
        """Format how many trials have finished and failed."""
        failed = sum(error is not None for error in self.errors.values())
        line = f"{len(self.errors) - failed} of {len(self.trials)} trials finished"
        return f"{line}, {failed} failed" if failed else line

    def rate(self) -> str:
        """Format the share of tokens trained and, after `SURE_SECONDS`, tokens per second and time left."""
        done, total = sum(self.seen.values()), max(sum(self.totals.values()), 1)
        share = f"{done / total:.0%} of {total / 1e6:,.1f}M tokens"
        seconds = time.monotonic() - self.from_time
        if not self.moving or seconds < SURE_SECONDS or done <= self.from_tokens:
            return share
        rate = (done - self.from_tokens) / seconds
        minutes, seconds_left = divmod(round((total - done) / rate), 60)
        left = (
            f"{minutes // 60}:{minutes % 60:02d}:{seconds_left:02d}"
            if minutes >= 60
            else f"{minutes}:{seconds_left:02d}"
        )
        return f"{share}, {rate:,.0f} tok/s, {left} left"


class Curves:
    """Metrics of running trials; each `look` reads what was written since the last."""

    def __init__(self, trials: Sequence[Trial], metrics: Sequence[str]) -> None:
        self.trials, self.metrics = list(trials), tuple(metrics)
        self.read: dict[Path, tuple[int, int]] = {}  # inode, bytes read
        self.rows: dict[Path, list[dict[str, Any]]] = {}

    def look(self) -> bool:
        """Read new lines; return True if there were any."""
        return sum(map(self._look, self.trials)) > 0

    def _look(self, trial: Trial) -> bool:
        try:
            with (trial.folder / METRICS).open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                known, start = self.read.get(trial.folder, (inode, 0))
                if known != inode:  # a resumed trial replaced its file
                    start = 0
                file.seek(start)
                new = file.read()
        except FileNotFoundError:
            return False
        complete = new[: new.rfind(b"\n") + 1]
        if start == 0:
            self.rows[trial.folder] = []
        self.read[trial.folder] = (inode, start + len(complete))
        for line in complete.splitlines():
            self._keep(trial, line)
        return bool(complete)

    def _keep(self, trial: Trial, line: bytes) -> None:
        try:
            row = json.loads(line)
            keys = {"arm": trial.arm, "seed": trial.seed, "step": row["step"], "tokens": row["tokens"]}
        except (ValueError, KeyError, TypeError):
            return  # a damaged line; only the display is affected
        values = [keys | {"metric": name, "value": row[name]} for name in self.metrics if name in row]
        self.rows[trial.folder] += values

    def table(self) -> "pd.DataFrame":
        """Return a table like that of `Results.metrics()`: columns arm, seed, step, tokens, metric, value."""
        import pandas as pd

        rows = [row for trial in self.trials for row in self.rows.get(trial.folder, [])]
        return pd.DataFrame(rows, columns=["arm", "seed", "step", "tokens", "metric", "value"])


def tokens_logged(folder: Path) -> int:
    """Return the tokens in the last complete line of a trial's metrics; 0 if there is none."""
    path = folder / METRICS
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            lines = file.read().split(b"\n")[:-1]
        return int(json.loads(lines[-1])["tokens"]) if lines else 0
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return 0  # only the display is affected
