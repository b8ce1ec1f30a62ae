"""The folder of a run: locked against other processes, checked against other runs, and where the run resumes.

    runs/gpt2-124m/log.txt        the log
    runs/gpt2-124m/config.json    every setting
    runs/gpt2-124m/step_000250/   checkpoints
    runs/gpt2-124m/model/         the trained weights, in the Hugging Face layout
    runs/gpt2-124m/DONE           the run is complete

Built in notebook 12.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gpt2.config.run import Run, from_json, to_json
from gpt2.formats.checkpoint import (
    RECORD,
    Found,
    Record,
    list_checkpoints,
    newest_intact,
    read_record,
    remove_checkpoint,
)
from gpt2.formats.huggingface import save_pretrained
from gpt2.logs.writer import truncate_log
from gpt2.model import GPT
from gpt2.modern.model import Modern
from gpt2.system.errors import UserError
from gpt2.system.files import write_atomically
from gpt2.system.processes import Processes

DONE, LOCK, OWNER = "DONE", ".lock", ".owner"
DECISIVE = ("model", "parts", "data", "optim", "schedule")  # the groups of settings that decide what is computed


@dataclass(frozen=True)
class ResumePoint:
    """Where a run begins: at step 0, or at a checkpoint with its record. `notes` are for the log."""

    path: Path | None = None
    record: Record | None = None
    notes: list[str] = field(default_factory=list)
    complete: bool = False  # there is nothing left to do

    @property
    def step(self) -> int:
        """The first step to make."""
        return self.record.step if self.record else 0


@contextlib.contextmanager
def open_run_folder(run: Run, fingerprint: dict[str, Any], processes: Processes) -> Iterator[ResumePoint]:
    """Where `run` begins; its folder is locked until the block ends. All processes call this together.

    Raises UserError where the folder is in use or holds another run, or where its checkpoint was made with settings
    that change this one.
    """
    with contextlib.ExitStack() as stack:
        outcome: ResumePoint | UserError | None = None
        if processes.is_first:
            try:
                stack.enter_context(_locked(Path(run.log.folder)))
                outcome = _find_resume_point(run, fingerprint)
            except UserError as error:
                outcome = error
        outcome = processes.broadcast(outcome)
        if isinstance(outcome, UserError):
            raise outcome
        assert outcome is not None
        yield outcome


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder. The kernel releases the lock when this process ends, in whatever way."""
    owner = folder / OWNER
    try:
        with FileLock(folder / LOCK, timeout=0):
            owner.write_text(str(os.getpid()))
            yield
    except Timeout:
        process = owner.read_text() if owner.exists() else "unknown"
        raise UserError(f"{folder} is in use by process {process}; wait for it, or name another --log.folder") from None


def _find_resume_point(run: Run, fingerprint: dict[str, Any]) -> ResumePoint:
    """Decide where `run` begins, and prepare its folder."""
    folder = Path(run.log.folder)
    for unfinished in folder.glob("*.tmp"):
        shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0  # by torchrun, after a process died
    if (run.resume == "never" or run.log.overwrite) and not restarted:
        if (folder / "log.txt").exists() and not run.log.overwrite:
            raise UserError(f"{folder} holds a run already; name another --log.folder, or replace it: --log.overwrite")
        _remove_run(folder)
        return _prepare(run, folder, ResumePoint())
    found = newest_intact(folder)
    if run.resume not in ("auto", "never"):
        found = _find_named(Path(run.resume), folder, found)
    if found.record is None:
        _refuse_other_run(run, folder)
    elif not run.allow_changes and (changes := differences(found.record, fingerprint)):
        raise UserError(
            f"the checkpoint {found.path} was made with other settings: {', '.join(changes)}; give those, "
            "start anew in another --log.folder, or go on with the new ones: --allow-changes"
        )
    if (folder / DONE).exists() and (found.record is None or found.record.step >= run.schedule.steps):
        return ResumePoint(complete=True)
    notes = [f"{sentence}; it is not used" for sentence in found.damaged]
    return _prepare(run, folder, ResumePoint(found.path, found.record, notes))


