"""Start of several training processes on this machine by torch's launcher, as `torchrun --standalone` does."""

import logging
import sys
import uuid
from collections.abc import Sequence

from dinomed.errors import DinomedError


def launch(count: int, arguments: Sequence[str]) -> None:
    """Run `dinomed ARGUMENTS` in a group of `count` processes, and wait for them.

    Raises:
        DinomedError: a process failed or was killed; the others were ended.
        SystemExit: with the exit code of a process that reported wrong usage or was stopped by a signal.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the error below replaces its report
    logging.getLogger("torch.distributed.launcher").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",  # reachable from this machine only
        run_id=uuid.uuid4().hex,
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "dinomed", *arguments)
    except SignalException as stopped:
        raise SystemExit(128 + stopped.sigval.value) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 1:
            raise SystemExit(failure.exitcode) from None
        cause = f"was killed ({failure.signal_name()})" if failure.exitcode < 0 else "failed (its message is above)"
        raise DinomedError(
            f"process {rank} of {count} {cause}, so the others were ended; continue from the last checkpoint with "
            "--resume"
        ) from None
