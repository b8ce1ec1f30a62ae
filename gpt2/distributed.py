"""Processes, devices, precision, and the wrappers that make a model train on several of them.

Holds:    `Processes`, `start`, `stop`, `joined`, `recompute`, `wrap`, `accumulating`, `clip_gradients`,
          `whole_model`, `choose_precision`, `autocast`, `choose_compile`, `choose_micro_batch`, `wait`.
Built in: notebooks 07 and 09.
Imports:  torch, gpt2.errors, gpt2.machine.

Every function works alike in one plain process and in many under torchrun.
"""

import contextlib
import functools
import gc
import math
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from gpt2.errors import UserError
from gpt2.machine import available_cores, free_memory, keep_freed_memory, multiplies_bf16

Whole = TypeVar("Whole", bound=nn.Module)
BACKENDS = {"cuda": "nccl", "cpu": "gloo"}
SPARE_MEMORY = 0.1  # of a device, left free by `choose_micro_batch`


@dataclass(frozen=True)
class Processes:
    """This process among the others of a run."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes logs and files."""
        return self.rank == 0

    def sum(self, *values: float | Tensor) -> list[float]:
        """Each value added up over all processes, in float64 where the device has it."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def mean(self, *values: float | Tensor) -> list[float]:
        """Each value's mean over all processes."""
        return [total / self.world_size for total in self.sum(*values)]

    def min(self, *values: float | Tensor) -> list[float]:
        """Each value's minimum over all processes."""
        return self._reduce(values, dist.ReduceOp.MIN)

    def share(self, value: Any) -> Any:
        """What the first process has; it must be picklable."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, device=self.device if self.device.type == "cuda" else None)
        return values[0]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()

    def _reduce(self, values: tuple[float | Tensor, ...], operation: dist.ReduceOp.RedOpType) -> list[float]:
        if self.world_size == 1:
            return [float(value) for value in values]
        device = self.device if self.device.type == "cuda" else torch.device("cpu")
        together = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=device) for v in values])
        dist.all_reduce(together, operation)
        return together.tolist()


def choose_device(wanted: str = "auto", world_size: int = 1) -> torch.device:
    """The fastest device type of this machine, or the wanted one. Raises UserError where it isn't there.

    MPS is for one process: there is one GPU, and no backend that reduces over it.
    """
    mps = torch.backends.mps.is_available() and world_size == 1
    there = {"cuda": torch.cuda.is_available(), "mps": mps, "cpu": True}
    if wanted == "auto":
        wanted = next(name for name, available in there.items() if available)
    if not there[wanted]:
        have = ", ".join(name for name, available in there.items() if available)
        raise UserError(f"--system.device {wanted} is not to be had by {world_size} process(es) here; there is {have}")
    return torch.device(wanted)


def start(device: str = "auto") -> Processes:
    """Join the processes that torchrun started, or be the only one; pick this process's device.

    Raises UserError where the device isn't there, or a machine has more processes than GPUs.
    """
    rank, local_rank, world_size = (int(os.environ.get(n, d)) for n, d in _TORCHRUN)
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    chosen = choose_device(device, world_size)
    if chosen.type == "cuda":
        if local_world_size > torch.cuda.device_count():
            raise UserError(
                f"{local_world_size} processes are more than the {torch.cuda.device_count()} GPU(s) of this machine; "
                f"start torchrun with --nproc_per_node={torch.cuda.device_count()}, or add --system.device cpu"
            )
        chosen = torch.device("cuda", local_rank)
        torch.cuda.set_device(chosen)
    elif chosen.type == "cpu":  # torchrun allows each process one core; share all of them instead
        torch.set_num_threads(max(1, available_cores() // local_world_size))
        keep_freed_memory()
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group(
            BACKENDS[chosen.type],
            store=_fresh_store(rank, world_size),
            rank=rank,
            world_size=world_size,
            device_id=chosen if chosen.type == "cuda" else None,
        )
    return Processes(rank, local_rank, world_size, chosen)


def _fresh_store(rank: int, world_size: int) -> dist.Store:
    """The store in which processes find each other, with names of its own for every restart by torchrun.

    torchrun (2.13) starts workers again with the same store, in which the addresses of the dead still stand; new
    workers that read these before they are overwritten try to reach the dead, and wait for ever.
    """
    store, *_ = next(rendezvous("env://", rank, world_size))
    return dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


_TORCHRUN = (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"))


def stop() -> None:
    """Leave the process group, if there is one.

    A group ends its threads when nothing refers to it; one that outlives this, in the reference cycles of a wrapped
    model, may still be at work while Python shuts down, and abort a process that has done all it should.
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


@contextlib.contextmanager
def joined(device: str = "auto") -> Iterator[Processes]:
    """`start` at the beginning of a command and `stop` at its end, however it ends."""
    try:
        yield start(device)
    finally:
        stop()


def recompute(model: nn.Module, what: str) -> None:
    """Compute every `mlp`, or every `block`, of the model again in backward instead of keeping what is inside it.

    Chen et al., "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174).
    """
    for block in _blocks(model) if what != "none" else ():
        part = block.get_submodule("mlp") if what == "mlp" else block
        part.__class__ = _recomputing(type(part))  # type: ignore[arg-type]


@functools.cache
def _recomputing(kind: type[nn.Module]) -> type[nn.Module]:
    """`kind` with another forward. All layers share the class, so that one compiled graph serves them all."""

    class Recomputing(kind):  # type: ignore[valid-type, misc]
        def forward(self, *inputs: Any) -> Tensor:
            return checkpoint(super().forward, *inputs, use_reentrant=False, preserve_rng_state=False)

    return Recomputing


