"""Whether a run fits into memory, and what would fit where it does not; found without allocating anything."""

import itertools
from dataclasses import replace

from gpt2.config.checks import resolve
from gpt2.config.presets import PRESETS
from gpt2.config.run import Run
from gpt2.formats.build import make_config
from gpt2.model import GPTConfig
from gpt2.modern.parts import Parts
from gpt2.planning.flops import published_parameters, run_flops
from gpt2.planning.memory import RECOMPUTE, Setup, is_fused, largest_micro_batch, memory
from gpt2.system.devices import choose_compile, choose_precision, free_device_memory
from gpt2.system.errors import UserError
from gpt2.system.machine import GIB
from gpt2.system.processes import Processes


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
        other = resolve(preset)
        other = replace(other, system=replace(other.system, micro_batch=1))
        config = make_config(other.model, other.parts)
        if memory(config, setup_of(other, config, processes)).total <= free:
            fitting.append((_family(other.parts) == _family(run.parts), published_parameters(config), name))
    if not fitting:
        return "no preset is small enough; free some memory"
    return f"try the preset {max(fitting)[2]}, the largest that fits"


def _family(parts: Parts) -> tuple[str | bool, ...]:
    """What distinguishes families, whatever their sizes."""
    return parts.norm, parts.position, parts.mlp, parts.residual, parts.tied
