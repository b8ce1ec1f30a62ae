"""Shards → trained model: the one training loop.

    python train_gpt2.py demo                                         one process
    torchrun --standalone --nproc_per_node=8 train_gpt2.py            GPT-2 124M on 8 GPUs
    torchrun --standalone --nproc_per_node=8 train_gpt2.py gpt2-124m --optim.lr 1e-3 --log.folder runs/hot
    python train_gpt2.py gpt2-124m --help                             every flag, with the preset's value

This file composes; the pieces are in gpt2/, one a file, each built by hand in a notebook.
"""
# ruff: noqa: E402

import contextlib
import dataclasses
import json
import math
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import tyro

from gpt2.errors import UserError, run_command, speaks
from gpt2.presets import PRESETS, Run, to_json


def read_command_line() -> Run:
    """The preset (the first if none is named), overridden by flags."""
    words = sys.argv[1:]
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words = [next(iter(PRESETS)), *words]
    return tyro.extras.overridable_config_cli(PRESETS, args=words, description=__doc__, console_outputs=speaks())


RUN = read_command_line() if __name__ == "__main__" else Run()  # before torch is imported: --help answers at once

import tiktoken
import torch
from torch import Tensor, nn

from gpt2.distributed import (
    Processes,
    accumulating,
    autocast,
    choose_compile,
    choose_micro_batch,
    choose_precision,
    start,
    stop,
    wait,
    wrap,
)
from gpt2.evaluate import validate
from gpt2.files import write_whole
from gpt2.flops import activation_bytes, flops_per_token
from gpt2.generate import generate
from gpt2.loader import Sequences, TokenLoader, check_division
from gpt2.logs import RunLog
from gpt2.machine import processor_name
from gpt2.model import GPT, GPTConfig
from gpt2.optim import make_adamw
from gpt2.schedule import learning_rate
from gpt2.shards import Shard, find_shards
from gpt2.tokenizer import get_encoding, token_bytes


def main() -> None:
    check_run(RUN)
    processes = start(RUN.system.device)
    try:
        train(RUN, processes)
    finally:
        stop()


