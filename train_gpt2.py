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
import functools
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from gpt2.errors import UserError, run_command, speaks
from gpt2.parts import Parts
from gpt2.presets import PRESETS
from gpt2.run import Run, check, complete, to_json


def read_command_line() -> Run:
    """The preset (the first if none is named), overridden by flags."""
    words = sys.argv[1:]
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words = [next(iter(PRESETS)), *words]
    return tyro.extras.overridable_config_cli(PRESETS, args=words, description=__doc__, console_outputs=speaks())


RUN = read_command_line() if __name__ == "__main__" else Run()  # before torch is imported: --help answers at once

import torch
from torch import Tensor, nn

from gpt2 import run_folder
from gpt2.build import build, from_pretrained, make_config
from gpt2.checkpoint import Checkpoints, Training, newest
from gpt2.distributed import (
    Processes,
    accumulating,
    autocast,
    clip_gradients,
    joined,
    recompute,
    wait,
    whole_model,
    wrap,
)
from gpt2.fit import Execution, check_fits, choose_execution, run_flops
from gpt2.hellaswag import load_items
from gpt2.interrupt import Interruption
from gpt2.loader import Sequences, TokenLoader
from gpt2.logs import RunLog
from gpt2.model import GPT, GPTConfig
from gpt2.modern import Modern
from gpt2.optim import make_optimizer
from gpt2.outliers import Outliers
from gpt2.run_evaluation import Evaluation, is_due
from gpt2.schedule import learning_rate
from gpt2.shards import Shard, find_shards
from gpt2.telemetry import (
    Tracker,
    check_trackers,
    describe_machine,
    gpu_state,
    layer_norms,
    open_trackers,
    peak_flops,
)
from gpt2.tokenizer import get_encoding


def main() -> None:
    """The run of the command line, in this process and those that torchrun started beside it."""
    run = complete(RUN)
    check(run)
    with joined(run.system.device) as processes, contextlib.ExitStack() as claimed:
        if pieces := prepare(run, processes, claimed):
            train(pieces)
        elif processes.is_first:
            print(f"{run.log.folder} holds this run, complete; to train it again: --log.overwrite")


@dataclass
class Pieces:
    """Everything that takes part in a run."""

    run: Run
    processes: Processes
    raw: GPT | Modern
    model: nn.Module  # `raw` as it is trained: compiled, divided over the processes
    make: Callable[[], GPT | Modern]
    shards: list[list[Any]]  # name and tokens
    execution: Execution
    training: Training
    checkpoints: Checkpoints
    evaluation: Evaluation
    log: RunLog
    beginning: run_folder.Beginning
    seconds_at_peak: float  # of a step, if every device did nothing but multiply as fast as it can


def prepare(run: Run, processes: Processes, claimed: contextlib.ExitStack) -> Pieces | None:
    """Everything up to the first step, or None where the run is complete. Raises UserError for what can't work."""
    device = processes.device
    encoding = get_encoding(run.model.vocab_size)
    check_trackers(run.log.tensorboard, run.log.wandb)

    # the model: the same weights in every process
    torch.manual_seed(run.system.seed)
    raw = make_model(run, processes).to(device, torch.float32 if run.system.weights == "fp32" else torch.bfloat16)
    if isinstance(raw, Modern) and run.system.small_gpu:
        raw.without_flex()
    make = functools.partial(build, raw.config)
    config = dataclasses.replace(raw.config, block_size=run.model.block_size or raw.config.block_size)  # as trained

    # the data: every token's place in the run is fixed here
    train_shards, val = find_data(run, config)
    items = load_items(run.eval.hellaswag, run.eval.hellaswag_items) if run.eval.hellaswag_every else []

    # the machine: how fast, and with how many digits
    recompute(raw, run.system.recompute)
    execution = choose_execution(run, raw, config, processes)
    precision = execution.precision
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    layout = (processes.rank, processes.world_size, execution.micro_batch)
    dealt = (run.data.batch_tokens, config.block_size, *layout, run.data.seed, device, run.data.overfit)
    loader = TokenLoader(train_shards, *dealt)
    outliers = Outliers(run.optim.skip_loss_z, run.optim.skip_norm_z)

    # the folder, and where in the run to begin
    shards = [[shard.path.name, shard.tokens] for shard in train_shards]
    beginning = run_folder.begin(run, shards, processes, claimed)
    if beginning.complete:
        return None

    model = wrap(raw, processes, execution.compiled, run.system.zero)
    optimizer = make_optimizer(raw, run.optim, run.system.weights, processes.rank, processes.world_size)
    if isinstance(raw, Modern):
        optimizer.register_step_post_hook(lambda *_: raw.constrain())
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    training = Training(raw, optimizer, scaler, loader, outliers)
    if beginning.checkpoint is not None:
        training.restore(beginning.checkpoint, beginning.record, processes)
    checkpoints = Checkpoints(Path(run.log.folder), processes, run.log.keep, run.log.keep_every)
    evaluation = Evaluation(run, model, raw, make, val, items, encoding, execution, processes)
    peak, source = peak_flops(device, precision)
    flops = run_flops(run, config)
    log = open_log(run, beginning, processes, describe(run, raw, processes, execution, flops, source, beginning))
    at_peak = flops / run.schedule.steps / (peak * processes.world_size)
    made = (raw, model, make, shards, execution, training, checkpoints, evaluation, log, beginning, at_peak)
    return Pieces(run, processes, *made)


