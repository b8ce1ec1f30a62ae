"""The processes of a run, which torchrun starts: the rank and device of this one, and reductions over all of them.

Built in notebooks 09 and 14.

Every function works in one process and in many.
"""

import contextlib
import gc
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from gpt2.system.devices import choose_device
from gpt2.system.errors import UserError
from gpt2.system.machine import available_cores, keep_freed_memory, processes_here

BACKENDS = {"cuda": "nccl", "cpu": "gloo"}


@dataclass(frozen=True)
class Processes:
    """This process among the others of a run, and its device."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes the log and the files."""
        return self.rank == 0

    def sum(self, *values: float | Tensor) -> list[float]:
        """The sum of each value over all processes, in float64."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def mean(self, *values: float | Tensor) -> list[float]:
        """The mean of each value over all processes."""
        return [total / self.world_size for total in self.sum(*values)]

    def min(self, *values: float | Tensor) -> list[float]:
        """The minimum of each value over all processes."""
        return self._reduce(values, dist.ReduceOp.MIN)

    def broadcast(self, value: Any) -> Any:
        """The value that the first process has; it must be picklable."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def _reduce(self, values: tuple[float | Tensor, ...], operation: dist.ReduceOp.RedOpType) -> list[float]:
        if self.world_size == 1:
            return [float(value) for value in values]
        together = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=self.device) for v in values])
        dist.all_reduce(together, operation)
        return together.tolist()


def balance(costs: Sequence[float], world_size: int) -> list[int]:
    """For each of `costs`, the process that takes it, so that all processes have about the same sum.

    The largest cost is given away first, each to the process that has least (Graham, 1969).
    """
    sums = [0.0] * world_size
    owners = [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owners[i] = sums.index(min(sums))
        sums[owners[i]] += costs[i]
    return owners


@contextlib.contextmanager
def process_group(wanted: str = "auto") -> Iterator[Processes]:
    """Join the processes that torchrun started, or be the only one, until the block ends; take a device.

    Raises UserError where the wanted device is not available, or a machine has more processes than GPUs.
    """
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    device = _prepare_device(choose_device(wanted, world_size), local_rank)
    if world_size > 1:
        # torchrun (2.13) restarts workers with the same store, which still holds the addresses of the dead ones. New
        # workers that read these would wait for the dead forever, so each restart gets keys of its own.
        store, *_ = next(rendezvous("env://", rank, world_size))
        store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        gpu = device if device.type == "cuda" else None
        dist.init_process_group(BACKENDS[device.type], store=store, rank=rank, world_size=world_size, device_id=gpu)
    try:
        yield Processes(rank, local_rank, world_size, device)
    finally:
        gc.unfreeze()  # see train_gpt2.loop
        if world_size > 1:
            # A group ends its threads when nothing refers to it. One that lives on in the reference cycles of a wrapped
            # model may still be at work while Python shuts down, and abort a process that has succeeded.
            gc.collect()
            dist.destroy_process_group()


def _prepare_device(device: torch.device, local_rank: int) -> torch.device:
    """This process's GPU, or on a CPU its share of the cores."""
    if device.type == "cuda":
        gpus = torch.cuda.device_count()
        if processes_here() > gpus:
            raise UserError(
                f"{processes_here()} processes are more than the {gpus} GPU(s) of this machine; start torchrun with "
                f"--nproc_per_node={gpus}, or add --system.device cpu"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    elif device.type == "cpu":
        # torchrun allows each of several processes one core; divide all of them instead. For a single process,
        # OMP_NUM_THREADS is the user's choice.
        if processes_here() > 1 or "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, available_cores() // processes_here()))
        keep_freed_memory()
    return device
