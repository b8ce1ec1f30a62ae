"""What a run says about itself besides its loss: the state of the GPU, the norms per layer, and the machine.

Built in notebooks 12 and 16.
"""

import contextlib
import importlib.metadata
import platform
import re
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gpt2.system.machine import GIB, available_cores, processes_here, processor_name
from gpt2.system.processes import Processes


def gpu_state(device: torch.device) -> dict[str, float]:
    """`utilisation %` and `temperature C`, as the driver measures them, and `memory GiB` in use; {} without a GPU.

    The first two need the package nvidia-ml-py and a whole GPU: the driver does not measure them for a MIG slice.
    """
    if device.type != "cuda":
        return {}
    state: dict[str, float] = {}
    with contextlib.suppress(Exception):  # a missing package or permission raises many kinds of error
        state["utilisation %"] = torch.cuda.utilization(device)
        state["temperature C"] = torch.cuda.temperature(device)
    free, total = torch.cuda.mem_get_info(device)
    return state | {"memory GiB": (total - free) / GIB}


class LayerNorms:
    """The L2 norms of every layer (wte, wpe, h.0 …, ln_f) in one step: of gradient, weights, and the change of weights.

    Make it in all processes, after backward and unscaling and before clipping; it copies the weights. Norms are of
    whole layers, also if FSDP2 has divided the parameters over the processes. The norm of a missing gradient is 0.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module):
        self.layers: dict[str, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in model.named_parameters():
            self.layers[layer_of(name)].append(parameter)
        self.before = [[p.detach().clone() for p in layer] for layer in self.layers.values()]
        self.norms = [
            (_norm([p.grad for p in layer if p.grad is not None], layer[0].device), _norm(layer, layer[0].device))
            for layer in self.layers.values()
        ]

    @torch.no_grad()
    def after_step(self) -> dict[str, tuple[float, float, float]]:
        """The norms (gradient, weight, step) per layer, after the optimiser's step."""
        steps = [
            _norm([p - old for p, old in zip(layer, before, strict=True)], layer[0].device)
            for layer, before in zip(self.layers.values(), self.before, strict=True)
        ]
        self.before.clear()  # as large as the weights
        rows = [torch.stack([*pair, step]) for pair, step in zip(self.norms, steps, strict=True)]
        table = torch.stack(rows).tolist()  # waits for the device only once
        return {
            name: (gradient, weight, step) for name, (gradient, weight, step) in zip(self.layers, table, strict=True)
        }


def _norm(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    norm = nn.utils.get_total_norm(tensors)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).to(device, torch.float32)


def layer_of(parameter_name: str) -> str:
    """`transformer.h.3.attn.c_attn.weight` → `h.3`."""
    parts = parameter_name.removeprefix("transformer.").split(".")
    return ".".join(parts[: 2 if parts[1:] and parts[1].isdigit() else 1])


def describe_machine(processes: Processes) -> dict[str, str]:
    """What a run ran on, for the header of its log: hardware, driver, software, and the commit of this code.

    What can't be found out is left out.
    """
    device = processes.device
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        name, driver = f"{torch.cuda.get_device_name(device)}, {total / GIB:.0f} GiB", _driver()
    else:
        name, driver = f"{processor_name()}, {available_cores()} cores", ""
    lines = {
        "hardware": f"{processes.world_size} process(es), {processes_here()} on this machine, on {name}",
        "driver": driver,
        "software": _versions(),
        "code": _commit(Path(__file__).resolve().parents[2]),
    }
    return {name: text for name, text in lines.items() if text}


def _versions() -> str:
    versions = {"Python": platform.python_version(), "torch": torch.__version__, "CUDA": torch.version.cuda}
    if torch.cuda.is_available():
        versions["cuDNN"] = str(torch.backends.cudnn.version())
    for package in ("triton", "tyro", "tiktoken", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version) + f", {platform.platform()}"


def _driver() -> str:
    """The version of NVIDIA's driver, as its kernel module gives it."""
    with contextlib.suppress(OSError):
        if match := re.search(r"\s(\d{3}\.[\d.]+)\s", Path("/proc/driver/nvidia/version").read_text()):
            return f"NVIDIA {match[1]}"
    return ""


def _commit(root: Path) -> str:
    """The commit of the repository at `root`, with `+changes` if files differ from it; empty if it is no repository."""
    if not (root / ".git").exists():  # installed, perhaps into a folder of another repository
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+changes"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return (
            "commit " + subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        )
    return ""
