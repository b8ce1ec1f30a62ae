"""How fast a model trains on this machine, by micro-batch: the throughput that decides the steps of a Languini run.

Built in notebook 17.

As in Languini's throughput sweep (Stanić et al., arXiv 2309.11197, section 4), the micro-batch is doubled until memory
runs out, and the fastest one counts. A step is forward, backward and the optimiser on one micro-batch of random tokens.
"""

import csv
import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import nn

from gpt2.config.checks import resolve
from gpt2.config.presets import PRESETS
from gpt2.config.run import Compile, Device, Precision, Run
from gpt2.optim.optimizer import make_optimizer
from gpt2.planning.fits import setup_of
from gpt2.planning.flops import flops_per_token
from gpt2.planning.gpus import peak_flops
from gpt2.planning.memory import memory
from gpt2.system.devices import autocast, free_device_memory, set_matmul_precision, synchronize
from gpt2.system.errors import UserError
from gpt2.system.machine import GIB
from gpt2.system.processes import Processes, process_group
from gpt2.training.distributed import recompute, wrap
from gpt2.training.execution import Execution, choose_execution
from gpt2.training.setup import choose_config, make_model

WARMUP, MEASURED = 3, 7  # steps
SLOWER = 0.95  # two rates in a row below this fraction of the best: larger micro-batches will not be faster


@dataclass(frozen=True)
class Options:
    """How fast a preset's model trains on this machine, by micro-batch: a table on the terminal and in a CSV."""

    name: Annotated[str, tyro.conf.Positional]
    """A preset of train_gpt2.py."""
    out: Path = Path("sweep.csv")
    compile: Compile = "auto"
    """auto: as the trainer chooses for the preset's whole run."""
    precision: Precision = "auto"
    device: Device = "auto"


@dataclass(frozen=True)
class Row:
    """The speed with one micro-batch, in sequences. `mfu` is model FLOPs utilisation, 0 to 1.

    `memory_gib` is the peak so far: of the GPU's memory, or without a GPU that of the whole process.
    """

    model: str
    micro_batch: int
    precision: str
    compiled: bool
    tokens_per_second: float
    memory_gib: float
    mfu: float

    def __str__(self) -> str:
        return (
            f"micro-batch {self.micro_batch:4d} | {self.tokens_per_second:12,.1f} tokens/s | "
            f"{self.memory_gib:6.2f} GiB | MFU {self.mfu:5.1%}"
        )


def sweep(name: str, run: Run, processes: Processes) -> Iterator[Row]:
    """One row per micro-batch: 1, 2, 4 and so on, up to the sequences of a step or until two in a row are slower.

    The sweep also ends when a GPU's memory runs out, or elsewhere before the estimate exceeds half of the free memory.
    Raises UserError if not even one sequence fits.
    """
    device, run = processes.device, replace(run, system=replace(run.system, micro_batch=1))
    config = choose_config(run, processes)
    sizes = [2**i for i in range((run.data.batch_tokens // config.block_size).bit_length())]
    if device.type != "cuda":
        setup, free = setup_of(run, config, processes), free_device_memory(device)
        needed = [memory(config, replace(setup, micro_batch=size)).total for size in sizes]
        sizes = [size for size, total in zip(sizes, needed, strict=True) if size == 1 or total <= free / 2]
    model = make_model(run, config, device)
    recompute(model, run.system.recompute)
    execution = choose_execution(run, model, processes)
    set_matmul_precision(execution.precision)
    trained = wrap(model, processes, execution.compiled)
    optimizer = make_optimizer(model, run.optim, run.system.weights, run.parts.normalised_weights)
    flops, peak, rates = flops_per_token(config), peak_flops(device, execution.precision)[0], []
    for size in sizes:
        torch._dynamo.reset()  # torch.compile keeps one graph per size, and falls back to eager mode after a few
        try:
            x, y = torch.randint(config.vocab_size, (2, size, config.block_size), device=device)
            seconds = _step_seconds(trained, optimizer, x, y, execution.precision)
        except torch.OutOfMemoryError:
            if size == 1:
                raise UserError(f"not one sequence of {name} fits into this GPU; choose a smaller preset") from None
            return
        rate, taken = x.numel() / seconds, _peak_memory(device) / GIB
        yield Row(name, size, execution.precision, execution.compiled, rate, taken, flops * rate / peak)
        rates.append(rate)
        if max(rates[-2:]) < SLOWER * max(rates):
            return


def _step_seconds(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, precision: str
) -> float:
    """The median seconds of a training step on one micro-batch, after a few steps that do not count."""
    seconds = []
    for _ in range(WARMUP + MEASURED):
        synchronize(x.device)
        started = time.perf_counter()
        with autocast(x.device, precision):
            loss = model(x, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize(x.device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[WARMUP:])


def _peak_memory(device: torch.device) -> float:
    """The most bytes so far: of the GPU's memory, or of the whole process; NaN on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return math.nan
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def write_rows(rows: Iterable[Row], out: Path) -> Iterator[Row]:
    """Write each row to the CSV `out` as soon as it is measured, and pass it on. Raises UserError if it can't."""
    try:
        with open(out, "w", newline="") as file:
            table = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)])
            table.writeheader()
            for row in rows:
                table.writerow(dataclasses.asdict(row))
                file.flush()
                yield row
    except OSError as error:
        raise UserError(f"can't write {out} ({error.strerror}); name another file with --out") from None


def main(options: Options) -> None:
    """Measure, print and write a row per micro-batch, then name the fastest. Raises UserError for what can't be."""
    if options.name not in PRESETS:
        raise UserError(f"unknown preset {options.name!r}; known: {', '.join(PRESETS)}")
    run = resolve(PRESETS[options.name][1])
    system = replace(run.system, compile=options.compile, precision=options.precision, device=options.device)
    run, rows = replace(run, system=system), []
    with process_group(options.device) as processes:
        for row in write_rows(sweep(options.name, run, processes), options.out):
            print(row)
            rows.append(row)
    best = max(rows, key=lambda row: row.tokens_per_second)
    print(f"best: {Execution(best.precision, best.compiled, best.micro_batch)}; wrote {options.out}")
    print(f"--languini.tokens-per-second {best.tokens_per_second:.0f}")
