"""Several training processes on this machine, by torch's own launcher (what `torchrun --standalone` uses)."""

import logging
import sys
import uuid
from collections.abc import Sequence

from dinomed.errors import DinomedError


def launch(count: int, arguments: Sequence[str]) -> None:
    """Run `dinomed ARGUMENTS` in `count` processes that know of each other, and wait for them.

    Raises:
        DinomedError: one of them failed or was killed; the others were ended.
        SystemExit: with their code, where they said themselves why (wrong usage), or were asked to stop.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # ours is the one clear line
    logging.getLogger("torch.distributed.launcher").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",  # other machines see nothing of it
        run_id=uuid.uuid4().hex,
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "dinomed.apps.cli", *arguments)
    except SignalException as stopped:
        raise SystemExit(128 + stopped.sigval.value) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 1:
            raise SystemExit(failure.exitcode) from None
        how = f"was killed ({failure.signal_name()})" if failure.exitcode < 0 else "failed (its message is above)"
        raise DinomedError(
            f"process {rank} of {count} {how} and the others were ended; --resume goes on from the last checkpoint"
        ) from None
