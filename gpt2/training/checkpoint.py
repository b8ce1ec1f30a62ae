"""Checkpoints, saved: everything that a run needs to go on as if it had never stopped.

A checkpoint is a folder that appears whole or not at all; `gpt2/formats/checkpoint.py` says what is in it, and reads
it. Training stops only while tensors are copied to main memory; a thread writes them. They are not written by
torch.distributed.checkpoint: torch 2.13's writer held Python's lock for more than a second per 1.5 GB, and so stopped
the training that it should run beside. Built in notebook 12.
"""

import dataclasses
import json
import os
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gpt2.data.loader import TokenLoader
from gpt2.formats.checkpoint import (
    RECORD,
    Record,
    checksum,
    list_checkpoints,
    load_tensors,
    model_tensors,
    remove_checkpoint,
    step_of,
)
from gpt2.model import GPT
from gpt2.modern.model import Modern
from gpt2.optim.optimizer import AdamWAndMuon
from gpt2.optim.outliers import OutlierDetector
from gpt2.system.devices import synchronize
from gpt2.system.files import sync_folder, write_atomically
from gpt2.system.processes import Processes, balance

Part = tuple[Tensor, list[int]]  # what one process holds of a tensor, and where in the whole tensor it begins


@dataclass
class TrainingState:
    """All that changes while a run goes on: what a checkpoint holds."""

    model: GPT | Modern
    trained: nn.Module  # the same model as it is trained: compiled, divided over the processes
    optimizer: AdamWAndMuon
    scaler: torch.amp.GradScaler
    loader: TokenLoader
    outliers: OutlierDetector
    step: int = 0  # steps that are done
    updates: int = 0  # of them, those in which the optimiser made an update
    evaluated: bool = False  # whether the model was evaluated at this step

    def tensors(self) -> dict[str, Tensor]:
        """The weights and the optimiser's state for each: whole, or this process's part of what is divided."""
        tensors = model_tensors(self.model)
        for name, p in self.model.named_parameters():
            for key, value in self.optimizer.state[p].items():
                if key != "step":  # that is `updates`
                    tensors[f"optimizer.{key}.{name}"] = value
        return tensors

    def exclusive(self) -> set[str]:
        """Names of tensors that no other process has: Muon's momentum of a matrix lies with its owner."""
        parameters = self.model.named_parameters()
        states = [(name, key, p) for name, p in parameters for key in self.optimizer.state[p]]
        return {f"optimizer.{key}.{name}" for name, key, p in states if self.optimizer.is_exclusive(p, key)}

    def restore(self, path: Path, record: Record, processes: Processes) -> None:
        """Go on from a checkpoint that any number of processes have saved. Raises UserError as `load_tensors`."""
        self.step, self.updates, self.evaluated = record.step, record.updates, record.evaluated
        if self.updates:
            self.optimizer.begin(self.updates)
        self.loader.load_state_dict(record.data)
        self.outliers.load_state_dict(record.outliers)
        if record.scaler and self.scaler.is_enabled():
            self.scaler.load_state_dict(record.scaler)
        # a run on more processes than were saved has more random states than there are in the checkpoint
        found = load_tensors(path, self.tensors(), random_states(processes), processes.world_size)
        for name, random_state in found.items():
            if name.startswith("random.cuda"):
                torch.cuda.set_rng_state(random_state, processes.device)
            else:
                torch.set_rng_state(random_state)


def random_states(processes: Processes) -> dict[str, Tensor]:
    """The states of this process's random number generators, under names that no other process has."""
    states = {f"random.cpu.{processes.rank}": torch.get_rng_state()}
    if processes.device.type == "cuda":
        states[f"random.cuda.{processes.rank}"] = torch.cuda.get_rng_state(processes.device)
    return states


