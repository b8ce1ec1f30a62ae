"""The device of a process: its choice, precision and compilation, and its free memory. Built in notebook 07."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import torch

from gpt2.system.errors import UserError
from gpt2.system.machine import free_memory, processes_here


def choose_device(wanted: str = "auto", world_size: int = 1) -> torch.device:
    """The fastest type of device that this machine has, or the wanted one. Raises UserError if it is not available.

    MPS serves one process only: a Mac has one GPU, and no backend reduces over it.
    """
    mps = torch.backends.mps.is_available() and world_size == 1
    available = [name for name, found in (("cuda", torch.cuda.is_available()), ("mps", mps), ("cpu", True)) if found]
    if wanted == "auto":
        if "cuda" not in available and torch.version.cuda and Path("/dev/nvidia0").exists():
            raise UserError(
                f"torch cannot use this machine's NVIDIA GPU: its driver may be older than CUDA {torch.version.cuda}; "
                "update it, or give --system.device cpu"
            )
        wanted = available[0]
    if wanted not in available:
        where = "on this machine" if world_size == 1 else f"to {world_size} processes on this machine"
        raise UserError(f"--system.device {wanted} is not available {where}; available: {', '.join(available)}")
    return torch.device(wanted)


def choose_precision(device: torch.device, wanted: str = "auto", weights: str = "fp32") -> str:
    """`bf16`, `fp16`, `tf32` or `fp32`: the wanted one, or the fastest that the hardware has and training tolerates.

    The fastest is bf16 on CUDA from Ampere on, and on CPUs with instructions for it (AMX, AVX-512); fp16 with a
    gradient scaler on older CUDA; fp32 elsewhere. Weights that are cast in use are always cast to bf16.
    """
    if weights == "bf16-cast":
        return "bf16"
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # with AVX-512 for bf16, a training step of the demo took 0.58 of its time in fp32 (compiled, AMD EPYC)
    has_bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if device.type == "cpu" and has_bf16 else "fp32"


def set_matmul_precision(precision: str) -> None:
    """Let fp32 products round their factors in tf32 runs; on a CPU, in 16-bit runs too.

    On a GPU, the fp32 products of a bf16 run are those that must be exact, such as a router's.
    """
    rounded = precision == "tf32" or (precision != "fp32" and not torch.cuda.is_available())
    torch.set_float32_matmul_precision("high" if rounded else "highest")


def set_attention_kernel(device: torch.device, kernel: str) -> None:
    """Let attention on a GPU use this kernel only, and the plain formula where it has no kernel. auto: all of them."""
    if device.type == "cuda":
        cuda = torch.backends.cuda
        cuda.enable_cudnn_sdp(kernel in ("auto", "cudnn"))
        cuda.enable_flash_sdp(kernel in ("auto", "flash"))
        cuda.enable_mem_efficient_sdp(kernel in ("auto", "efficient"))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Matrix products in `precision`; weights, sums and losses stay fp32. For fp32 and tf32 it changes nothing."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def choose_compile(device: torch.device, wanted: str, flops: float) -> bool:
    """Whether to compile: as wanted, or if the tools are there and a run of `flops` is long enough to gain time.

    Compiling takes half a minute to two minutes. It makes a step a fifth faster on a CPU, and 1.5 times as fast on a
    GPU.
    """
    if wanted != "auto":
        return wanted == "on"
    if device.type == "cuda":
        return can_compile() and flops > 1e16 and torch.cuda.get_device_capability(device) >= (7, 0)
    return device.type == "cpu" and can_compile() and flops > 1e13


def can_compile() -> bool:
    """Whether torch.compile has what it needs: Linux, a C++ compiler, and the header files of Python."""
    header = Path(sysconfig.get_path("include"), "Python.h")
    return sys.platform == "linux" and shutil.which(os.environ.get("CXX", "g++")) is not None and header.exists()


def synchronize(device: torch.device) -> None:
    """Return when the device has finished all work that was queued on it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def free_device_memory(device: torch.device) -> float:
    """Bytes that this process can allocate on its device; on a CPU, its share of the machine's free memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory() / processes_here()
