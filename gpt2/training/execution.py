"""How a run is executed on this machine: its precision, whether it is compiled, and its micro-batch.

The numbers of a run do not depend on these, except for rounding. Built in notebook 07.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from gpt2.config.run import Run
from gpt2.data.loader import check_division
from gpt2.formats.build import trained_config
from gpt2.model import GPT
from gpt2.modern.model import Modern
from gpt2.planning.fits import fit, setup_of
from gpt2.planning.flops import run_flops
from gpt2.planning.memory import SPARE_MEMORY, VALUE_BYTES, activation_bytes
from gpt2.system.devices import autocast, choose_compile, choose_precision, free_device_memory
from gpt2.system.errors import UserError
from gpt2.system.machine import free_memory, processes_here
from gpt2.system.processes import Processes


@dataclass(frozen=True)
class Execution:
    """The settings that depend on the machine."""

    precision: str
    compiled: bool
    micro_batch: int


def check_precision(run: Run, device: torch.device) -> None:
    """Raise UserError where fp16, or its gradient scaler, does not go with the run's weights."""
    precision, weights = choose_precision(device, run.system.precision, run.system.weights), run.system.weights
    if weights != "fp32" and precision == "fp16":
        raise UserError(f"--system.weights {weights} does not go with fp16; give --system.weights fp32")
    if weights == "bf16-cast" and run.system.precision not in ("auto", "bf16"):
        raise UserError(f"--system.weights {weights} computes in bf16; leave --system.precision out")
    if weights == "bf16-cast" and choose_precision(device) == "fp16":
        raise UserError(f"this GPU has no bf16 for --system.weights {weights}; give --system.small-gpu")


def choose_execution(run: Run, model: GPT | Modern, processes: Processes) -> Execution:
    """What the run asks for, or what is fastest on this machine. All processes call this together.

    Raises UserError where no micro-batch fits.
    """
    config, device, wanted = trained_config(run.model, model.config), processes.device, run.system
    precision = choose_precision(device, wanted.precision, wanted.weights)
    compiled = choose_compile(device, wanted.compile, run_flops(run, config))
    if wanted.micro_batch != "auto":
        return Execution(precision, compiled, wanted.micro_batch)
    check_division(run.data.batch_tokens, config.block_size, 1, processes.world_size)

    def attempt(size: int) -> None:
        """Forward and backward, while as much memory is reserved as optimiser, buckets and logits will take."""
        others = 12 * model.num_params() // (processes.world_size if wanted.zero else 1)
        others += 4 * model.num_params() if run.log.norms_every else 0  # the weights before a step
        # compiled, all logits exist at once, and their gradient takes their place
        others += VALUE_BYTES[precision] * size * config.block_size * config.padded_vocab_size if compiled else 0
        reserved = torch.empty(others, dtype=torch.uint8, device=device)
        x = torch.zeros(size, config.block_size, dtype=torch.long, device=device)
        try:
            with autocast(device, precision):
                loss = model(x, x)
            loss.backward()
        finally:
            model.zero_grad(set_to_none=True)
            del reserved

    sequences = run.data.batch_tokens // config.block_size // processes.world_size
    if device.type == "cuda":
        planned = fit(config, setup_of(run, config, processes), sequences, free_device_memory(device)).micro_batch
    else:  # half of the free memory, by an upper estimate
        planned = int(free_memory() / 2 / processes_here() / activation_bytes(config, wanted.recompute))
    return Execution(precision, compiled, choose_micro_batch(attempt, sequences, planned, processes))


def choose_micro_batch(attempt: Callable[[int], None], sequences: int, planned: int, processes: Processes) -> int:
    """The largest power of two that divides a process's `sequences` per step and with which `attempt(size)` fits.

    `planned` is the size that should fit. On CUDA the search starts from it: sizes are tried, and must leave a tenth of
    the memory free. Elsewhere nothing is tried. All processes agree on the smallest answer. Raises UserError where not
    even one sequence fits.
    """
    candidates = [2**i for i in range(20) if sequences % 2**i == 0]
    best = max((size for size in candidates if size <= planned), default=0)
    if processes.device.type == "cuda":
        best = max(1, best)
        if _fits(attempt, best, processes.device):
            larger = [size for size in candidates if size > best]
            best = max(itertools.takewhile(lambda size: _fits(attempt, size, processes.device), larger), default=best)
        else:
            smaller = [size for size in reversed(candidates) if size < best]
            best = next((size for size in smaller if _fits(attempt, size, processes.device)), 0)
    best = int(processes.min(best)[0])
    if not best:
        raise UserError("not even one sequence fits into memory; choose a smaller --model.init or --model.block-size")
    return best


def _fits(attempt: Callable[[int], None], size: int, device: torch.device) -> bool:
    torch._dynamo.reset()  # torch.compile keeps one graph per size, and falls back to eager mode after a few
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


@contextlib.contextmanager
def explain_out_of_memory(micro_batch: int) -> Iterator[None]:
    """Raise UserError where the GPU runs out of memory, which may happen to one process alone."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(
            f"a micro-batch of {micro_batch} does not fit into this GPU; give a smaller --system.micro-batch",
            everywhere=False,
        ) from None
