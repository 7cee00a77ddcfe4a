"""Starting the processes of a run on this machine, as `torchrun` does."""

import logging
import os
import sys
import uuid
from collections.abc import Sequence

from dsv2.printing import complain


def launch(words: Sequence[str], size: int) -> int:
    """Run `python -m dsv2.train` with the overrides `words` in `size` processes that know of each other.

    When one ends with an error or is killed, the others are stopped. Returns the exit status: 0, that of the process
    that failed first, or 1 if it was killed. Nothing is ever started again.
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
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "dsv2.train", *words)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode
        name = failure.signal_name()
        complain(f"error: process {rank} of {size} was killed by {name}; run the same command again to resume")
        return 1
    except SignalException as error:
        return 128 + error.sigval
    return 0
