"""Whether a run fits into memory, and what would fit if it does not. Nothing is allocated to find out.

Built in notebook 13.
"""

import itertools
from dataclasses import replace

from gpt2.config.checks import resolve
from gpt2.config.presets import PRESETS
from gpt2.config.run import Run
from gpt2.formats.build import make_config
from gpt2.model import GPTConfig
from gpt2.modern.parts import Parts
from gpt2.planning.flops import published_parameters, run_flops
from gpt2.planning.memory import RECOMPUTE, Setup, is_fused, memory
from gpt2.system.devices import choose_compile, choose_precision, free_device_memory
from gpt2.system.errors import UserError
from gpt2.system.machine import GIB
from gpt2.system.processes import Processes


def check_fits(run: Run, config: GPTConfig, processes: Processes) -> None:
    """Raise UserError, with what would fit, if a run needs more memory than is free.

    The need is the estimate of `gpt2.planning.memory`, at one sequence per micro-batch on a GPU and where the trainer
    chooses the micro-batch. All processes call this together and agree on the smallest free memory.
    """
    free = processes.min(free_device_memory(processes.device))[0]
    if processes.device.type == "cuda":  # a larger micro-batch that does not fit is explained when memory runs out
        run = replace(run, system=replace(run.system, micro_batch=1))
    setup = setup_of(run, config, processes)
    needed = memory(config, setup).total
    if needed <= free:
        return
    fitting = least_change(config, setup, _sequences(run, config, processes), free)
    advice = f"give {flags(setup, fitting, '--system.')}" if fitting else _preset_that_fits(run, processes, free)
    raise UserError(
        f"{published_parameters(config):,} parameters need {needed / GIB:.1f} GiB to be trained with a micro-batch "
        f"of {setup.micro_batch}, more than the {free / GIB:.1f} GiB that are free for each process; {advice}"
    )


def setup_of(run: Run, config: GPTConfig, processes: Processes) -> Setup:
    """The setup of a run, as the trainer will choose it; one sequence per micro-batch if that is still to be found."""
    device, system = processes.device, run.system
    micro_batch = 1 if system.micro_batch == "auto" else system.micro_batch
    return Setup(
        gpus=processes.world_size,
        zero=system.zero,
        recompute=system.recompute,
        micro_batch=micro_batch,
        micro_steps=max(1, _sequences(run, config, processes) // micro_batch),
        precision=choose_precision(device, system.precision, system.weights),
        compiled=choose_compile(device, system.compile, run_flops(run, config)),
        fused=is_fused(config, device, flex=not system.small_gpu),
        weights=system.weights,
        muon=run.optim.kind == "muon",
    )


def _sequences(run: Run, config: GPTConfig, processes: Processes) -> int:
    """Sequences of one process per optimiser step."""
    return max(1, run.data.batch_tokens // config.block_size // processes.world_size)


def fit(config: GPTConfig, setup: Setup, sequences: int, budget: float) -> Setup:
    """The setup with the largest micro-batch that takes at most `budget` bytes, or 0 if not even one sequence fits.

    A micro-batch is a power of two that divides the `sequences` of a process per optimiser step.
    """
    for size in (2**i for i in reversed(range(sequences.bit_length())) if sequences % 2**i == 0):
        other = replace(setup, micro_batch=size, micro_steps=sequences // size)
        if memory(config, other).total <= budget:
            return other
    return replace(setup, micro_batch=0)


def least_change(config: GPTConfig, setup: Setup, sequences: int, budget: float) -> Setup | None:
    """The setup that fits with the least change: micro-batch, then ZeRO stage, then recomputation. None: none fits."""
    stages = range(setup.zero, 4 if setup.gpus > 1 else setup.zero + 1)
    for recompute, zero in itertools.product(RECOMPUTE[RECOMPUTE.index(setup.recompute) :], stages):
        other = fit(config, replace(setup, recompute=recompute, zero=zero), sequences, budget)
        if other.micro_batch:
            return other
    return None


def flags(before: Setup, after: Setup, prefix: str = "--") -> str:
    """The flags that lead from one setup to the other."""
    names = [k for k in ("gpus", "zero", "recompute", "micro_batch") if getattr(before, k) != getattr(after, k)]
    return " ".join(f"{prefix}{name.replace('_', '-')} {getattr(after, name)}" for name in names)


def _preset_that_fits(run: Run, processes: Processes, free: float) -> str:
    """Advice to take the largest preset of the same family that fits, or else the largest of all."""
    fitting = []
    for name, (_, preset) in PRESETS.items():
        other = resolve(preset)
        other = replace(other, system=replace(other.system, micro_batch=1))
        config = make_config(other.model, other.parts)
        if memory(config, setup_of(other, config, processes)).total <= free:
            fitting.append((_family(other.parts) == _family(run.parts), published_parameters(config), name))
    if not fitting:
        return "no preset is small enough; free some memory"
    return f"try the preset {max(fitting)[2]}, the largest that fits"


def _family(parts: Parts) -> tuple[str | bool, ...]:
    """What distinguishes the families of presets, whatever their sizes."""
    return parts.norm, parts.position, parts.mlp, parts.residual, parts.tied
