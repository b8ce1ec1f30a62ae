"""The code that torch.compile writes for a GPU, and what it costs, without that GPU.

    python benchmarks/lowering.py gpt2-124m                                    an H200, the preset's layers
    python benchmarks/lowering.py speedrun --card h100 --layers 2 --micro-batch 64 --kernels
    python benchmarks/lowering.py --peer ../build-nanogpt        the model of a clone, in the size of gpt2-124m

The model's forward, loss and backward are compiled on tensors that have shapes and no data (`fake_cuda.py`). The table
counts the kernels, their launches, and the bytes that they read and write. It also counts the launches of the
optimiser, and the graphs that are compiled again after the first step, by an evaluation, samples or a second step. The
program needs g++ and triton, and takes about three seconds per layer. Nothing runs. The predicted times are those of
one GPU, without what the host does: matrix products, attention and the optimiser take what `gpt2 plan` says, and all
other kernels take the time that the bytes counted need. The plan's own speed, from bytes per layer that were recorded
earlier, stands beside the prediction.
"""

from fake_cuda import install  # isort: skip: before torch

import contextlib
import json
import logging
import math
import os
import re
import sys
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from annotated_types import Ge
from fake_compile import Lowered, lower
from fake_training import CUDA
from peers import Peer, Size
from torch import nn

from gpt2.config.checks import resolve
from gpt2.config.presets import PRESETS
from gpt2.config.run import Run
from gpt2.formats.build import build_empty, make_config
from gpt2.model import GPTConfig
from gpt2.planning.flops import flops_per_token
from gpt2.planning.gpus import HARDWARE
from gpt2.planning.memory import Setup
from gpt2.planning.step import memory_rate, step_time
from gpt2.system.devices import choose_precision
from gpt2.system.errors import UserError, run_command
from gpt2.system.ranges import check_ranges
from gpt2.training.distributed import cast_in_use, multiply_in_fp8, recompute


@dataclass(frozen=True)
class Options:
    """Compile a preset for a GPU that is not there, and count what its step would do."""

    preset: Annotated[str, tyro.conf.Positional] = "gpt2-124m"
    peer: Path | None = None
    """A clone of build-nanogpt or nanoGPT: lower its model instead, in the preset's size and as its script runs it."""
    card: str = "h200"
    """h200, h100, a100, rtx-3090 or rtx-4090."""
    layers: Annotated[int | None, Ge(1)] = None
    """Layers to compile [the preset's]."""
    micro_batch: Annotated[int, Ge(1)] = 64
    """Sequences at a time."""
    kernels: bool = False
    """Compile every kernel too, for its registers and shared memory, and list the ones that move the most bytes."""
    json: bool = False
    """Print one JSON object instead of a table."""
    folder: Path | None = None
    """Where to write the code of both graphs [nowhere]."""


def make_model(run: Run, config: GPTConfig) -> nn.Module:
    """The model of a run before it is wrapped, without memory for its weights."""
    model: nn.Module = build_empty(config)
    model.to(torch.float32 if run.system.weights == "fp32" else torch.bfloat16)
    if run.system.weights == "bf16-cast":
        cast_in_use(model)
    if run.system.fp8:
        multiply_in_fp8(model, CUDA)
    recompute(model, run.system.recompute)
    return model


def make_peer_model(path: Path, config: GPTConfig) -> nn.Module:
    """The model of a clone in this size, its vocabulary padded as by its script. UserError for another folder."""
    size = Size(config.n_layer, config.n_head, config.n_embd, config.padded_vocab_size, config.block_size, batch=1)
    try:
        peer = Peer(path)
    except FileNotFoundError as error:
        raise UserError(f"--peer {error}") from None
    peer.set_matmul_precision()
    with torch.device("meta"), contextlib.redirect_stdout(sys.stderr):  # nanoGPT prints its size
        return peer.make_model(size)


