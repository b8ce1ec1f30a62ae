"""Checkpoints: everything that a run needs to go on as if it had never stopped.

Holds:    `Training` (what there is to save), `Checkpoints` (save, keep), `newest` (the last intact one), `load`.
Built in: notebook 12.
Imports:  torch, gpt2.distributed, gpt2.errors, gpt2.files, gpt2.loader, gpt2.optim, gpt2.outliers.

A checkpoint is a folder that appears whole or not at all:

    step_000250/process_000.safetensors …   one file a process: its part of the weights and of the optimiser's state
    step_000250/state.json                  step, place in the data, settings, and the checksum of every file

Nothing in it can run code. Training stops only while the tensors are copied to main memory; a thread does the rest.
The files follow the sharded safetensors layout of torch.distributed.checkpoint, which reads them back into any number
of processes. They are not written by it: torch 2.13's writer held Python's lock for more than a second of 1.5 GB, and
so stopped the training that it was to run beside. `safetensors.save_file` lets go of the lock, but took 2.9 s of a
core where plain writes, and the checksum with them, take 0.8 s: on two cores, a step beside it took twice as long.
"""

import itertools
import json
import os
import shutil
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gpt2.distributed import Processes, wait
from gpt2.errors import UserError
from gpt2.files import sync_folder, write_whole
from gpt2.loader import TokenLoader
from gpt2.optim import AdamWAndMuon
from gpt2.outliers import Outliers

RECORD = "state.json"
BLOCK = 2**20  # bytes written at a time
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8"}  # safetensors' names
Part = tuple[Tensor, list[int]]  # what one process holds of a tensor, and where in the whole tensor it begins