def train(run: Run, processes: Processes) -> None:
    """One run from the first step to the last. Raises UserError before the first step for what can't work."""
    device, steps, folder = processes.device, run.schedule.steps, Path(run.log.folder)
    encoding = get_encoding(run.model.vocab_size)

    # the model: the same weights in every process
    torch.manual_seed(run.system.seed)
    raw = make_model(run).to(device)
    config = dataclasses.replace(raw.config, block_size=run.model.block_size or raw.config.block_size)  # as trained

    # the data: every token's place in the run is fixed here
    train_shards, val = find_data(run, config)

    # the machine: how fast, and with how many digits
    precision = choose_precision(device, run.system.precision)
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    flops = flops_per_token(config) * run.data.batch_tokens * steps
    compiled = choose_compile(device, run.system.compile, flops)
    micro_batch = find_micro_batch(run, raw, config, precision, compiled, processes)
    layout = (processes.rank, processes.world_size, micro_batch)
    loader = TokenLoader(train_shards, run.data.batch_tokens, config.block_size, *layout, run.data.seed, device)
    fast: nn.Module = torch.compile(raw, dynamic=False) if compiled else raw  # type: ignore[assignment]
    model = wrap(fast, processes)
    optimizer = make_adamw(raw, run.optim.lr, run.optim.betas, run.optim.eps, run.optim.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        """For validation: through the very graph that training compiled, so that nothing is compiled twice."""
        with torch.set_grad_enabled(compiled), autocast(device, precision), accumulating(model, last=False):
            return model(x, y)[1].detach()

    if processes.is_first:
        open_folder(run, folder)
    log = RunLog(folder / "log.txt", active=processes.is_first, steps=steps)
    log.header(describe(run, raw, processes, precision, compiled, micro_batch, flops))
    for step in range(steps + 1):
        last = step == steps
        if is_due(step, run.eval.every, last):
            sizes = token_bytes(encoding)
            log.validation(step, *validate(loss_of, val, run.eval.tokens, micro_batch, processes, sizes))
        if processes.is_first and step > 0:
            if is_due(step, run.eval.sample_every, last):
                log.samples(step, samples(raw, run, encoding))
            if last or is_due(step, run.log.save_every, last):
                raw.save_pretrained(folder / "model")
        if last:
            break
        started = time.perf_counter()
        lr = learning_rate(step, run.optim.lr, **vars(run.schedule))
        with explain_out_of_memory(micro_batch):
            measured = optimizer_step(model, loader, optimizer, scaler, lr, run.optim.clip, precision)
        loss, norm = processes.mean(*measured)
        wait(device)
        log.step(step, loss, lr, norm, time.perf_counter() - started, run.data.batch_tokens)
    log.close()


@contextlib.contextmanager
def explain_out_of_memory(micro_batch: int) -> Iterator[None]:
    """Turn running out of GPU memory, which may happen to one process alone, into advice."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(
            f"a micro-batch of {micro_batch} does not fit into this GPU; give a smaller --system.micro-batch",
            everywhere=False,
        ) from None


def find_data(run: Run, config: GPTConfig) -> tuple[list[Shard], Sequences]:
    """The train shards, and the val shards as sequences. Raises UserError where they are missing or don't fit."""
    train_shards = find_shards(run.data.shards, "train", run.model.vocab_size)
    val_shards = find_shards(run.data.val_shards or run.data.shards, "val", run.model.vocab_size)
    val = Sequences(val_shards, config.block_size)
    if not len(val):
        raise UserError(
            f"the val shards hold {val.tokens} tokens, fewer than one sequence of {config.block_size}; "
            "hold out more with fineweb.py --val-tokens, or give a smaller --model.block-size"
        )
    return train_shards, val


def optimizer_step(
    model: nn.Module,
    loader: TokenLoader,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    lr: float,
    clip: float,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """One step on the next batch: this process's mean loss (nats per token) and the global gradient norm."""
    micro_batches = loader.next_step()
    total = torch.zeros((), device=loader.device)
    for i, (x, y) in enumerate(micro_batches):
        with accumulating(model, last=i == len(micro_batches) - 1):
            with autocast(loader.device, precision):
                loss = model(x, y)[1] / len(micro_batches)  # gradients add up; their sum must be the batch's mean
            scaler.scale(loss).backward()
        total += loss.detach()
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
    for group in optimizer.param_groups:
        group["lr"] = lr
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return total, norm


def make_model(run: Run) -> GPT:
    """Random weights of a descriptor's size, or those of a folder or the hub. Raises UserError where it can't be."""
    wanted = run.model
    sizes = {k: v for k, v in dataclasses.asdict(wanted).items() if k != "init" and v is not None}
    try:
        if "/" not in wanted.init and not Path(wanted.init).is_dir():
            return GPT(GPTConfig.from_descriptor(wanted.init, **sizes))
        model = GPT.from_pretrained(wanted.init)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"--model: {error}") from None
    for name, value in sizes.items():
        own = getattr(model.config, name)
        if value > own if name == "block_size" else value != own:
            raise UserError(
                f"--model.{name.replace('_', '-')} {value} does not go with {wanted.init}, which has {own}; "
                "leave the flag out"
            )
    return model


def find_micro_batch(
    run: Run, model: GPT, config: GPTConfig, precision: str, compiled: bool, processes: Processes
) -> int:
    """The micro-batch that was asked for, or the largest that fits. Raises UserError where it can't divide a step."""
    if run.system.micro_batch != "auto":
        return run.system.micro_batch
    block_size = config.block_size
    check_division(run.data.batch_tokens, block_size, 1, processes.world_size)

    def attempt(size: int) -> None:
        """Forward and backward, with as much memory taken beside it as optimiser, buckets and logits will need."""
        beside = 12 * model.num_params() + (4 * size * block_size * config.padded_vocab_size if compiled else 0)
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
    return choose_micro_batch(attempt, sequences, activation_bytes(config), processes)


def samples(model: GPT, run: Run, encoding: tiktoken.Encoding) -> list[str]:
    """What the model writes after the prompt: the same random numbers at every step, top-k 50 as in the lecture."""
    prompt = encoding.encode_ordinary(run.eval.prompt) or [encoding.eot_token]
    device = next(model.parameters()).device
    idx = torch.tensor([prompt] * run.eval.samples, device=device)
    generator = torch.Generator(device).manual_seed(run.system.seed)
    new = max(1, run.eval.sample_tokens - len(prompt))
    columns = [idx, *generate(model, idx, new, top_k=50, generator=generator)]
    return [encoding.decode(row) for row in torch.cat(columns, dim=1).tolist()]


def is_due(step: int, every: int, last: bool) -> bool:
    """Whether something that happens every so many steps, and after the last, happens now; 0 is never."""
    return every > 0 and (step % every == 0 or last)


def check_run(run: Run) -> None:
    """Raise UserError for what is wrong before any process starts."""
    ranges = {
        "schedule.steps": (run.schedule.steps, 1, math.inf),
        "schedule.warmup": (run.schedule.warmup, 0, math.inf),
        "schedule.final-fraction": (run.schedule.final_fraction, 0, math.inf),
        "optim.lr": (run.optim.lr, 0, math.inf),
        "optim.betas": (max(run.optim.betas), 0, 1 - 1e-9),
        "optim.eps": (run.optim.eps, 0, math.inf),
        "optim.weight-decay": (run.optim.weight_decay, 0, math.inf),
        "optim.clip": (run.optim.clip, 0, math.inf),
        "eval.tokens": (run.eval.tokens, 1, math.inf),
        "eval.samples": (run.eval.samples, 1, math.inf),
        "system.micro-batch": (1 if run.system.micro_batch == "auto" else run.system.micro_batch, 1, math.inf),
    }
    for name, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise UserError(f"--{name} {value} is out of range; give {low:g} to {high:g}")
    folder = Path(run.log.folder)
    if (folder / "log.txt").exists() and not run.log.overwrite:
        raise UserError(f"{folder} holds a run already; name another --log.folder, or replace it: --log.overwrite")
    try:
        with tempfile.TemporaryFile(dir=next(p for p in (folder, *folder.absolute().parents) if p.exists())):
            pass
    except OSError as error:
        raise UserError(f"can't write to {folder} ({error.strerror}); name another --log.folder") from None


def open_folder(run: Run, folder: Path) -> None:
    """Make the run folder, write the run down, and take away what an overwritten run left. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "config.json", to_json(run).encode())
    write_whole(folder / "log.txt", b"")
    if (folder / "model").exists():
        shutil.rmtree(folder / "model")


def describe(
    run: Run, model: GPT, processes: Processes, precision: str, compiled: bool, micro_batch: int, flops: float
) -> dict[str, str]:
    """The lines on top of the log: what runs, on what."""
    device = processes.device
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    batch, steps = run.data.batch_tokens, run.schedule.steps
    return {
        "command": shlex.join(["train_gpt2.py", *sys.argv[1:]]),
        "hardware": f"{processes.world_size} process(es) on {hardware}, torch {torch.__version__}",
        "model": f"{model.num_params():,} parameters, {json.dumps(vars(model.config))}",
        "tokens": f"{batch * steps:,} = {steps:,} steps of {batch:,}; {flops:.2e} FLOPs",
        "machine": f"micro-batch {micro_batch}, {precision}, {'compiled' if compiled else 'not compiled'}",
    }


if __name__ == "__main__":
    run_command(main)
