"""Starting the processes of a run on this machine, as `torchrun` does."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence

from dsv2.training.processes import PeerLost

LOST = 75  # exit status of a process that was started here and lost contact with the others, which is for us to say
_NAME = "dsv2-"  # how the names of our groups of processes begin


def launched() -> bool:
    """Whether this process is one of those that `launch` starts."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "").startswith(_NAME)


def launch(words: Sequence[str], size: int) -> int:
    """Run `python -m dsv2.train` with the overrides `words` in `size` processes that know of each other.

    When one ends with an error or is killed, the others are stopped. Returns the exit status: 0, that of the process
    that failed first. Raises PeerLost if it was killed or heard nothing of the others. Nothing is ever started again.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // size, 1)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it prints tables of exit codes
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=size,
        run_id=_NAME + uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "dsv2.train", *words)
    except ChildFailedError as error:
        failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
        for _, failure in failures:
            if failure.exitcode > 0 and failure.exitcode != LOST:  # it has said why
                return failure.exitcode
        killed = [item for item in failures if item[1].exitcode < 0]
        killed.sort(key=lambda item: item[1].exitcode == -signal.SIGTERM)  # which the launcher sends to the others
        rank, failure = (killed or failures)[0]
        what = f"was killed by {failure.signal_name()}" if killed else "lost contact with the others"
        raise PeerLost(f"process {rank} of {size} {what}") from None
    except SignalException as error:
        return 128 + error.sigval
    return 0
