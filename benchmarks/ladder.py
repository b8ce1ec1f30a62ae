"""How fast one GPU trains the 124M model, with one optimisation after the other switched on.

    python benchmarks/ladder.py                         the ladder
    python benchmarks/ladder.py --peer build-nanogpt    the top rung beside a peer's model in bf16, in turn
    python benchmarks/ladder.py --device cpu            the same code on a tiny model, where there is no GPU

Every rung is a process of its own, on random tokens, one micro-batch an optimiser step; compilation and warm-up are
not counted. MFU is named against the card's own bf16 matrix product, measured first, and against its data sheet.
"""

import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from peers import Peer, Size, our_trainer, peer_trainer, time_steps, write_tokens
from torch import Tensor, nn

import gpt2.kernels
from gpt2.config.run import Optim
from gpt2.model import GPTConfig
from gpt2.optim.optimizer import make_optimizer, parameter_groups
from gpt2.planning.flops import flops_per_token
from gpt2.planning.gpus import matmul_rate
from gpt2.system.errors import UserError, run_command

DATA_SHEET = {"H200": 989e12, "H100 80GB HBM3": 989e12, "A100": 312e12}  # dense bf16 FLOP/s by part of the card's name
STEPS, WARMUP = 10, 4
Result = dict[str, Any]


@dataclass(frozen=True)
class Rung:
    """What is switched on. The first rung has nothing."""

    name: str = "fp32"
    precision: str = "fp32"
    tf32: bool = False
    fused_attention: bool = False
    compiled: bool = False
    padded: bool = False
    fused_adamw: bool = False
    larger: bool = False
    peer: str | None = None  # a clone whose model takes the place of ours


def ladder() -> list[Rung]:
    """The rungs from the bottom: each has all that the one below has, and one thing more."""
    rungs = [Rung()]
    for name, change in (
        ("+ TF32", {"tf32": True}),
        ("+ bf16 autocast", {"precision": "bf16"}),
        ("+ fused attention", {"fused_attention": True}),
        ("+ torch.compile", {"compiled": True}),
        ("+ padded vocabulary", {"padded": True}),
        ("+ fused AdamW", {"fused_adamw": True}),
        ("+ larger micro-batch", {"larger": True}),
    ):
        rungs.append(dataclasses.replace(rungs[-1], name=name, **change))
    return rungs


@dataclass(frozen=True)
class Options:
    """The 124M model's throughput, rung by rung."""

    device: Literal["cuda", "cpu"] = "cuda"
    """cpu: a tiny model, to try this file where there is no GPU."""
    peer: Path | None = None
    """Clone of build-nanogpt or nanoGPT: measure its model beside the top rung, not the ladder."""
    micro_batch: int = 16
    """Sequences of 1,024 tokens per step; the top rung has --larger-micro-batch."""
    larger_micro_batch: int = 64
    rounds: int = 2
    """Measurements of each side, with --peer."""
    seconds: float = 1e9
    """Start no further rung after so long."""
    rung: str | None = None
    """For the process that measures one rung: what is switched on, as JSON."""

    @property
    def size(self) -> Size:
        """The model below the top rung, and its batch."""
        if self.device == "cpu":
            return Size(2, 2, 64, 1000, 64, 2)
        return Size(12, 12, 768, 50257, 1024, self.micro_batch)

    def size_of(self, rung: Rung) -> Size:
        """The model of a rung, and its batch."""
        larger = 4 if self.device == "cpu" else self.larger_micro_batch
        return dataclasses.replace(self.size, batch=larger) if rung.larger else self.size


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch finds no GPU here; to try this file without one: --device cpu")
    try:
        peer = options.peer and Peer(options.peer)
    except FileNotFoundError as error:
        raise UserError(f"{error}; name one with --peer") from None
    if options.rung is not None:
        print(json.dumps(climb(Rung(**json.loads(options.rung)), options)), flush=True)
        return
    with tempfile.TemporaryDirectory(prefix="ladder-") as folder:
        size = options.size_of(ladder()[-1])
        tokens = np.random.default_rng(1).integers(0, size.vocab_size, (WARMUP + STEPS + 2) * size.tokens)
        write_tokens(Path(folder), tokens)
        if peer:
            beside(peer, options, Path(folder))
        else:
            show_ladder(options, Path(folder))


