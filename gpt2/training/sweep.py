"""How fast a model trains on this machine, by micro-batch: the throughput that decides a Languini run's steps.

Built in notebook 18.

As Languini's throughput sweep (Stanić et al., arXiv 2309.11197, section 4): double the micro-batch until memory ends,
and count on the fastest. A step is forward, backward and the optimiser on one micro-batch of random tokens.
"""

import csv
import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import nn

from gpt2.config.checks import resolve
from gpt2.config.presets import PRESETS
from gpt2.config.run import Run
from gpt2.formats.build import build, make_config
from gpt2.model import GPTConfig
from gpt2.optim.optimizer import make_optimizer
from gpt2.planning.fits import check_fits, setup_of
from gpt2.planning.flops import flops_per_token
from gpt2.planning.gpus import peak_flops
from gpt2.planning.memory import Setup, memory
from gpt2.system.devices import autocast, free_device_memory, set_matmul_precision, synchronize
from gpt2.system.errors import UserError
from gpt2.system.machine import GIB
from gpt2.system.processes import Processes, process_group
from gpt2.training.distributed import recompute, wrap

WARMUP, MEASURED = 3, 7  # steps
SLOWER = 0.95  # of the best, twice in a row: larger micro-batches won't be faster


@dataclass(frozen=True)
class Options:
    """How fast a preset's model trains on this machine, by micro-batch: a table on the terminal and in a CSV."""

    name: Annotated[str, tyro.conf.Positional]
    """A preset of train_gpt2.py."""
    out: Path = Path("sweep.csv")
    compile: Literal["auto", "on", "off"] = "auto"
    """auto: as the trainer chooses for the preset's whole run."""
    precision: Literal["auto", "bf16", "fp16", "tf32", "fp32"] = "auto"
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"


@dataclass(frozen=True)
class Row:
    """The speed with one micro-batch, in sequences. `memory_gib` is the most that was taken: of the GPU, or else by the
    whole process. `mfu` is model FLOPs utilisation, 0 to 1."""

    model: str
    micro_batch: int
    precision: str
    compiled: bool
    tokens_per_second: float
    memory_gib: float
    mfu: float


def sweep(name: str, run: Run, processes: Processes) -> Iterator[Row]:
    """One row per micro-batch. It is doubled, up to the sequences of a step, until two in a row are slower.

    Or until memory runs out: on a GPU, when it does; elsewhere, when the estimate exceeds half of the free memory.
    Raises UserError where not even one sequence fits.
    """
    config, device = make_config(run.model, run.parts), processes.device
    run = replace(run, system=replace(run.system, micro_batch=1))
    check_fits(run, config, processes)
    setup, free = setup_of(run, config, processes), free_device_memory(device)
    set_matmul_precision(setup.precision)
    torch.manual_seed(run.system.seed)
    raw = build(config).to(device, torch.float32 if setup.weights == "fp32" else torch.bfloat16)
    recompute(raw, setup.recompute)
    model = wrap(raw, processes, setup.compiled)
    optimizer = make_optimizer(raw, run.optim, setup.weights, run.parts.normalised_weights)
    flops, peak, rates = flops_per_token(config), peak_flops(device, setup.precision)[0], [0.0]
    for size in _sizes(config, setup, run.data.batch_tokens // config.block_size, device, free):
        torch._dynamo.reset()  # a graph a size; more than a few are given up as too many
        try:
            rate = _tokens_per_second(model, optimizer, config, size, setup.precision, device)
        except torch.OutOfMemoryError:
            if size == 1:
                raise UserError(f"not one sequence of {name} fits into this GPU; choose a smaller preset") from None
            return
        memory_gib = _memory_taken(device) / GIB
        yield Row(name, size, setup.precision, setup.compiled, rate, memory_gib, flops * rate / peak)
        rates.append(rate)
        if max(rates[-2:]) < SLOWER * max(rates):
            return


def _sizes(config: GPTConfig, setup: Setup, sequences: int, device: torch.device, free: float) -> Iterator[int]:
    """Micro-batches to try: powers of two up to the sequences of a step; on a CPU, those for which memory will do."""
    size = 1
    while size <= sequences:
        taken = memory(config, replace(setup, micro_batch=size)).total
        if size > 1 and device.type != "cuda" and taken > free / 2:
            return
        yield size
        size *= 2


def _tokens_per_second(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: GPTConfig,
    size: int,
    precision: str,
    device: torch.device,
) -> float:
    """Of training steps on `size` sequences; the median, after a few that don't count."""
    seconds = []
    for _ in range(WARMUP + MEASURED):
        x, y = torch.randint(config.vocab_size, (2, size, config.block_size), device=device)
        synchronize(device)
        started = time.perf_counter()
        with autocast(device, precision):
            loss = model(x, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return size * config.block_size / statistics.median(seconds[WARMUP:])


def _memory_taken(device: torch.device) -> float:
    """Bytes at the peak so far: of the GPU's memory, or the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def write_rows(rows: Iterator[Row], out: Path, show: Callable[[str], None]) -> list[Row]:
    """Write each row to the CSV `out` as soon as it is measured, and show it. Raises UserError where it can't be."""
    names = [field.name for field in dataclasses.fields(Row)]
    done = []
    try:
        with open(out, "w", newline="") as file:
            table = csv.DictWriter(file, names)
            table.writeheader()
            for row in rows:
                table.writerow(dataclasses.asdict(row))
                file.flush()
                show(
                    f"micro-batch {row.micro_batch:4d} | {row.tokens_per_second:12,.1f} tokens/s | "
                    f"{row.memory_gib:6.2f} GiB | MFU {row.mfu:5.1%}"
                )
                done.append(row)
    except OSError as error:
        raise UserError(f"can't write {out} ({error.strerror}); name another file with --out") from None
    return done


def main(options: Options) -> None:
    """Measure, show and write a row per micro-batch, and name the best. Raises UserError for what can't be."""
    if options.name not in PRESETS:
        raise UserError(f"unknown preset {options.name!r}; known: {', '.join(PRESETS)}")
    run = resolve(PRESETS[options.name][1])
    system = replace(run.system, compile=options.compile, precision=options.precision, device=options.device)
    run = replace(run, system=system)
    with process_group(options.device) as processes:
        rows = write_rows(sweep(options.name, run, processes), options.out, print)
    best = max(rows, key=lambda row: row.tokens_per_second)
    compiled = "compiled" if best.compiled else "not compiled"
    print(f"best: micro-batch {best.micro_batch}, {best.precision}, {compiled}; wrote {options.out}")
    print(f"--languini.tokens-per-second {best.tokens_per_second:.0f}")