def report(options: Options, run: Run, config: GPTConfig, lowered: Lowered) -> dict[str, Any]:
    """All figures, by name."""
    figures: dict[str, Any] = {
        "model": options.preset if options.peer is None else str(options.peer),
        "card": options.card,
        "layers": config.n_layer,
        "micro_batch": options.micro_batch,
        "graphs": lowered.graphs,
        "graph_breaks": lowered.graph_breaks,
        "recompilations": lowered.recompilations,
        "kernels": len(lowered.kernels),
        "launches": lowered.launches,
        "library_calls": lowered.library_calls,
        "optimizer_launches": lowered.optimizer_launches,
        "gigabytes": round(lowered.gigabytes, 2),
        "saved_gigabytes": round(lowered.saved_gigabytes, 2),
    }
    if options.kernels:
        with tempfile.TemporaryDirectory() as folder:
            resources = {kernel.name: kernel.compile(Path(folder)) for kernel in lowered.kernels}
        figures["registers"] = max(used.registers for used in resources.values())
        figures["shared_bytes"] = max(used.shared for used in resources.values())
        figures["narrow_loads"] = [name for name, used in resources.items() if used.narrow_loads]
    figures["cosines"] = [kernel.name for kernel in lowered.kernels if re.search(r"\.(cos|sin)\(", kernel.source)]
    figures |= predict(options, run, config, lowered.gigabytes)
    figures["compiled_in_s"] = round(lowered.seconds, 1)
    return {name: value for name, value in figures.items() if value is not None}


def predict(options: Options, run: Run, config: GPTConfig, gigabytes: float) -> dict[str, Any]:
    """Milliseconds of a step of one micro-batch, tokens per second, and the fraction of peak (PaLM count of FLOPs)."""
    setup = Setup(
        micro_batch=options.micro_batch,
        recompute=run.system.recompute,
        compiled=True,
        weights=run.system.weights,
        muon=run.optim.kind == "muon",
    )
    card, tokens = HARDWARE[options.card], options.micro_batch * config.block_size
    planned = step_time(config, setup, card, tokens)
    seconds = {
        "products": planned.products,
        "attention": planned.attention,
        "other_kernels": gigabytes * 1e9 / memory_rate(card),
        "optimizer": planned.optimizer,
    }
    speed = tokens / sum(seconds.values())
    return {
        "predicted_ms": {name: round(value * 1e3, 2) for name, value in seconds.items()},
        "predicted_tokens_per_second": round(speed),
        "fraction_of_peak": round(speed * flops_per_token(config) / (card.peak("bf16") or math.nan), 3),
        "planned_tokens_per_second": None if options.peer else round(tokens / planned.total),
    }


def main(options: Options) -> None:
    """Lower a model and print the figures. Raises UserError for an unknown preset or card, and for no clone."""
    if options.preset not in PRESETS:
        raise UserError(f"unknown preset {options.preset!r}; known: {', '.join(PRESETS)}")
    check_ranges(options)
    install(options.card)
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)  # it warns that code is written and not loaded
    warnings.simplefilter("ignore")
    run = resolve(PRESETS[options.preset][1])
    config = make_config(run.model, run.parts)
    config = replace(config, n_layer=options.layers or config.n_layer)
    if options.peer is None:
        precision = choose_precision(CUDA, run.system.precision, run.system.weights)
        lowered = lower(make_model(run, config), options.micro_batch, precision, run)
    else:
        lowered = lower(make_peer_model(options.peer, config), options.micro_batch, "bf16")
    show(options, report(options, run, config, lowered), lowered)


def show(options: Options, figures: dict[str, Any], lowered: Lowered) -> None:
    """Print the figures, and write the code where it is asked for."""
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        (options.folder / f"{options.preset if options.peer is None else 'peer'}.py").write_text(lowered.code)
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):28} {value}")
    if options.kernels:
        print("GB of one forward and backward, and launches, by kernel:")
        for kernel in sorted(lowered.kernels, key=lambda k: -k.launches * k.gigabytes)[:12]:
            print(f"{kernel.launches * kernel.gigabytes:8.2f} {kernel.launches:4d}  {kernel.name[:90]}")


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Options, description=__doc__)))
    sys.stdout.flush()
    os._exit(0)  # PyTorch would synchronise the device at exit
