"""What a run tells about itself beside log.txt: trackers, the GPU, norms by layer, the peak that MFU is measured by.

Built in notebook 12.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gpt2.system.machine import GIB, available_cores, processor_name
from gpt2.system.processes import Processes


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
