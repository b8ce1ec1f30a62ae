"""What a run tells about itself beside log.txt: trackers, the GPU, norms by layer, the peak that MFU is measured by.

Holds:    `TensorBoard`, `WandB`, `check_trackers`, `open_trackers`, `gpu_state`, `layer_norms`, `peak_flops`,
          `describe_machine`.
Built in: notebook 12.
Imports:  torch, gpt2.distributed, gpt2.errors, gpt2.flops, gpt2.hardware, gpt2.logs, gpt2.machine;
          tensorboard and wandb where they are asked for.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import secrets
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gpt2.distributed import Processes
from gpt2.errors import UserError
from gpt2.flops import matmul_rate
from gpt2.hardware import find_hardware
from gpt2.logs import Tracker
from gpt2.machine import available_cores, processor_name

GIB = 2**30


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


def gpu_state(device: torch.device) -> dict[str, float]:
    """`utilisation %` and `temperature C`, as the driver measures them, and `memory GiB` in use; {} without a GPU.

    The first two need the package nvidia-ml-py, and a driver that tells (a slice of a GPU has neither).
    """
    if device.type != "cuda":
        return {}
    state: dict[str, float] = {}
    with contextlib.suppress(Exception):  # without the package, or the driver's permission: many kinds of error
        state["utilisation %"] = torch.cuda.utilization(device)
        state["temperature C"] = torch.cuda.temperature(device)
    free, total = torch.cuda.mem_get_info(device)
    return state | {"memory GiB": (total - free) / GIB}


def layer_norms(model: nn.Module) -> dict[str, tuple[float, float]]:
    """The L2 norms of every layer's (gradient, weight): wte, wpe, h.0 …, ln_f. 0 where there is no gradient.

    Of whole layers, also where each process holds a part of every parameter (FSDP2); all processes call it together.
    Gradients are taken as they are: call it after backward (and unscaling) and before clipping.
    """
    layers: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        layers.setdefault(layer_of(name), []).append(parameter)
    norms = []
    for parameters in layers.values():
        norms.append(_norm([p.grad for p in parameters if p.grad is not None], parameters[0]))
        norms.append(_norm([p.detach() for p in parameters], parameters[0]))
    values = torch.stack(norms).tolist()  # the one wait for the device
    return dict(zip(layers, zip(values[::2], values[1::2], strict=True), strict=True))


def layer_of(parameter_name: str) -> str:
    """`transformer.h.3.attn.c_attn.weight` → `h.3`, whatever wraps the model."""
    parts = [p for p in parameter_name.split(".") if p not in ("module", "_orig_mod", "transformer")]
    return ".".join(parts[: 2 if parts[1:] and parts[1].isdigit() else 1])


def _norm(tensors: list[Tensor], like: Tensor) -> Tensor:
    norm = nn.utils.get_total_norm(tensors) if tensors else torch.zeros((), device=like.device)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def peak_flops(device: torch.device, precision: str) -> tuple[float, str]:
    """FLOP/s of this device at best in `bf16`, `fp16`, `tf32` or `fp32`, and where the number is from.

    A known GPU's is its data sheet's; another device's is measured, in less than a second, in every process at once
    (so that each knows its share of the cores).
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = find_hardware(name)
        if known and (peak := known.peak(precision)):
            return peak, f"{name}, {precision}, {peak / 1e12:g} TFLOP/s ({known.source})"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    rough = matmul_rate(device, dtype, size=256, repeats=3)
    size = next((n for n in (2048, 1024, 512) if 8 * 2 * n**3 / rough < 0.8), 256)  # 3 products to warm up, and 5
    peak = matmul_rate(device, dtype, size=size, repeats=5)
    return peak, f"{precision}, {peak / 1e12:.3g} TFLOP/s (measured, {size}³ matrix product)"


def describe_machine(processes: Processes) -> dict[str, str]:
    """What a run ran on, for the top of its log: software, hardware, driver, and the commit of this code.

    What can't be found out is left out.
    """
    device = processes.device
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        name = f"{torch.cuda.get_device_name(device)}, {total / GIB:.0f} GiB"
    else:
        name = f"{processor_name()}, {available_cores()} cores"
    here = os.environ.get("LOCAL_WORLD_SIZE", "1")
    found = {
        "hardware": f"{processes.world_size} process(es), {here} on this machine, on {name}",
        "driver": _driver() if device.type == "cuda" else "",
        "software": _versions(),
        "code": _commit(Path(__file__).resolve().parent.parent),
    }
    return {name: value for name, value in found.items() if value}


def _versions() -> str:
    versions = {"Python": platform.python_version(), "torch": str(torch.__version__)}
    if torch.version.cuda:
        versions["CUDA"] = torch.version.cuda
    for package in ("triton", "tyro", "tiktoken"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    versions["numpy"] = np.__version__
    return ", ".join(f"{name} {version}" for name, version in versions.items()) + f", {platform.platform()}"


def _driver() -> str:
    """NVIDIA's, as its kernel module gives it."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return ""
    found = re.search(r"\s(\d{3}\.[\d.]+)\s", text)
    return f"NVIDIA {found[1]}" if found else ""


def _commit(root: Path) -> str:
    """The commit of the repository at `root`, with `+changes` where files differ from it; empty where there is none."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout

    try:
        prefix, commit = git("rev-parse", "--show-prefix", "--short=12", "HEAD").split("\n")[:2]
        if prefix:  # installed into a folder of some other repository
            return ""
        return f"commit {commit}" + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""