def climb(rung: Rung, options: Options) -> Result:
    """Measure one rung in this process, on the tokens in the current folder: seconds per step, and peak memory in GiB.

    It exchanges parts of the model for the whole process, so there is one rung a process.
    """
    device, size = torch.device(options.device), options.size_of(rung)
    torch.set_float32_matmul_precision("high" if rung.tf32 else "highest")
    if not rung.fused_attention:
        gpt2.kernels.attend = plain_attention
    if not rung.padded:
        GPTConfig.padded_vocab_size = property(lambda config: config.vocab_size)  # type: ignore[assignment]
    try:
        if rung.peer:  # both peers' scripts train with a padded vocabulary too, but leave the padding to the caller
            padded = dataclasses.replace(size, vocab_size=GPTConfig(**size.config).padded_vocab_size)
            trainer = peer_trainer(Peer(rung.peer), padded, rung.precision, rung.compiled, device)
        else:
            make = make_optimizer if rung.fused_adamw else unfused_adamw
            trainer = our_trainer(size, rung.precision, rung.compiled, Path.cwd(), device, make)
        result: Result = dict(time_steps(trainer, WARMUP, STEPS, device))
    except torch.OutOfMemoryError:
        return {"skipped": f"{size.batch} sequences don't fit into memory"}
    if device.type == "cuda":
        result["memory"] = torch.cuda.max_memory_allocated(device) / 2**30
    return result


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / sqrt(D)) v with every (T, T) map in memory: (B, H, T, D) each → (B, H, T, D)."""
    if mask is None:
        mask = torch.ones(q.size(2), k.size(2), dtype=torch.bool, device=q.device).tril()
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, H, T, S)
    return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v


def unfused_adamw(model: nn.Module, settings: Optim) -> torch.optim.AdamW:
    """AdamW as torch makes it unless told otherwise: a kernel for each operation."""
    return torch.optim.AdamW(parameter_groups(model, settings))


def measure(rung: Rung, options: Options, folder: Path) -> Result:
    """Measure one rung in a process of its own; `skipped` says why there is no number."""
    here = Path(__file__).resolve()
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([str(here.parent.parent), environment.get("PYTHONPATH", "")])
    given = ["--device", options.device, "--micro-batch", str(options.micro_batch)]
    given += ["--larger-micro-batch", str(options.larger_micro_batch)]
    command = [sys.executable, str(here), *given, "--rung", json.dumps(dataclasses.asdict(rung))]
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if process.returncode:
        print(process.stderr[-3000:], file=sys.stderr, flush=True)
        return {"failed": process.stderr.strip().splitlines()[-1] if process.stderr.strip() else "no message"}
    return json.loads(process.stdout.splitlines()[-1])


def card(options: Options) -> tuple[str, float, float | None]:
    """The device's name, its measured bf16 matrix rate and that of its data sheet (None if not known here), FLOP/s."""
    if options.device == "cpu":
        return "CPU", matmul_rate(torch.device("cpu"), torch.bfloat16, 1024), None
    name = torch.cuda.get_device_name()
    rate = matmul_rate(torch.device("cuda"), torch.bfloat16, 8192)
    torch.cuda.empty_cache()
    return name, rate, next((peak for part, peak in DATA_SHEET.items() if part in name), None)


def reporter(options: Options) -> Callable[[str, Size, Result], None]:
    """Measure the card and print the head of a table; what comes back prints a row of it."""
    name, rate, peak = card(options)
    flops = flops_per_token(GPTConfig(**options.size.config))
    sheet = f"data sheet {peak / 1e12:.0f}" if peak else "data sheet not known here"
    print(
        f"{name}, torch {torch.__version__}: bf16 matrix product {rate / 1e12:.1f} TFLOP/s measured, {sheet}\n"
        f"{options.size}, {flops / 1e9:.3f} GFLOP a token; median of {STEPS} steps, {WARMUP} warm-up steps not counted"
    )
    columns = ("batch", "ms/step", "tokens/s", "MFU meas.", "MFU sheet", "GiB")
    print(f"{'':34}" + "".join(f"{column:>11}" for column in columns), flush=True)

    def row(name: str, size: Size, result: Result) -> None:
        if "seconds" not in result:
            why = f"skipped: {result['skipped']}" if "skipped" in result else f"failed: {result['failed']}"
            print(f"{name:34} {size.batch:>10}  {why}", flush=True)
            return
        speed = size.tokens / result["seconds"]
        memory = f"{result['memory']:.1f}" if "memory" in result else "-"
        sheet = f"{speed * flops / peak:.1%}" if peak else "-"
        values = (size.batch, f"{result['seconds'] * 1e3:.1f}", f"{speed:,.0f}", f"{speed * flops / rate:.1%}", sheet)
        print(f"{name:34}" + "".join(f"{value:>11}" for value in (*values, memory)), flush=True)

    return row


def show_ladder(options: Options, folder: Path) -> None:
    """Measure and print one rung after the other. Exit status 1 if one failed for another reason than memory."""
    started, failed = time.perf_counter(), False
    row = reporter(options)
    for rung in ladder():
        if time.perf_counter() - started > options.seconds:
            row(rung.name, options.size, {"skipped": f"no time left of --seconds {options.seconds:.0f}"})
            continue
        result = measure(rung, options, folder)
        failed = failed or "failed" in result
        row(rung.name, options.size_of(rung), result)
    if failed:
        sys.exit(1)


def beside(peer: Peer, options: Options, folder: Path) -> None:
    """Our top rung, the peer as published (not compiled) and the peer compiled, in turn, at the same micro-batch."""
    row = reporter(options)
    top = ladder()[-1]
    theirs = dataclasses.replace(top, peer=str(peer.path))
    sides = [
        dataclasses.replace(top, name="ours, compiled"),
        dataclasses.replace(theirs, name=f"{peer.name}, eager", compiled=False),
        dataclasses.replace(theirs, name=f"{peer.name}, compiled"),
    ]
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    for number in range(options.rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            result = measure(side, options, folder)
            row(side.name, options.size_of(side), result)
            if "seconds" in result:
                seconds[side.name].append(result["seconds"])
    medians = {name: statistics.median(values) for name, values in seconds.items() if values}
    ours = medians.pop(sides[0].name, None)
    for name, theirs in medians.items() if ours else ():
        print(f"ratio train/{options.device}: {theirs / ours:.2f} (tokens/s of ours, compiled, over {name})")
    if not all(seconds.values()):
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