def _find_named(path: Path, folder: Path, own: Found) -> Found:
    """The checkpoint, or the newest of the run folder, that `--resume PATH` names.

    A run that began there and has come further since goes on from its own newest checkpoint.
    """
    inside = path.resolve() == folder.resolve() or path.resolve().parent == folder.resolve()
    if own.path is not None:
        if inside and path.resolve() not in (folder.resolve(), own.path.resolve()):
            raise UserError(
                f"--resume {path} would go back in a run that has reached {own.path.name}; let it branch off into a "
                "folder of its own: --log.folder"
            )
        return own
    if (path / RECORD).exists():
        return Found(path, read_record(path), [])
    found = newest_intact(path)
    if found.path is None:
        reasons = f" ({'; '.join(found.damaged)})" if found.damaged else ""
        raise UserError(f"--resume {path} names no intact checkpoint{reasons}; give a run folder or its step_… folder")
    return found


def _refuse_other_run(run: Run, folder: Path) -> None:
    """Let a run that died before its first checkpoint start again, but refuse to overwrite one with other settings."""
    settings, log = folder / "config.json", folder / "log.txt"
    if not log.exists() or log.stat().st_size == 0:
        return
    try:
        same = settings.exists() and fingerprint_of(from_json(settings.read_text()), []) == fingerprint_of(run, [])
    except (TypeError, ValueError):
        same = False
    if not same:
        raise UserError(
            f"{folder} holds another run, without a checkpoint to go on from; name another --log.folder, "
            "or replace it: --log.overwrite"
        )


def _prepare(run: Run, folder: Path, resume: ResumePoint) -> ResumePoint:
    """Write the settings, and cut the log to where the run goes on."""
    (folder / DONE).unlink(missing_ok=True)
    write_atomically(folder / "config.json", to_json(run).encode())
    if resume.path is not None and resume.record is not None and resume.path.parent == folder:
        truncate_log(folder / "log.txt", resume.record.log_bytes)
    else:
        write_atomically(folder / "log.txt", b"")
    return resume


def _remove_run(folder: Path) -> None:
    """Remove what a run that is replaced has left."""
    for old in list_checkpoints(folder):
        remove_checkpoint(old)
    for name in ("model", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)


def fingerprint_of(run: Run, shards: list[list[Any]]) -> dict[str, Any]:
    """What identifies a run, to be compared when it goes on: the settings that decide what it computes, and its data.

    `shards`: name and tokens of every train shard.
    """
    settings = {name: json.loads(to_json(run))[name] for name in DECISIVE}
    settings |= {"seed": run.system.seed, "weights": run.system.weights}
    return {"settings": settings, "shards": shards}


def differences(record: Record, fingerprint: dict[str, Any]) -> list[str]:
    """What has changed since the record was written: `optim.lr 0.001 → 0.002`."""
    before, after = _leaves(record.settings), _leaves(fingerprint["settings"])
    found = [
        f"{name} {before.get(name)!r} → {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    if record.shards != fingerprint["shards"] and not any(each.startswith("data.shards") for each in found):
        then, now = (sum(tokens for _, tokens in shards) for shards in (record.shards, fingerprint["shards"]))
        found.append(f"the train shards (now {now:,} tokens, then {then:,})")
    return found


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree as `{"optim.lr": 0.001, …}`."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return leaves


def export_model(folder: Path, model: GPT | Modern, steps: int) -> None:
    """Write the trained weights, then the marker on which restart loops end. Raises UserError on a full disk."""
    try:
        save_pretrained(model, folder / "model")
        write_atomically(folder / DONE, f"{steps} steps\n".encode())
    except OSError as error:
        raise UserError(
            f"can't write {folder}/model ({error.strerror}); make room, and give the same command again",
            everywhere=False,
        ) from None
