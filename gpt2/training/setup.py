"""What `train_gpt2.py` prepares before its first step: configuration, data, weights, the log and its header.

Built in notebook 12.
"""

import dataclasses
import json
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gpt2.config.run import Run
from gpt2.data.loader import Sequences, TokenLoader
from gpt2.data.shards import find_shards
from gpt2.evaluation.hellaswag import Item, load_items
from gpt2.formats.build import build, make_config, trained_config
from gpt2.formats.checkpoint import ResumePoint
from gpt2.formats.load import from_pretrained, is_pretrained, pretrained_config
from gpt2.logs.trackers import open_trackers
from gpt2.logs.writer import RunLog, Tracker
from gpt2.model import GPT, GPTConfig
from gpt2.modern.model import Modern
from gpt2.modern.parts import Parts
from gpt2.planning.fits import check_fits
from gpt2.planning.flops import run_flops
from gpt2.planning.gpus import peak_flops
from gpt2.planning.memory import check_recompute
from gpt2.system.devices import can_compile
from gpt2.system.errors import UserError
from gpt2.system.processes import Processes
from gpt2.training.distributed import cast_in_use, multiply_in_fp8
from gpt2.training.execution import Execution, check_precision
from gpt2.training.saving import TrainingState
from gpt2.training.telemetry import describe_machine


def choose_config(run: Run, processes: Processes) -> GPTConfig:
    """The configuration of the run's model, from its name or from pretrained weights; nothing is allocated.

    Raises UserError where it can't be built, contradicts the weights, or needs more memory than there is.
    """
    wanted = run.model
    if not is_pretrained(wanted.init):
        try:
            config = make_config(wanted, run.parts)
        except ValueError as error:
            raise UserError(f"--model, --parts: {error}") from None
        check_recompute(config, run.system.recompute)
        check_precision(run, processes.device)
        check_fits(run, config, processes)
        return config
    config = pretrained_config(wanted.init)
    check_recompute(config, run.system.recompute)
    check_precision(run, processes.device)
    if run.parts != getattr(config, "parts", Parts()):
        raise UserError(f"--parts are not those of {wanted.init}; leave them out, or give the ones it was made of")
    for name, value in dataclasses.asdict(wanted).items():
        own = getattr(config, name, None)
        if name != "init" and value is not None and (value > own if name == "block_size" else value != own):
            raise UserError(
                f"--model.{name.replace('_', '-')} {value} does not go with {wanted.init}, which has {own}; "
                "leave the flag out"
            )
    return config


@dataclass(frozen=True)
class RunData:
    """The text of a run: its training tokens, its validation tokens, and the items of HellaSwag."""

    loader: TokenLoader
    val: Sequences
    items: list[Item]

    @property
    def shards(self) -> list[list[Any]]:
        """Name and tokens of every train shard."""
        return [[shard.path.name, shard.tokens] for shard in self.loader.sequences.shards]


def open_data(run: Run, config: GPTConfig, processes: Processes) -> RunData:
    """Open the shards, which fixes the place of every token in the run. Raises UserError for unfit shards."""
    block_size = trained_config(run.model, config).block_size
    train = find_shards(run.data.shards, "train", run.model.vocab_size)
    held_out = find_shards(run.data.val_shards or run.data.shards, "val", run.model.vocab_size)
    if both := sorted({shard.path for shard in train} & {shard.path for shard in held_out}):
        raise UserError(f"{both[0]} is both a train and a val shard; name other val shards: --data.val-shards")
    val = Sequences(held_out, block_size)
    if not len(val):
        raise UserError(
            f"the val shards hold {val.tokens} tokens, fewer than one sequence of {block_size}; "
            "hold out more with fineweb.py --val-tokens, or give a smaller --model.block-size"
        )
    loader = TokenLoader(
        train,
        run.data.batch_tokens,
        block_size,
        rank=processes.rank,
        world_size=processes.world_size,
        micro_batch=1 if run.system.micro_batch == "auto" else run.system.micro_batch,  # auto: set when it is chosen
        seed=run.data.seed,
        device=processes.device,
        overfit=run.data.overfit,
    )
    items = load_items(run.eval.hellaswag, run.eval.hellaswag_items) if run.eval.hellaswag_every else []
    return RunData(loader, val, items)


def epochs_as_steps(run: Run, loader: TokenLoader) -> Run:
    """The run with --schedule.epochs, if it is given, turned into the steps that fit into so many epochs."""
    if run.schedule.epochs is None:
        return run
    steps = max(1, int(run.schedule.epochs * len(loader.sequences)) // loader.batch)
    return replace(run, schedule=replace(run.schedule, steps=steps, epochs=None))


def make_model(run: Run, config: GPTConfig, device: torch.device) -> GPT | Modern:
    """The model with random or pretrained weights, the same in every process."""
    torch.manual_seed(run.system.seed)
    model = from_pretrained(run.model.init) if is_pretrained(run.model.init) else build(config)
    if run.system.small_gpu and hasattr(model, "flex"):
        model.flex = False
    model.to(device, torch.float32 if run.system.weights == "fp32" else torch.bfloat16)
    if run.system.weights == "bf16-cast":
        cast_in_use(model)
    if run.system.fp8:
        multiply_in_fp8(model, device)
    return model


def open_log(
    run: Run, resume: ResumePoint, data: RunData, state: TrainingState, execution: Execution, processes: Processes
) -> RunLog:
    """The log, with its header and trackers. Only the first process writes."""
    peak, source = peak_flops(processes.device, execution.precision)
    batch, steps, config = run.data.batch_tokens, run.schedule.steps, trained_config(run.model, state.model.config)
    flops = run_flops(run, config)
    settings, folder = dataclasses.asdict(run), Path(run.log.folder)
    micro_step = f"{execution.micro_batch} × {config.block_size:,} tokens"
    micro_steps = batch // (execution.micro_batch * config.block_size * processes.world_size)
    train, val = data.loader.sequences, data.val
    compiled = "compiled" if execution.compiled else "not compiled"
    if not execution.compiled and run.system.compile == "auto" and not can_compile():
        compiled += ": there is no C++ compiler, or no Python.h"
    if run.system.attention != "auto":
        compiled += f", {run.system.attention} attention"
    lines = {
        "command": shlex.join(["train_gpt2.py", *sys.argv[1:]]),
        **describe_machine(processes),
        "model": f"{state.model.num_params():,} parameters, {json.dumps(dataclasses.asdict(state.model.config))}",
        "data": f"{len(train.shards)} train shards with {train.tokens:,} tokens, {len(val.shards)} val shards with "
        f"{val.tokens:,}",
        "tokens": f"{batch * steps:,} = {steps:,} steps of {batch:,}; {flops:.2e} FLOPs",
        "accumulation": f"{micro_steps} micro-steps of {micro_step} in each process",
        "execution": f"{execution.precision}, {compiled}",
        "optimizer": state.optimizer.describe(),
        "MFU": f"of {source}",
        "settings": json.dumps(settings),
    }
    if resume.path is not None:
        lines["resumed"] = f"at step {resume.step}, from {resume.path}"
    lines |= {f"note {i}": f"{sentence}; it is not used" for i, sentence in enumerate(resume.damaged, 1)}
    trackers: list[Tracker] = []
    if processes.is_first:
        trackers, notes = open_trackers(folder, run.log.tensorboard, run.log.wandb, settings, resume.step)
        lines |= notes
    ideal_seconds = flops / steps / (peak * processes.world_size)
    log = RunLog(folder / "log.txt", processes.is_first, steps, resume.step, trackers, ideal_seconds)
    log.header(lines)
    return log
