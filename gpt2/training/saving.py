"""Checkpoints, saved: everything that a run needs to continue as if it had never stopped.

A checkpoint is a folder that appears whole or not at all; `gpt2/formats/checkpoint.py` says what is in it, and reads
it. Training pauses only while tensors are copied to main memory. A thread then writes them while training continues.
The writer of torch.distributed.checkpoint (torch 2.13) is not used: it held Python's lock for more than a second per
1.5 GB, and training had to wait. Built in notebook 12.
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
from gpt2.formats.checkpoint import Record, ResumePoint, checksum, complete_checkpoint, load_tensors, model_tensors
from gpt2.model import GPT
from gpt2.modern.model import Modern
from gpt2.optim.optimizer import AdamWAndMuon
from gpt2.optim.outliers import OutlierDetector
from gpt2.system.devices import synchronize
from gpt2.system.processes import Processes

Part = tuple[Tensor, list[int]]  # what one process holds of a tensor, and where in the whole tensor it begins


@dataclass
class TrainingState:
    """Everything that changes during a run: what a checkpoint holds."""

    model: GPT | Modern
    trained: nn.Module  # the same model as it is trained: compiled, divided over the processes
    optimizer: AdamWAndMuon
    scaler: torch.amp.GradScaler
    loader: TokenLoader
    outliers: OutlierDetector
    step: int = 0  # steps that are done
    updates: int = 0  # steps in which the optimiser made an update
    evaluated: bool = False  # whether the model was evaluated at this step

    def tensors(self) -> dict[str, Tensor]:
        """The weights and the optimiser's state for each: whole, or this process's part of what is divided."""
        tensors = model_tensors(self.model)
        for name, p in self.model.named_parameters():
            for key, value in self.optimizer.state[p].items():
                if key != "step":  # that is `updates`
                    tensors[f"optimizer.{key}.{name}"] = value
        return tensors

    def restore(self, resume: ResumePoint, processes: Processes) -> None:
        """Continue from a checkpoint, which any number of processes have saved, or from the beginning.

        Raises UserError as `load_tensors`.
        """
        record = resume.record
        if resume.path is None or record is None:
            return
        self.step, self.updates, self.evaluated = record.step, record.updates, record.evaluated
        if self.updates:
            self.optimizer.begin(self.updates)
        self.loader.load_state_dict(record.data)
        self.outliers.load_state_dict(record.outliers)
        if record.scaler and self.scaler.is_enabled():
            self.scaler.load_state_dict(record.scaler)
        # a run on more processes than have saved finds no random state for the additional ones
        found = load_tensors(resume.path, self.tensors(), random_states(processes))
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
    """The checkpoints of one run folder, written during training by one thread per process."""

    def __init__(self, folder: Path, processes: Processes, keep: int = 2, keep_every: int = 0):
        """Keep the newest `keep` checkpoints, and for good those whose step `keep_every` divides (0: none)."""
        self.folder, self.processes, self.keep, self.keep_every = folder, processes, keep, keep_every
        # its own group, because two threads that use one group receive each other's messages
        self.group = dist.new_group(backend="gloo") if processes.world_size > 1 else None
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[None] | None = None
        self.copies: dict[str, Tensor] = {}

    def save(self, state: TrainingState, fingerprint: dict[str, Any], log_bytes: int = 0) -> str | None:
        """Wait for the previous save, then copy the state and write it in the background.

        `fingerprint` identifies the run (settings and shards); `log_bytes` is the length of its log. Returns what went
        wrong with the previous save, as `finish`.
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
        copies: dict[str, Part] = {}
        for name, (part, begins) in self._parts(state.tensors()).items():
            if name not in self.copies:  # allocated once; from pinned memory a GPU copies at full speed
                pinned = part.device.type == "cuda"
                self.copies[name] = torch.empty(part.shape, dtype=part.dtype, pin_memory=pinned)
            copies[name] = self.copies[name].copy_(part, non_blocking=True), begins
        synchronize(self.processes.device)
        self.writing = self.thread.submit(self._write, copies, record)
        return problem

    def finish(self, block: bool = True) -> str | None:
        """Wait for the save that is being written, if any; without `block`, only check whether it has ended.

        Returns why it could not be written (a full disk, …), or None. The previous checkpoint stays intact.
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

    def _parts(self, tensors: dict[str, Tensor]) -> dict[str, Part]:
        """What this process saves: what it alone has, and a fair share of what all processes have."""
        parts: dict[str, Part] = {name: (state, [0]) for name, state in random_states(self.processes).items()}
        # only the owner of a matrix has its momentum (Muon); all processes have every other whole tensor
        whole = [name for name, tensor in tensors.items() if not isinstance(tensor, DTensor)]
        common = [name for name in whole if not name.startswith("optimizer.momentum.")]
        common.sort(key=lambda name: tensors[name].numel())
        mine = common[self.processes.rank :: self.processes.world_size]
        others = set(common).difference(mine)
        for name, tensor in tensors.items():
            if not isinstance(tensor, DTensor):
                if name not in others:
                    parts[name] = tensor, [0] * tensor.dim()
            elif tensor.to_local().numel():
                parts[name] = tensor.to_local(), list(tensor.__create_chunk_list__()[0].offsets)
        return parts

    def _write(self, parts: dict[str, Part], record: Record) -> None:
        """In the thread: write this process's file. When all files are written, the first completes the checkpoint."""
        temporary, rank = self.folder / f"step_{record.step:06d}.tmp", self.processes.rank
        written: dict[str, Any] | OSError
        try:
            written = _write_file(temporary / f"process_{rank:03d}.safetensors", parts)
        except OSError as error:
            written = error
        everyone: list[Any] = [written] * self.processes.world_size
        if self.group is not None:
            dist.all_gather_object(everyone, written, group=self.group)
        try:
            for each in everyone:
                if isinstance(each, OSError):
                    raise each
            if self.processes.is_first:
                files = {name: facts for each in everyone for name, facts in each.items()}
                complete_checkpoint(temporary, dataclasses.replace(record, files=files), self.keep, self.keep_every)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _write_file(path: Path, parts: dict[str, Part]) -> dict[str, Any]:
    """Write and sync the file of one process; its name → its size and checksum. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    places = {name: {"saved_offsets": begins} for name, (_, begins) in parts.items()}
    tensors = {name: part for name, (part, _) in parts.items()}
    try:
        save_file(tensors, path, metadata={"DCP_SHARDING_INFO": json.dumps(places)})
    except SafetensorError as error:  # names the error of the operating system in its text only
        number = re.search(r"os error (\d+)", str(error))
        raise (OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))) from None
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return {path.name: checksum(path)}