class Checkpoints:
    """The checkpoints of one run folder, written beside the training by one thread per process."""

    def __init__(self, folder: Path, processes: Processes, keep: int = 2, keep_every: int = 0):
        """Keep the newest `keep` checkpoints, and for good those whose step `keep_every` divides (0: none)."""
        self.folder, self.processes, self.keep, self.keep_every = folder, processes, keep, keep_every
        # a group of its own: two threads that used one group would take each other's messages
        self.group = dist.new_group(backend="gloo") if processes.world_size > 1 else None
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[None] | None = None
        self.copies: dict[str, Tensor] = {}

    def save(self, state: TrainingState, fingerprint: dict[str, Any], log_bytes: int = 0) -> str | None:
        """Copy the state, and write it in the background.

        `fingerprint` identifies the run (settings and shards), `log_bytes` is the length of its log. Waits for a save
        that is still being written; returns what went wrong with that one (see `finish`).
        """
        problem = self.finish()
        record = Record(
            step=state.step,
            evaluated=state.evaluated,
            log_bytes=log_bytes,
            model=dataclasses.asdict(state.model.config),
            updates=state.updates,
            data=state.loader.state_dict(),
            outliers=state.outliers.state_dict(),
            scaler=state.scaler.state_dict(),
            files={},
            **fingerprint,
        )
        random = {name: (tensor, [0]) for name, tensor in random_states(self.processes).items()}
        parts = random | self._own_parts(state.tensors(), state.exclusive())
        copied = {name: (self._copy(name, part), begins) for name, (part, begins) in parts.items()}
        synchronize(self.processes.device)
        self.writing = self.thread.submit(self._write, copied, record)
        return problem

    def finish(self, block: bool = True) -> str | None:
        """Wait for the save that is being written, if any; without `block`, only look whether it is over.

        Returns why it could not be written (a full disk, …), or None. The checkpoint before it is intact.
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

    def close(self) -> str | None:
        """Wait for the last save, end the thread and leave its group; returns as `finish`."""
        problem = self.finish()
        self.thread.shutdown()
        if self.group is not None:
            dist.destroy_process_group(self.group)
            self.group = None
        return problem

    def _own_parts(self, tensors: dict[str, Tensor], exclusive: set[str]) -> dict[str, Part]:
        """What this process saves: its shards, what it has exclusively, and a fair share of what all processes have."""
        shared = [name for name, p in tensors.items() if not isinstance(p, DTensor) and name not in exclusive]
        owners = balance([tensors[name].numel() for name in shared], self.processes.world_size)
        others = {name for name, owner in zip(shared, owners, strict=True) if owner != self.processes.rank}
        parts: dict[str, Part] = {}
        for name, tensor in tensors.items():
            if isinstance(tensor, DTensor):
                if tensor.to_local().numel():
                    parts[name] = (tensor.to_local(), list(tensor.__create_chunk_list__()[0].offsets))
            elif name not in others:
                parts[name] = (tensor, [0] * tensor.dim())
        return parts

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        """A copy in main memory, at the same place for every save (pinned, so that a GPU copies at full speed)."""
        if name not in self.copies:
            pinned = tensor.device.type == "cuda"
            self.copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
        return self.copies[name].copy_(tensor, non_blocking=True)

    def _write(self, parts: dict[str, Part], record: Record) -> None:
        """In the thread: write this process's file. When all have theirs, the first makes the checkpoint appear."""
        temporary = self.folder / f"step_{record.step:06d}.tmp"
        written: dict[str, Any] | OSError
        try:
            written = _write_file(temporary, f"process_{self.processes.rank:03d}.safetensors", parts)
        except OSError as error:
            written = error
        everyone: list[Any] = [written] * self.processes.world_size
        if self.group is not None:
            dist.all_gather_object(everyone, written, group=self.group)
        errors = [each for each in everyone if isinstance(each, OSError)]
        if self.processes.is_first:
            try:
                if not errors:
                    files = {name: facts for each in everyone for name, facts in each.items()}
                    self._seal(temporary, dataclasses.replace(record, files=files))
            except OSError as error:
                errors.append(error)
            if errors:
                shutil.rmtree(temporary, ignore_errors=True)
        if errors:
            raise errors[0]

    def _seal(self, temporary: Path, record: Record) -> None:
        """Write the record, give the folder its name, and remove checkpoints that need not be kept."""
        write_atomically(temporary / RECORD, json.dumps(dataclasses.asdict(record), indent=2).encode() + b"\n")
        final = temporary.with_suffix("")
        if final.exists():  # a damaged one, from which the run did not resume
            remove_checkpoint(final)
        os.rename(temporary, final)
        sync_folder(self.folder)
        for old in list_checkpoints(self.folder)[self.keep :]:
            if not (self.keep_every and step_of(old) % self.keep_every == 0):
                remove_checkpoint(old)


def _write_file(folder: Path, name: str, parts: dict[str, Part]) -> dict[str, Any]:
    """Write and sync the file of one process; its name → its size and checksum. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    places = {key: {"saved_offsets": begins} for key, (_, begins) in parts.items()}
    tensors = {key: part for key, (part, _) in parts.items()}
    try:
        save_file(tensors, folder / name, metadata={"DCP_SHARDING_INFO": json.dumps(places)})
    except SafetensorError as error:  # it names the operating system's error in its text
        number = re.search(r"os error (\d+)", str(error))
        raise (OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))) from None
    with open(folder / name, "rb+") as file:
        os.fsync(file.fileno())
    return {name: checksum(folder / name)}
