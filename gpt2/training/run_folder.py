"""The folder of a run: locked against other processes, checked against other runs, searched for a resume point.

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
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gpt2.config.run import Run, from_json, to_json
from gpt2.formats.checkpoint import Record, ResumePoint, list_checkpoints, newest_intact, remove_checkpoint
from gpt2.formats.huggingface import save_pretrained
from gpt2.logs.writer import truncate_log
from gpt2.model import GPT
from gpt2.modern.model import Modern
from gpt2.system.errors import UserError
from gpt2.system.files import write_atomically
from gpt2.system.processes import Processes

DONE, LOCK, OWNER = "DONE", ".lock", ".owner"
DECISIVE = ("model", "parts", "data", "optim", "schedule")  # the groups of settings that decide what is computed


@contextlib.contextmanager
def open_run_folder(run: Run, fingerprint: dict[str, Any], processes: Processes) -> Iterator[ResumePoint]:
    """Where `run` begins; its folder is locked until the block ends. All processes call this together.

    Raises UserError where the folder is in use or holds another run, or where its checkpoint was made with settings
    that change this one.
    """
    folder = Path(run.log.folder)
    lock, owner = FileLock(folder / LOCK, timeout=0), folder / OWNER  # the kernel releases the lock of a dead process
    outcome: ResumePoint | UserError | None = None
    if processes.is_first:
        try:
            lock.acquire()
            owner.write_text(str(os.getpid()))
            outcome = _prepare(run, folder, fingerprint)
        except Timeout:
            process = owner.read_text() if owner.exists() else "unknown"
            outcome = UserError(f"{folder} is in use by process {process}; wait for it, or name another --log.folder")
        except UserError as error:
            outcome = error
    try:
        outcome = processes.broadcast(outcome)
        if isinstance(outcome, UserError):
            raise outcome
        assert outcome is not None
        yield outcome
    finally:
        lock.release()


def _prepare(run: Run, folder: Path, fingerprint: dict[str, Any]) -> ResumePoint:
    """Decide where `run` begins, and prepare its folder.

    What unfinished saves left, and the run that `--log.overwrite` replaces, is deleted; the settings are written, and
    the log is cut to where the run resumes.
    """
    for unfinished in folder.glob("*.tmp"):
        shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()
    log = folder / "log.txt"
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0  # by torchrun, after a process died
    if (run.resume == "never" or run.log.overwrite) and not restarted:
        if log.exists() and not run.log.overwrite:
            raise UserError(f"{folder} holds a run already; name another --log.folder, or replace it: --log.overwrite")
        for old in list_checkpoints(folder):
            remove_checkpoint(old)
        for name in ("model", "tensorboard"):
            shutil.rmtree(folder / name, ignore_errors=True)
        resume = ResumePoint()
    else:
        resume = _choose_checkpoint(run, folder, fingerprint)
        if (folder / DONE).exists() and (resume.record is None or resume.step >= run.schedule.steps):
            return ResumePoint(complete=True)
    (folder / DONE).unlink(missing_ok=True)
    write_atomically(folder / "config.json", to_json(run).encode())
    if resume.record is not None and resume.path is not None and resume.path.parent == folder:
        truncate_log(log, resume.record.log_bytes)
    else:
        write_atomically(log, b"")
    return resume


def _choose_checkpoint(run: Run, folder: Path, fingerprint: dict[str, Any]) -> ResumePoint:
    """The checkpoint from which `run` resumes, if any. Raises UserError where other settings would change the run."""
    found = newest_intact(folder)
    if run.resume not in ("auto", "never"):
        found = _find_named(Path(run.resume), folder, found)
    if found.record is None and _holds_other_run(folder, fingerprint):
        raise UserError(
            f"{folder} holds another run, without a checkpoint to resume from; name another --log.folder, "
            "or replace it: --log.overwrite"
        )
    if found.record and not run.allow_changes and (changes := differences(found.record, fingerprint)):
        raise UserError(
            f"the checkpoint {found.path} was made with other settings: {', '.join(changes)}; give those, "
            "start anew in another --log.folder, or resume with the new ones: --allow-changes"
        )
    return found


def _find_named(path: Path, folder: Path, own: ResumePoint) -> ResumePoint:
    """The checkpoint, or the newest of the run folder, that `--resume PATH` names.

    A run that began there and has saved a checkpoint of its own since resumes from that.
    """
    if own.path is not None:
        if path.resolve().parent == folder.resolve() and path.resolve() != own.path.resolve():
            raise UserError(
                f"--resume {path} would go back in a run that has reached {own.path.name}; let it branch off into a "
                "folder of its own: --log.folder"
            )
        return own
    found = newest_intact(path)
    if found.path is None:
        reasons = f" ({'; '.join(found.damaged)})" if found.damaged else ""
        raise UserError(f"--resume {path} names no intact checkpoint{reasons}; give a run folder or its step_… folder")
    return found


def _holds_other_run(folder: Path, fingerprint: dict[str, Any]) -> bool:
    """Whether a folder has the log of a run with other settings. A run may start again that saved no checkpoint."""
    log = folder / "log.txt"
    if not log.exists() or log.stat().st_size == 0:
        return False
    try:
        before = from_json((folder / "config.json").read_text())
    except (OSError, KeyError, TypeError, ValueError):
        return True
    return fingerprint_of(before, fingerprint["shards"]) != fingerprint


def fingerprint_of(run: Run, shards: list[list[Any]]) -> dict[str, Any]:
    """What identifies a run, compared when it resumes: the settings that decide what it computes, and its data.

    `shards`: name and tokens of every train shard.
    """
    settings = {name: json.loads(to_json(run))[name] for name in DECISIVE}
    settings |= {"seed": run.system.seed, "weights": run.system.weights}
    return {"settings": settings, "shards": shards}


def differences(record: Record, fingerprint: dict[str, Any]) -> list[str]:
    """What has changed since the record was written: `optim.lr 0.001 → 0.002`.

    A setting that did not exist then had its default.
    """
    defaults = _leaves(fingerprint_of(Run(), [])["settings"])
    before, after = defaults | _leaves(record.settings), _leaves(fingerprint["settings"])
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
    """Write the trained weights, then the marker that ends restart loops. Raises UserError on a full disk."""
    try:
        save_pretrained(model, folder / "model")
        write_atomically(folder / DONE, f"{steps} steps\n".encode())
    except OSError as error:
        raise UserError(
            f"can't write {folder}/model ({error.strerror}); make room, and give the same command again",
            everywhere=False,
        ) from None
