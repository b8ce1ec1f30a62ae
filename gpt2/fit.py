"""How a run fits this machine: its precision, compiled or not, its micro-batch; and what would fit where it does not.

Holds:    `Execution`, `choose_execution`, `find_micro_batch`, `run_flops`, `free_device_memory`, `setup_of`,
          `check_fits`.
Built in: notebook 07.
Imports:  torch, gpt2.build, gpt2.distributed, gpt2.errors, gpt2.flops, gpt2.loader, gpt2.machine, gpt2.memory,
          gpt2.model, gpt2.modern, gpt2.parts, gpt2.presets, gpt2.run.
"""

import itertools
import os
from dataclasses import dataclass, replace

import torch

from gpt2.build import make_config
from gpt2.distributed import Processes, autocast, choose_compile, choose_micro_batch, choose_precision
from gpt2.errors import UserError
from gpt2.flops import flops_per_token, published_parameters
from gpt2.loader import check_division
from gpt2.machine import free_memory
from gpt2.memory import RECOMPUTE, Setup, activation_bytes, is_fused, largest_micro_batch, memory
from gpt2.model import GPT, GPTConfig
from gpt2.modern import Modern
from gpt2.parts import Parts
from gpt2.presets import PRESETS
from gpt2.run import Run, complete

GIB = 2**30


@dataclass(frozen=True)
class Execution:
    """What a machine decides on; the numbers of a run do not depend on it, but for rounding."""

    precision: str
    compiled: bool
    micro_batch: int

    def __str__(self) -> str:
        compiled = "compiled" if self.compiled else "not compiled"
        return f"micro-batch {self.micro_batch}, {self.precision}, {compiled}"


def choose_execution(run: Run, model: GPT | Modern, config: GPTConfig, processes: Processes) -> Execution:
    """As the run asks for it, or as this machine does it fastest. Raises UserError where it can't be done."""
    precision = choose_precision(processes.device, run.system.precision)
    compiled = choose_compile(processes.device, run.system.compile, run_flops(run, config))
    micro_batch = run.system.micro_batch
    if micro_batch == "auto":
        micro_batch = find_micro_batch(run, model, config, precision, compiled, processes)
    return Execution(precision, compiled, micro_batch)


def run_flops(run: Run, config: GPTConfig) -> float:
    """Floating-point operations of the whole run."""
    return flops_per_token(config) * run.data.batch_tokens * run.schedule.steps


def find_micro_batch(
    run: Run, model: GPT | Modern, config: GPTConfig, precision: str, compiled: bool, processes: Processes
) -> int:
    """The largest micro-batch that fits, found by trying. Raises UserError where none divides a step."""
    block_size = config.block_size
    check_division(run.data.batch_tokens, block_size, 1, processes.world_size)

    def attempt(size: int) -> None:
        """Forward and backward, with as much memory taken beside it as optimiser, buckets and logits will need."""
        beside = 12 * model.num_params() // (processes.world_size if run.system.zero else 1)
        beside += 4 * size * block_size * config.padded_vocab_size if compiled else 0
        reserved = torch.empty(beside, dtype=torch.uint8, device=processes.device)
        x = torch.zeros(size, block_size, dtype=torch.long, device=processes.device)
        try:
            with autocast(processes.device, precision):
                loss = model(x, x)[1]
            loss.backward()
        finally:
            model.zero_grad(set_to_none=True)
            del reserved

    sequences = run.data.batch_tokens // block_size // processes.world_size
    return choose_micro_batch(attempt, sequences, activation_bytes(config, run.system.recompute), processes)


def free_device_memory(device: torch.device) -> float:
    """Bytes that this process can take on its device; on a CPU, its share of what all processes there can take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def check_fits(run: Run, config: GPTConfig, processes: Processes) -> None:
    """Raise UserError where a run needs more memory than there is, with what would fit; allocates nothing.

    What it needs is `gpt2.memory`'s estimate, at one sequence a micro-batch where the micro-batch is to be found.
    All processes call this together: they agree on the one with the least free memory.
    """
    free = processes.min(free_device_memory(processes.device))[0]
    if processes.device.type == "cuda":  # where running out of memory is explained when it happens
        run = replace(run, system=replace(run.system, micro_batch=1))
    setup = setup_of(run, config, processes)
    needed = memory(config, setup).total
    if needed > free:
        raise UserError(
            f"{published_parameters(config):,} parameters need {needed / GIB:.1f} GiB to be trained with a micro-batch "
            f"of {setup.micro_batch}, more than the {free / GIB:.1f} GiB that are free for each process; "
            f"{_what_fits(run, config, processes, free)}"
        )


def setup_of(run: Run, config: GPTConfig, processes: Processes) -> Setup:
    """What decides on memory, as the trainer will choose it."""
    device = processes.device
    size = 1 if run.system.micro_batch == "auto" else run.system.micro_batch
    return Setup(
        *(processes.world_size, run.system.zero, run.system.recompute),
        micro_batch=size,
        micro_steps=max(1, _sequences(run, config, processes) // size),
        precision=choose_precision(device, run.system.precision),
        compiled=choose_compile(device, run.system.compile, run_flops(run, config)),
        fused=is_fused(config, device, flex=not run.system.small_gpu),
        weights=run.system.weights,
        muon=run.optim.kind == "muon",
    )


def _sequences(run: Run, config: GPTConfig, processes: Processes) -> int:
    return max(1, run.data.batch_tokens // config.block_size // processes.world_size)


def _what_fits(run: Run, config: GPTConfig, processes: Processes, free: float) -> str:
    """The flags, or the preset, with which a run would fit, least change first."""
    setup, sequences = setup_of(run, config, processes), _sequences(run, config, processes)
    if size := largest_micro_batch(config, setup, sequences, free):
        return f"give --system.micro-batch {size}"
    stages = range(setup.zero, 4 if setup.gpus > 1 else setup.zero + 1)
    for recompute, zero in itertools.product(RECOMPUTE[RECOMPUTE.index(setup.recompute) :], stages):
        if size := largest_micro_batch(config, replace(setup, recompute=recompute, zero=zero), sequences, free):
            flags = {"zero": zero, "recompute": recompute, "micro_batch": size}
            changed = {k: v for k, v in flags.items() if getattr(run.system, k) not in (v, "auto")}
            return "give " + " ".join(f"--system.{k.replace('_', '-')} {v}" for k, v in changed.items())
    return _preset_that_fits(run, processes, free)


def _preset_that_fits(run: Run, processes: Processes, free: float) -> str:
    """The largest one of the same kind of parts, else the largest of all."""
    fitting = []
    for name, (_, preset) in PRESETS.items():
        other = complete(preset)
        other = replace(other, system=replace(other.system, micro_batch=1))
        config = make_config(other.model, other.parts)
        if memory(config, setup_of(other, config, processes)).total <= free:
            fitting.append((_kind(other.parts) == _kind(run.parts), published_parameters(config), name))
    if not fitting:
        return "no preset is small enough; free some memory"
    return f"try the preset {max(fitting)[2]}, the largest that fits"


def _kind(parts: Parts) -> tuple[str | bool, ...]:
    """What distinguishes families, whatever their sizes."""
    return parts.norm, parts.position, parts.mlp, parts.residual, parts.tied
