"""Logger for Weights & Biases: an offline run in ``wandb/`` of a run."""

import os
import secrets
import shutil
from collections.abc import Mapping

import numpy as np

from dinomed.environment import environment_variable
from dinomed.loggers.logger import LoggedRun, RunLogger

_PROJECT = "dinomed"


class WandbFiles(RunLogger):
    """Metrics, settings and images as an offline run; ``wandb sync FOLDER`` uploads it if the user wants that.

    It is always offline, whatever the environment says. Code, git, console, requirements, names of user and machine,
    and measures of the machine are switched off. Entity (often the name of the user), tags, notes, group and job type
    of the environment and of wandb's settings files are left out. An offline run cannot be continued, so a resumed run
    writes its files again from ``log.jsonl``, under the same identifier.
    """

    def __init__(self, run: LoggedRun) -> None:
        folder = run.folder / "wandb"
        old_runs = sorted(folder.glob("offline-run-*-*"))
        old_files = [path for old_run in old_runs for path in old_run.glob("run-*.wandb")] if run.first_step else []
        identifier = old_files[-1].stem.removeprefix("run-") if old_files else secrets.token_hex(4)
        folder.mkdir(parents=True, exist_ok=True)
        with environment_variable("WANDB_ERROR_REPORTING", "false"):  # read at the import and by wandb's service
            import wandb

            settings = wandb.Settings(
                mode="offline", silent=True, console="off", symlink=False, use_dot_wandb=False, save_code=False,
                disable_code=True, disable_git=True, disable_job_creation=True, x_disable_meta=True,
                x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False, host="", username="",
                email="", program="", x_executable="", entity="", run_tags=(), run_notes="", run_group="",
                run_job_type="", resume="never", launch=False,
            )  # fmt: skip
            self._run = wandb.init(
                dir=str(run.folder), id=identifier, project=_PROJECT, name=run.name, config=dict(run.parameters),
                settings=settings, reinit="create_new", sync_tensorboard=False,
            )  # fmt: skip
        for old_run in old_runs:
            if str(old_run.resolve()) != os.path.realpath(self._run.settings.sync_dir):
                shutil.rmtree(old_run, ignore_errors=True)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log finite values of a step; steps never decrease."""
        self._run.log(dict(values), step=step)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Log an image (rows, columns, 3), uint8."""
        import wandb

        self._run.log({name: wandb.Image(pixels)}, step=step)

    def close(self) -> None:
        """Finish the run, and remove its logs of the library, which name folders of this machine."""
        folder = self._run.settings.sync_dir
        self._run.finish()
        for name in ("logs", "tmp"):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