def train(pieces: Pieces) -> None:
    """From the step where the run begins to its last, or to where it is asked to stop."""
    run, processes, log, checkpoints = pieces.run, pieces.processes, pieces.log, pieces.checkpoints
    steps, record = run.schedule.steps, pieces.beginning.record
    interruption = Interruption()  # before this there is nothing to save
    first, evaluated, asked = record.get("step", 0), record.get("evaluated", False), 0.0
    for step in range(first, steps + 1):
        last = step == steps
        if not evaluated and not asked:
            pieces.evaluation(step, last, log)
        if step > first and (last or asked or is_due(step, run.log.save_every, last)):
            model = dataclasses.asdict(pieces.raw.config)
            here = {"evaluated": not asked, "log_bytes": log.position(), "model": model}
            decisive = run_folder.decisive(run, pieces.shards)
            report(log, step, checkpoints.save(step, pieces.training, {**decisive, **here}))
        if last or asked:
            break
        asked = make_step(pieces, step, interruption)
        report(log, step, checkpoints.finish(block=False))
        evaluated = False

    report(log, step, problem := checkpoints.close())
    if not asked:
        export(whole_model(pieces.raw, pieces.make), Path(run.log.folder), steps, processes)
    elif problem:
        where = f"make room in {run.log.folder}"
        raise UserError(f"stopped at step {step}, which could not be saved ({problem}); {where}", False)
    else:
        log.note(step, "stopped", f"asked to by {interruption.name or 'another process'}; the same command goes on")
    log.close()


def make_step(pieces: Pieces, step: int, interruption: Interruption) -> float:
    """One step of the optimiser, and its line in the log; above 0 where a process was asked to stop meanwhile."""
    run, training, log = pieces.run, pieces.training, pieces.log
    started = time.perf_counter()
    lr = learning_rate(step, run.optim.lr, **vars(run.schedule))
    with explain_out_of_memory(pieces.execution.micro_batch):
        mean_loss = accumulate(training, pieces.model, pieces.execution.precision, run.system.zero)
    norms = layer_norms(pieces.raw) if is_due(step, run.log.norms_every) else None
    whole_norm = clip_gradients(pieces.model, run.optim.clip)
    loss, norm, asked = pieces.processes.mean(mean_loss, whole_norm, interruption.name is not None)
    outliers = training.outliers
    reason = outliers.judge(loss, norm)
    update(training, lr, make=reason is None)
    wait(pieces.processes.device)
    seconds = time.perf_counter() - started
    loader = training.loader
    epoch = (step + 1) * loader.batch / len(loader.sequences)
    log.step(step, loss, lr, norm, seconds, run.data.batch_tokens, epoch, pieces.seconds_at_peak / seconds)
    if norms:
        log.norms(step, norms)
    if is_due(step, run.log.gpu_every):
        log.gpu(step, gpu_state(pieces.processes.device))
    if reason:
        log.skipped(step, reason)
    if outliers.in_a_row >= run.optim.max_skips:
        give_up(reason, outliers.in_a_row, pieces.checkpoints, Path(run.log.folder))
    return asked


def open_log(run: Run, beginning: run_folder.Beginning, processes: Processes, lines: dict[str, str]) -> RunLog:
    """The log, with `lines` on top, and the trackers that are asked for: written by the first process alone."""
    folder, settings, first = Path(run.log.folder), json.loads(to_json(run)), beginning.record.get("step", 0)
    trackers: list[Tracker] = []
    notes: dict[str, str] = {}
    if processes.is_first:
        trackers, notes = open_trackers(folder, run.log.tensorboard, run.log.wandb, settings, first)
    log = RunLog(folder / "log.txt", processes.is_first, run.schedule.steps, first, trackers)
    log.header({**lines, **notes})
    return log