@dataclass
class Training:
    """All that changes while a run goes on."""

    model: nn.Module
    optimizer: AdamWAndMuon
    scaler: torch.amp.GradScaler
    loader: TokenLoader
    outliers: Outliers
    updates: int = 0  # optimiser steps made; skipped ones don't count

    def tensors(self) -> dict[str, Tensor]:
        """What this process has, or its part of what they have divided: weights, and the optimiser's state of each."""
        tensors = weights(self.model)
        for name, p in self.model.named_parameters():
            for key, value in self.optimizer.state[p].items():
                if key != "step":  # which is `updates`
                    tensors[f"optimizer.{key}.{name}"] = value
        return tensors

    def alone(self) -> set[str]:
        """Names of those tensors that no other process has: what Muon remembers of a matrix lies with its owner."""
        parameters = self.model.named_parameters()
        states = [(name, key, p) for name, p in parameters for key in self.optimizer.state[p]]
        return {f"optimizer.{key}.{name}" for name, key, p in states if self.optimizer.alone(p, key)}

    def record(self) -> dict[str, Any]:
        """The rest, as JSON can hold it."""
        scaler = self.scaler.state_dict()
        parts = {"data": self.loader.state_dict(), "outliers": self.outliers.state_dict(), "scaler": scaler}
        return {"updates": self.updates, **parts}

    def restore(self, checkpoint: Path, record: dict[str, Any], processes: Processes) -> None:
        """Go on from a checkpoint that was saved by any number of processes. Raises UserError as `load`."""
        self.updates = record["updates"]
        if self.updates:
            self.optimizer.begin(self.updates)
        self.loader.load_state_dict(record["data"])
        self.outliers.load_state_dict(record["outliers"])
        if record["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(record["scaler"])
        for name, state in load(checkpoint, self.tensors(), random_states(processes), processes).items():
            if name.startswith("random.cuda"):
                torch.cuda.set_rng_state(state, processes.device)
            else:
                torch.set_rng_state(state)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model under their names in a checkpoint."""
    return {f"model.{name}": p.detach() for name, p in model.named_parameters()}


def random_states(processes: Processes) -> dict[str, Tensor]:
    """The states of this process's random number generators, by names that no other process has."""
    states = {f"random.cpu.{processes.rank}": torch.get_rng_state()}
    if processes.device.type == "cuda":
        states[f"random.cuda.{processes.rank}"] = torch.cuda.get_rng_state(processes.device)
    return states


class Checkpoints:
    """The checkpoints of one run folder, written beside the training by one thread a process."""

    def __init__(self, folder: Path, processes: Processes, keep: int, keep_every: int):
        """Keep the newest `keep`, and for good those whose step `keep_every` divides (0: none)."""
        self.folder, self.processes, self.keep, self.keep_every = folder, processes, keep, keep_every
        # a group of its own: two threads that used one group would take each other's messages
        self.group = dist.new_group(backend="gloo") if processes.world_size > 1 else None
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[None] | None = None
        self.copies: dict[str, Tensor] = {}

    def save(self, step: int, training: Training, record: dict[str, Any]) -> str | None:
        """Copy what `training` has changed, and write it with `record` in the background.

        Waits for a save that is still being written; returns what went wrong with it (see `finish`).
        """
        problem = self.finish()
        own = random_states(self.processes)
        parts = {name: (tensor, [0]) for name, tensor in own.items()} | self._mine(training.tensors(), training.alone())
        record = {**record, **training.record()}
        copied = {name: (self._copy(name, part), begins) for name, (part, begins) in parts.items()}
        wait(self.processes.device)
        self.writing = self.thread.submit(self._write, step, copied, record)
        return problem

    def finish(self, block: bool = True) -> str | None:
        """Wait for the save that is being written, if any (or, without `block`, only look whether it is over).

        Returns why it could not be written (a full disk, …); None where all is well. The checkpoint before is intact.
        """
        if self.writing is None or not (block or self.writing.done()):
            return None
        try:
            self.writing.result()
        except OSError as error:
            return error.strerror or str(error)
        finally:
            self.writing = None
        return None

    def _mine(self, tensors: dict[str, Tensor], alone: set[str]) -> dict[str, Part]:
        """This process's part: what it has alone, its shard of what is divided, a fair share of what all have."""
        parts: dict[str, Part] = {}
        load = [0] * self.processes.world_size
        for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].numel()):
            if isinstance(tensor, DTensor):
                if tensor.to_local().numel():
                    parts[name] = (tensor.to_local(), list(tensor.__create_chunk_list__()[0].offsets))
                continue
            owner = self.processes.rank
            if name not in alone:  # all processes come here with the same tensors, and agree
                owner = load.index(min(load))
                load[owner] += tensor.numel()
            if owner == self.processes.rank:
                parts[name] = (tensor, [0] * tensor.dim())
        return parts

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        """A copy in main memory, in the same place at every save (pinned, so that a GPU copies at full speed)."""
        if name not in self.copies:
            pinned = tensor.device.type == "cuda"
            self.copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
        return self.copies[name].copy_(tensor, non_blocking=True)

    def _write(self, step: int, parts: dict[str, Part], record: dict[str, Any]) -> None:
        """In the thread: write this process's file; when all have theirs, the first makes the checkpoint appear."""
        temporary = self.folder / f"step_{step:06d}.tmp"
        written: dict[str, Any] | OSError
        try:
            written = _write_part(temporary, self.processes.rank, parts)
        except OSError as error:
            written = error
        everyone: list[Any] = [None] * self.processes.world_size
        if self.group is None:
            everyone = [written]
        else:
            dist.all_gather_object(everyone, written, group=self.group)
        errors = [each for each in everyone if isinstance(each, OSError)]
        if self.processes.is_first:
            try:
                if not errors:
                    files = {name: facts for each in everyone for name, facts in each.items()}
                    self._seal(temporary, {"step": step, **record, "files": files})
            except OSError as error:
                errors.append(error)
            if errors:
                shutil.rmtree(temporary, ignore_errors=True)
        if errors:
            raise errors[0]

    def _seal(self, temporary: Path, record: dict[str, Any]) -> None:
        """Write the record, give the folder its name, and remove checkpoints that need not be kept."""
        write_whole(temporary / RECORD, json.dumps(record, indent=2).encode() + b"\n")
        final = temporary.with_suffix("")
        if final.exists():  # a damaged one, that was not resumed from
            remove(final)
        os.rename(temporary, final)
        sync_folder(self.folder)
        for old in find(self.folder)[self.keep :]:
            if not (self.keep_every and step_of(old) % self.keep_every == 0):
                remove(old)

    def close(self) -> str | None:
        """Wait for the last save, end the thread and leave its group; returns as `finish`."""
        problem = self.finish()
        self.thread.shutdown()
        if self.group is not None:
            dist.destroy_process_group(self.group)
            self.group = None
        return problem


