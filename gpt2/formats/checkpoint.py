"""The checkpoints of a run folder: named, found, checked and read. `gpt2/training/saving.py` writes their tensors.

    step_000250/process_000.safetensors …   one file per process: its part of the weights and of the optimiser's state
    step_000250/state.json                  the record: step, place in the data, settings, checksum of every file

The files have the sharded safetensors layout of torch.distributed.checkpoint, which reads them into any number of
processes. Nothing in them can run code. Built in notebook 12.
"""

import dataclasses
import json
import os
import shutil
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gpt2.formats.build import build, config_from_json
from gpt2.model import GPT, GPTConfig
from gpt2.modern.model import Modern
from gpt2.system.errors import UserError
from gpt2.system.files import sync_folder, write_atomically

RECORD = "state.json"
BLOCK = 2**20  # bytes that are summed at a time: they fit into a processor's cache


@dataclass(frozen=True)
class Record:
    """What `state.json` says of a checkpoint, in the types of JSON."""

    step: int  # optimiser steps before it
    evaluated: bool  # whether the evaluation of this step is in the log already
    log_bytes: int  # length of the log when it was saved
    model: dict[str, Any]  # the configuration of the model
    settings: dict[str, Any]  # those that decide what the run computes
    shards: list[list[Any]]  # name and tokens of every train shard
    updates: int  # updates that the optimiser has made; skipped steps do not count
    data: dict[str, Any]  # states of loader, outlier detector and gradient scaler
    outliers: dict[str, Any]
    scaler: dict[str, Any]
    files: dict[str, dict[str, int]]  # size and CRC-32 of every file


@dataclass(frozen=True)
class ResumePoint:
    """Where a run begins: at an intact checkpoint with its record, or without one at step 0."""

    path: Path | None = None
    record: Record | None = None
    damaged: list[str] = field(default_factory=list)  # a sentence about each newer checkpoint that is damaged
    complete: bool = False  # there is nothing left to do

    @property
    def step(self) -> int:
        """The first step to make."""
        return self.record.step if self.record else 0


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, newest first, intact or not."""
    found = [path for path in folder.glob("step_*") if path.is_dir() and path.name[5:].isdecimal()]
    return sorted(found, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The number of steps before a checkpoint, from its name."""
    return int(path.name.removeprefix("step_"))


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint. If that is interrupted, what remains has another name. Raises OSError."""
    renamed = path.with_name(path.name + ".tmp")
    shutil.rmtree(renamed, ignore_errors=True)
    os.rename(path, renamed)
    shutil.rmtree(renamed)


def complete_checkpoint(temporary: Path, record: Record, keep: int, keep_every: int) -> None:
    """Write the record beside the tensors in `step_….tmp`, then give the folder its final name. Raises OSError.

    Of the older checkpoints only the newest `keep - 1` remain, and those whose step `keep_every` divides (0: none).
    """
    write_atomically(temporary / RECORD, json.dumps(dataclasses.asdict(record), indent=2).encode() + b"\n")
    final = temporary.with_suffix("")
    if final.exists():  # a damaged one, from which the run did not resume
        remove_checkpoint(final)
    os.rename(temporary, final)
    sync_folder(final.parent)
    for old in list_checkpoints(final.parent)[keep:]:
        if not (keep_every and step_of(old) % keep_every == 0):
            remove_checkpoint(old)


def read_record(path: Path) -> Record:
    """The record of a checkpoint, after every file was compared with its checksum. Raises UserError for any damage."""
    try:
        record = Record(**json.loads((path / RECORD).read_text()))
        for name, expected in record.files.items():
            if checksum(path / name) != expected:
                raise UserError(f"the checkpoint {path} is damaged: {name} is not as it was written")
        return record
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise UserError(f"the checkpoint {path} is incomplete: {missing} is missing") from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"the checkpoint {path} is damaged: {RECORD} can't be read ({error})") from None


def checksum(path: Path) -> dict[str, int]:
    """Size in bytes and CRC-32 of a file: enough to notice damage, at the speed of memory. Raises OSError."""
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            crc = zlib.crc32(block, crc)
    return {"bytes": path.stat().st_size, "crc32": crc}


def newest_intact(path: Path) -> ResumePoint:
    """The newest checkpoint of a run folder, or the one that `path` is, whose files are all as they were written."""
    damaged: list[str] = []
    for each in [path] if (path / RECORD).exists() else list_checkpoints(path):
        try:
            return ResumePoint(each, read_record(each), damaged)
        except UserError as error:
            damaged.append(str(error))
    return ResumePoint(damaged=damaged)


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model under their names in a checkpoint."""
    return {f"model.{name}": p.detach() for name, p in model.named_parameters()}


def load_tensors(
    path: Path, tensors: dict[str, Tensor], optional: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Fill `tensors`, and those of `optional` that the checkpoint holds, in place; return the latter.

    Each process reads what it holds, in whatever way the tensors were divided when they were saved. Raises UserError
    where a tensor is missing or has another shape, because the checkpoint is of another model.
    """
    import torch.distributed.checkpoint as dcp  # takes half a second, and most commands don't need it

    reader = dcp.HuggingFaceStorageReader(str(path))
    saved = reader.read_metadata().state_dict_metadata
    for name, tensor in tensors.items():
        shape = tuple(getattr(saved.get(name), "size", ()))
        if shape != tuple(tensor.shape):
            raise UserError(
                f"{path} is of another model: its {name} is {shape or 'missing'}, here {tuple(tensor.shape)}; "
                "resume with the model that was saved"
            )
    found = {name: tensor for name, tensor in (optional or {}).items() if name in saved}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as wanted: processes read independently
        dcp.load({**tensors, **found}, storage_reader=reader, no_dist=True)
    return found


def read_config(folder: Path) -> GPTConfig:
    """The configuration of the model of an unfinished run. Raises UserError as `read_model`."""
    return config_from_json(_newest(folder)[1].model)


def read_model(folder: Path) -> GPT | Modern:
    """The model of an unfinished run, from its newest intact checkpoint. Raises UserError if there is none."""
    path, record = _newest(folder)
    model = build(config_from_json(record.model))
    load_tensors(path, model_tensors(model))
    return model


def _newest(folder: Path) -> tuple[Path, Record]:
    found = newest_intact(folder)
    if found.path is None or found.record is None:
        raise UserError(f"the run in {folder} has saved nothing yet; wait for its first checkpoint")
    return found.path, found.record