def accumulate(training: Training, model: nn.Module, precision: str, zero: int) -> Tensor:
    """Forward and backward of this process's part of the next batch: its mean loss, in nats per token.

    The gradients are then those of the mean over the whole batch, over all processes.
    """
    micro_batches = training.loader.next_step()
    device = training.loader.device
    total = torch.zeros((), device=device)
    for i, (x, y) in enumerate(micro_batches):
        with accumulating(model, last=i == len(micro_batches) - 1, zero=zero):
            with autocast(device, precision):
                loss = model(x, y)[1] / len(micro_batches)  # gradients add up; their sum must be the batch's mean
            training.scaler.scale(loss).backward()
        total += loss.detach()
    training.scaler.unscale_(training.optimizer)
    return total


def update(training: Training, lr: float, make: bool) -> None:
    """The optimiser's step, or where it is not to be made, only what follows one."""
    if make:
        for group in training.optimizer.param_groups:
            group["lr"] = lr * group["ratio"]
        training.scaler.step(training.optimizer)
        training.updates += 1
    training.scaler.update()
    training.optimizer.zero_grad(set_to_none=True)


def export(model: GPT | Modern, folder: Path, steps: int, processes: Processes) -> None:
    """Write the trained weights where other programs find them, and mark the run as complete."""
    if not processes.is_first:
        return
    try:
        model.save_pretrained(folder / "model")
        run_folder.finish(folder, steps)
    except OSError as error:
        raise UserError(
            f"can't write {folder}/model ({error.strerror}); make room, and give the same command again",
            everywhere=False,
        ) from None


def give_up(reason: str | None, skips: int, checkpoints: Checkpoints, folder: Path) -> None:
    """Stop a run that makes no step any more, naming what it can go on from. Raises UserError."""
    checkpoints.close()
    good, *_ = newest(folder)
    advice = f"go on from the last good checkpoint, --resume {good}, in another --log.folder" if good else "start again"
    raise UserError(
        f"{skips} steps in a row were skipped, the last because {reason}; {advice}, and a smaller --optim.lr "
        "(--allow-changes)"
    )


def report(log: RunLog, step: int, problem: str | None) -> None:
    """Say that a checkpoint could not be written; the run goes on, and the checkpoint before it stays."""
    if problem:
        log.note(step, "checkpoint", f"not saved ({problem}); the one before it is kept")


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


def make_model(run: Run, processes: Processes) -> GPT | Modern:
    """Random weights of a descriptor's size, or those of a folder or the hub. Raises UserError where it can't be."""
    wanted = run.model
    try:
        if "/" not in wanted.init and not Path(wanted.init).exists():
            config = make_config(wanted, run.parts)
            check_fits(run, config, processes)
            return build(config)
        model = from_pretrained(wanted.init)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"--model, --parts: {error}") from None
    if run.parts != getattr(model.config, "parts", Parts()):
        raise UserError(f"--parts are not those of {wanted.init}; leave them out, or give the ones it was made of")
    for name, value in dataclasses.asdict(wanted).items():
        own = getattr(model.config, name, None)
        if name != "init" and value is not None and (value > own if name == "block_size" else value != own):
            raise UserError(
                f"--model.{name.replace('_', '-')} {value} does not go with {wanted.init}, which has {own}; "
                "leave the flag out"
            )
    return model


def describe(
    run: Run,
    model: GPT | Modern,
    processes: Processes,
    execution: Execution,
    flops: float,
    peak: str,
    beginning: run_folder.Beginning,
) -> dict[str, str]:
    """The lines on top of the log: what runs, on what. `flops` is the whole run's."""
    batch, steps = run.data.batch_tokens, run.schedule.steps
    lines = {
        "command": shlex.join(["train_gpt2.py", *sys.argv[1:]]),
        **describe_machine(processes),
        "model": f"{model.num_params():,} parameters, {json.dumps(dataclasses.asdict(model.config))}",
        "tokens": f"{batch * steps:,} = {steps:,} steps of {batch:,}; {flops:.2e} FLOPs",
        "machine": str(execution),
        "MFU": f"of {peak}",
        "settings": json.dumps(json.loads(to_json(run))),
    }
    if beginning.checkpoint is not None:
        lines["resumed"] = f"at step {beginning.record['step']}, from {beginning.checkpoint}"
    return lines | {f"note {i}": note for i, note in enumerate(beginning.notes, 1)}


if __name__ == "__main__":
    run_command(main)