def _write_part(folder: Path, rank: int, parts: dict[str, Part]) -> dict[str, Any]:
    """Write one process's file and sync it: its name → its size and checksum. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"process_{rank:03d}.safetensors"
    header: dict[str, Any] = {
        "__metadata__": {"DCP_SHARDING_INFO": json.dumps({n: {"saved_offsets": at} for n, (_, at) in parts.items()})}
    }
    end = 0
    for key, (part, _) in parts.items():
        begin, end = end, end + part.numel() * part.element_size()
        header[key] = {"dtype": DTYPES[part.dtype], "shape": list(part.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    crc, size = 0, 0
    with open(folder / name, "wb", buffering=0) as file:
        for block in itertools.chain([memoryview(len(text).to_bytes(8, "little") + text)], _blocks(parts)):
            crc, size = zlib.crc32(block, crc), size + len(block)
            while block:  # a disk that is nearly full takes less than it is given
                block = block[file.write(block) :]
        os.fsync(file.fileno())
    return {name: {"bytes": size, "crc32": crc}}


def _blocks(parts: dict[str, Part]) -> Iterator[memoryview]:
    """The bytes of the tensors, in pieces that stay in a processor's cache while they are summed and written."""
    for tensor, _ in parts.values():
        content = tensor.reshape(-1).view(torch.uint8).numpy().data
        for begin in range(0, len(content), BLOCK):
            yield content[begin : begin + BLOCK]


def checksum(path: Path) -> dict[str, int]:
    """Size in bytes and CRC-32 of a file: enough to tell a damaged file, at memory speed. Raises OSError."""
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            crc = zlib.crc32(block, crc)
    return {"bytes": path.stat().st_size, "crc32": crc}


def step_of(path: Path) -> int:
    """The number of steps that lie behind a checkpoint, from its name."""
    return int(path.name.removeprefix("step_"))


def find(folder: Path) -> list[Path]:
    """The checkpoints of a run folder by name, newest first, intact or not."""
    found = [path for path in folder.glob("step_*") if path.is_dir() and path.name[5:].isdecimal()]
    return sorted(found, key=step_of, reverse=True)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint so that, interrupted, it is not taken for one. Raises OSError."""
    doomed = checkpoint.with_name(checkpoint.name + ".tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(checkpoint, doomed)
    shutil.rmtree(doomed)


def read(checkpoint: Path) -> dict[str, Any]:
    """The record of a checkpoint whose files are all as they were written. Raises UserError naming what is not."""
    try:
        record = json.loads((checkpoint / RECORD).read_text())
        for name, facts in record["files"].items():
            if checksum(checkpoint / name) != facts:
                raise UserError(f"the checkpoint {checkpoint} is damaged: {name} is not as it was written")
        return record
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise UserError(f"the checkpoint {checkpoint} is incomplete: {missing} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the checkpoint {checkpoint} is damaged: {RECORD} can't be read ({error})") from None


def newest(folder: Path) -> tuple[Path | None, dict[str, Any], list[str]]:
    """The newest intact checkpoint of a run folder with its record, and a sentence about each newer one skipped."""
    skipped: list[str] = []
    for checkpoint in find(folder):
        try:
            return checkpoint, read(checkpoint), skipped
        except UserError as error:
            skipped.append(str(error))
    return None, {}, skipped


def load(checkpoint: Path, tensors: dict[str, Tensor], own: dict[str, Tensor], processes: Processes) -> dict:
    """Fill `tensors` (which may be divided in another way than when saved) from an intact checkpoint, in place.

    Returns those of `own` that the checkpoint has, filled too: a run on more processes has more than were saved.
    Raises UserError where a tensor is missing or has another shape: the checkpoint is of another model.
    """
    reader = dcp.HuggingFaceStorageReader(str(checkpoint))
    saved = reader.read_metadata().state_dict_metadata
    for name, tensor in tensors.items():
        shape = tuple(getattr(saved.get(name), "size", ()))
        if shape != tuple(tensor.shape):
            raise UserError(
                f"{checkpoint} is of another model: its {name} is {shape or 'missing'}, here {tuple(tensor.shape)}; "
                "resume with the model that was saved"
            )
    mine = {name: tensor for name, tensor in own.items() if name in saved}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # said of one process, which is meant
        dcp.load({**tensors, **mine}, storage_reader=reader, no_dist=processes.world_size == 1)
    return mine
