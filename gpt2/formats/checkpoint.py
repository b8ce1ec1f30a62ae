"""The checkpoints of a run folder: found, checked and read. `gpt2/training/checkpoint.py` writes them.

    step_000250/process_000.safetensors …   one file per process: its part of the weights and of the optimiser's state
    step_000250/state.json                  the record: step, place in the data, settings, checksum of every file

The files have the sharded safetensors layout of torch.distributed.checkpoint, which reads them into any number of
processes. Nothing in them can run code. Built in notebook 12.
"""

import json
import os
import shutil
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from gpt2.formats.build import build, config_from_json
from gpt2.model import GPT
from gpt2.modern.model import Modern
from gpt2.system.errors import UserError

RECORD = "state.json"
BLOCK = 2**20  # bytes read or written at a time: they stay in a processor's cache while they are summed


@dataclass(frozen=True)
class Record:
    """What `state.json` says of a checkpoint, in the types of JSON."""

    step: int  # optimiser steps that lie behind it
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
class Found:
    """The newest intact checkpoint of a run folder, if any, and a sentence about each newer one that is damaged."""

    path: Path | None
    record: Record | None
    damaged: list[str]


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run folder, newest first, intact or not."""
    found = [path for path in folder.glob("step_*") if path.is_dir() and path.name[5:].isdecimal()]
    return sorted(found, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The number of steps that lie behind a checkpoint, from its name."""
    return int(path.name.removeprefix("step_"))


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint. If that is interrupted, what remains has another name. Raises OSError."""
    renamed = path.with_name(path.name + ".tmp")
    shutil.rmtree(renamed, ignore_errors=True)
    os.rename(path, renamed)
    shutil.rmtree(renamed)


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


def newest_intact(folder: Path) -> Found:
    """The newest checkpoint of a run folder whose files are all as they were written."""
    damaged: list[str] = []
    for path in list_checkpoints(folder):
        try:
            return Found(path, read_record(path), damaged)
        except UserError as error:
            damaged.append(str(error))
    return Found(None, None, damaged)


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model under their names in a checkpoint."""
    return {f"model.{name}": p.detach() for name, p in model.named_parameters()}


def load_tensors(
    path: Path, tensors: dict[str, Tensor], optional: dict[str, Tensor] | None = None, world_size: int = 1
) -> dict[str, Tensor]:
    """Fill `tensors`, and those of `optional` that the checkpoint holds, in place; return the latter.

    They may be divided over the processes in another way than when they were saved. All processes call this together.
    Raises UserError where a tensor is missing or has another shape: the checkpoint is of another model.
    """
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
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # expected in a single process
        dcp.load({**tensors, **found}, storage_reader=reader, no_dist=world_size == 1)
    return found


def read_model(folder: Path) -> GPT | Modern:
    """The model of a run that has not ended, from its newest intact checkpoint. Raises UserError if there is none."""
    found = newest_intact(folder)
    if found.path is None or found.record is None:
        raise UserError(f"the run in {folder} has saved nothing yet; wait for its first checkpoint")
    model = build(config_from_json(found.record.model))
    load_tensors(found.path, model_tensors(model))
    return model