def wrap(model: nn.Module, processes: Processes, compiled: bool = False, zero: int = 0) -> nn.Module:
    """The model as it is trained: compiled, and on several processes with what `zero` says divided over them.

    0: nothing, every process holds everything and gradients are averaged (DistributedDataParallel).
    1: the optimiser's state and the fp32 weights that it updates; weights are gathered, and gradients averaged, once
       a step. 2: gradients as well, after every micro-step. 3: weights as well, block by block when they are needed.
    Stages: Rajbhandari et al., "ZeRO" (arXiv 1910.02054). 1 to 3 are FSDP2, which makes the optimiser see only this
    process's part of every parameter. Weights travel in fp32: every stage computes the very same numbers.
    """
    if zero == 0 or processes.world_size == 1:
        fast: nn.Module = torch.compile(model, dynamic=False) if compiled else model  # type: ignore[assignment]
        if processes.world_size == 1:
            return fast
        devices = [processes.local_rank] if processes.device.type == "cuda" else None
        return DistributedDataParallel(fast, device_ids=devices, gradient_as_bucket_view=True)
    mesh = init_device_mesh(processes.device.type, (processes.world_size,))
    for block in _blocks(model):
        if compiled:  # a block at a time: between them, weights are gathered
            block.compile(dynamic=False)
        fully_shard(block, mesh=mesh, reshard_after_forward=zero == 3)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    return model


def _blocks(model: nn.Module) -> list[nn.Module]:
    return list(model.get_submodule("transformer.h").children())


def accumulating(model: nn.Module, last: bool, zero: int = 0) -> contextlib.AbstractContextManager[None]:
    """Around the forward *and* backward of a micro-step: gradients are summed over processes only after the last.

    DDP reads the switch in forward too; one that is set between forward and backward loses other ranks' gradients.
    ZeRO 2 and 3 sum after every micro-step, since no process has room for whole gradients.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last or zero >= 2)
        model.set_reshard_after_backward(last or zero == 3)
    if last or not isinstance(model, DistributedDataParallel):
        return contextlib.nullcontext()
    return model.no_sync()


def clip_gradients(model: nn.Module, largest: float) -> Tensor:
    """Scale all gradients so that their global norm, over every process's part, is at most `largest` (0: leave them).

    Returns the norm before clipping, the same in every process.
    """
    norm = nn.utils.clip_grad_norm_(model.parameters(), largest or math.inf)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def whole_model(model: Whole, make: Callable[[], Whole]) -> Whole:
    """`model` itself, or where its weights are divided a copy of it with all of them, into what `make` makes.

    All processes call this together; each gets a copy of 4 bytes a parameter, and can then evaluate on its own.
    """
    if not isinstance(model, FSDPModule):
        return model
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    with torch.device("meta"):
        copy = make()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    copy.load_state_dict(
        {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in weights.items()}, assign=True
    )
    return copy.requires_grad_(False)


def choose_precision(device: torch.device, wanted: str = "auto") -> str:
    """`bf16`, `fp16`, `tf32` or `fp32`: as wanted, or what the hardware multiplies fastest without losing the run.

    bf16 on CUDA from Ampere on and on CPUs with instructions for it; fp16 (with a gradient scaler) on older CUDA;
    else fp32.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        return "bf16" if multiplies_bf16(device) else "fp32"
    return "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Matrix products in `precision`; weights, sums and losses stay fp32. tf32 is fp32 with shorter factors on CUDA."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def wait(device: torch.device) -> None:
    """Return when the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def choose_compile(device: torch.device, wanted: str, flops: float) -> bool:
    """Whether to compile: as wanted, or where the tools are there and `flops` of the whole run are worth a minute.

    Compiling takes half a minute to two; it gains a fifth on a CPU and half on a GPU.
    """
    if wanted != "auto":
        return wanted == "on"
    if device.type == "cuda":
        return can_compile() and flops > 1e16 and torch.cuda.get_device_capability(device) >= (7, 0)
    return device.type == "cpu" and can_compile() and flops > 1e13


def can_compile() -> bool:
    """Whether torch.compile finds what it needs: Linux, a C++ compiler, and Python's header files."""
    header = Path(sysconfig.get_path("include"), "Python.h")
    return sys.platform == "linux" and shutil.which(os.environ.get("CXX", "g++")) is not None and header.exists()


def choose_micro_batch(
    attempt: Callable[[int], None], sequences: int, sequence_bytes: int, processes: Processes
) -> int:
    """The largest power of two dividing a process's `sequences` a step with which `attempt(micro_batch)` fits.

    On CUDA each size is tried, and must leave a tenth of the memory free; elsewhere `sequence_bytes`, an estimate of
    what one sequence takes, is compared with half of the free memory. All processes agree on the smallest answer.
    Raises UserError where not even one sequence fits.
    """
    best = 0
    candidates = [2**i for i in range(20) if sequences % 2**i == 0]
    if processes.device.type == "cuda":
        for size in candidates:
            if not _fits(attempt, size, processes.device):
                break
            best = size
    else:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        best = max((c for c in candidates if c * sequence_bytes <= free_memory() / 2 / local), default=0)
    best = int(processes.min(best)[0])
    if not best:
        raise UserError("not even one sequence fits into memory; choose a smaller --model.init or --model.block-size")
    return best


def _fits(attempt: Callable[[int], None], size: int, device: torch.device) -> bool:
    torch._dynamo.reset()  # a compiled part has a graph a size, and after a few would run as it is written
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        attempt(size)
        torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    return torch.cuda.max_memory_reserved(device) < (1 - SPARE_MEMORY) * total
