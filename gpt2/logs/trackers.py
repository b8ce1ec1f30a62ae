"""TODO."""

import importlib.metadata
import importlib.util
import secrets
from pathlib import Path
from typing import Any

from gpt2.logs.writer import Tracker
from gpt2.system.errors import UserError


class TensorBoard:
    """A run's values as TensorBoard files; `tensorboard --logdir FOLDER` shows them."""

    name = "tensorboard"

    def __init__(self, folder: Path, first: int = 0):
        """`first`: the step at which the run starts or goes on.

        What a killed run wrote after the checkpoint is taken back, so that no curve turns around. What was measured
        *at* step `first`, before the checkpoint, stays.
        """
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=first + 1 if first else None)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Values by name, measured at this step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # a killed run has told everything; this takes 0.2 ms

    def text(self, step: int, name: str, text: str) -> None:
        """A text, such as a sample."""
        self.writer.add_text(name, text, step)

    def close(self) -> None:
        """Write what is still in memory."""
        self.writer.close()


class WandB:
    """A run's values at Weights & Biases; WANDB_MODE=offline keeps them in `RUN/wandb`, for `wandb sync` later."""

    name = "wandb"

    def __init__(self, folder: Path, config: dict[str, Any], first: int = 0, project: str = "gpt2"):
        """`folder` is the run's, `first` the step at which it starts or goes on: the same W&B run then goes on.

        Its id is kept in `RUN/wandb_id`. Raises UserError where W&B can't be reached or doesn't know the user.
        """
        import wandb

        kept = folder / "wandb_id"
        if not (first and kept.exists()):
            kept.write_text(secrets.token_hex(8) + "\n")
        try:
            self.run = wandb.init(
                project=project,
                dir=folder,
                id=kept.read_text().strip(),
                name=folder.name,
                config=config,
                resume="allow" if first else None,
                # log.txt holds what the terminal shows; a network that is gone must not keep GPUs waiting at the end
                settings=wandb.Settings(console="off", finish_timeout=300),
            )
        except wandb.Error as error:
            raise UserError(
                f"Weights & Biases can't be used ({' '.join(str(error).split())}); "
                "run wandb login, or set WANDB_MODE=offline, or leave --log.wandb out",
                everywhere=False,
            ) from None

    def log(self, step: int, values: dict[str, float]) -> None:
        """Values by name, measured at this step; W&B passes over a step that it already has, with the same values."""
        self.run.log(values, step=step)

    def text(self, step: int, name: str, text: str) -> None:
        """A text, such as a sample, in the run's summary: the latest of that name."""
        self.run.summary[name] = text

    def close(self) -> None:
        """Send what is still waiting."""
        self.run.finish()


def check_trackers(tensorboard: bool, wandb: bool) -> None:
    """Raise UserError where a tracker that is asked for is not installed."""
    for name, wanted in (("tensorboard", tensorboard), ("wandb", wandb)):
        if wanted and importlib.util.find_spec(name) is None:
            raise UserError(f"--log.{name} needs the package {name}, which is not installed: pip install {name}")


def open_trackers(
    folder: Path, tensorboard: bool, wandb: bool, config: dict[str, Any], first: int = 0
) -> tuple[list[Tracker], dict[str, str]]:
    """The trackers that are asked for, in the run's folder, going on at step `first`; and lines for the log's header.

    Called by the first process alone. Raises UserError where one can't be had. A run that is resumed, perhaps at
    night by no one, goes on without one that can't be reached now: a line of the header says so.
    """
    check_trackers(tensorboard, wandb)
    trackers: list[Tracker] = [TensorBoard(folder / "tensorboard", first)] if tensorboard else []
    if not wandb:
        return trackers, {}
    try:
        return [*trackers, WandB(folder, config, first)], {}
    except UserError as error:
        if not first:
            raise
        return trackers, {"wandb": f"given up, the run goes on without it ({error})"}
