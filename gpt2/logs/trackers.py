"""Trackers: TensorBoard and Weights & Biases, which show the numbers of a run as curves."""

import importlib.util
import secrets
from pathlib import Path
from typing import Any

from gpt2.logs.writer import Tracker
from gpt2.system.errors import UserError


class TensorBoard:
    """Files that TensorBoard shows: `tensorboard --logdir FOLDER`."""

    name = "tensorboard"

    def __init__(self, folder: Path, first: int = 0):
        """`first` is the step at which the run starts or resumes.

        What a killed run wrote about later steps is removed, so that no curve goes back. A validation *at* step
        `first`, which was made before the checkpoint, stays.
        """
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=first + 1 if first else None)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # so that nothing is lost if the run is killed; takes 0.2 ms

    def text(self, step: int, name: str, text: str) -> None:
        self.writer.add_text(name, text, step)

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run at Weights & Biases. With WANDB_MODE=offline it is written to `RUN/wandb`, for `wandb sync` later."""

    name = "wandb"

    def __init__(self, folder: Path, config: dict[str, Any], first: int = 0, project: str = "gpt2"):
        """`folder` is the run folder. If the run resumes (`first` > 0), the run at W&B resumes too, by `RUN/wandb_id`.

        Raises UserError if W&B can't be reached or does not know the user.
        """
        import wandb

        id_file = folder / "wandb_id"
        if not (first and id_file.exists()):
            id_file.write_text(secrets.token_hex(8) + "\n")
        try:
            self.run = wandb.init(
                project=project,
                dir=folder,
                id=id_file.read_text().strip(),
                name=folder.name,
                config=config,
                resume="allow" if first else None,
                # log.txt has what the terminal shows; a lost network must not keep GPUs waiting at the end
                settings=wandb.Settings(console="off", finish_timeout=300),
            )
        except wandb.Error as error:
            raise UserError(
                f"Weights & Biases can't be used ({' '.join(str(error).split())}); "
                "run wandb login, or set WANDB_MODE=offline, or leave --log.wandb out",
                everywhere=False,
            ) from None

    def log(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)  # W&B ignores steps before the latest one, which a resumed run repeats

    def text(self, step: int, name: str, text: str) -> None:
        self.run.summary[name] = text  # of the latest step only

    def close(self) -> None:
        self.run.finish()


def check_trackers(tensorboard: bool, wandb: bool) -> None:
    """Raise UserError if a requested tracker is not installed."""
    for name, requested in (("tensorboard", tensorboard), ("wandb", wandb)):
        if requested and importlib.util.find_spec(name) is None:
            raise UserError(f"--log.{name} needs the package {name}, which is not installed: pip install {name}")


def open_trackers(
    folder: Path, tensorboard: bool, wandb: bool, config: dict[str, Any], first: int = 0
) -> tuple[list[Tracker], dict[str, str]]:
    """The requested trackers of a run that starts or resumes at step `first`, and lines for the header of its log.

    The first process alone calls this. Raises UserError if a tracker can't be used. A run that resumes, perhaps
    unattended, goes on without a W&B that can't be reached, and a line of the header says so.
    """
    check_trackers(tensorboard, wandb)
    trackers: list[Tracker] = [TensorBoard(folder / "tensorboard", first)] if tensorboard else []
    notes = {}
    try:
        trackers += [WandB(folder, config, first)] if wandb else []
    except UserError as error:
        if not first:
            raise
        notes["wandb"] = f"given up, the run goes on without it ({error})"
    return trackers, notes
