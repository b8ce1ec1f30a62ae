"""The folder of a run: who uses it, what it holds, and where a run begins or goes on.

Holds:    `claim`, `begin`, `Beginning`, `finish`, `differences`.
Built in: notebook 12.
Imports:  gpt2.checkpoint, gpt2.distributed, gpt2.errors, gpt2.files, gpt2.logs, gpt2.run.

    runs/gpt2-124m/log.txt        the log
    runs/gpt2-124m/config.json    every setting
    runs/gpt2-124m/step_000250/   checkpoints
    runs/gpt2-124m/model/         the trained weights, in the Hugging Face layout
    runs/gpt2-124m/DONE           the run is complete
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2 import checkpoint
from gpt2.distributed import Processes
from gpt2.errors import UserError
from gpt2.files import write_whole
from gpt2.logs import cut_log
from gpt2.run import Run, from_json, to_json

DONE = "DONE"
DECISIVE = ("model", "parts", "data", "optim", "schedule")  # the settings that decide what is computed


@dataclass(frozen=True)
class Beginning:
    """Where a run begins: at step 0, or at a checkpoint with its record. `notes` are for the log."""

    checkpoint: Path | None = None
    record: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    complete: bool = False  # there is nothing to do


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run folder. Raises UserError where one is in it.

    The lock is the kernel's, so it ends with the process, however that ends.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    with open(folder / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{folder} is in use by process {file.read().strip() or 'unknown'}; wait for it, or name another "
                "--log.folder"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def begin(run: Run, shards: list[list[Any]], processes: Processes, claimed: contextlib.ExitStack) -> Beginning:
    """Where `run` begins, in every process; its folder is claimed until `claimed` is closed. All of them call this.

    `shards`: name and tokens of each train shard. Raises UserError where the folder is in use or holds another run,
    or its checkpoint was made with settings that change this one.
    """
    outcome: Beginning | UserError | None = None
    if processes.is_first:
        try:
            claimed.enter_context(claim(Path(run.log.folder)))
            outcome = _decide(run, shards)
        except UserError as error:
            outcome = error
    outcome = processes.share(outcome)
    if isinstance(outcome, UserError):
        raise outcome
    assert outcome is not None
    return outcome


def _decide(run: Run, shards: list[list[Any]]) -> Beginning:
    """Decide where `run` begins, and make its folder ready."""
    folder = Path(run.log.folder)
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0  # by torchrun, after a process died
    for unfinished in folder.glob("*.tmp"):
        shutil.rmtree(unfinished) if unfinished.is_dir() else unfinished.unlink()
    anew = (run.resume == "never" or run.log.overwrite) and not restarted
    if anew:
        if (folder / "log.txt").exists() and not run.log.overwrite:
            raise UserError(f"{folder} holds a run already; name another --log.folder, or replace it: --log.overwrite")
        empty(folder)
        return _start(run, folder, Beginning())
    path, record, skipped = checkpoint.newest(folder)
    if run.resume not in ("auto", "never"):
        path, record, skipped = _named(Path(run.resume), folder, path) or (path, record, skipped)
    if path is None:
        _refuse_other_run(run, folder)
    elif not run.allow_changes:
        _refuse(differences(record, decisive(run, shards)), f"the checkpoint {path}")
    if (folder / DONE).exists() and (path is None or record["step"] >= run.schedule.steps):
        return Beginning(complete=True)
    return _start(run, folder, Beginning(path, record, [f"{sentence}; it is not used" for sentence in skipped]))


def _start(run: Run, folder: Path, beginning: Beginning) -> Beginning:
    """Write the run down, and cut its log to where it goes on."""
    (folder / DONE).unlink(missing_ok=True)
    write_whole(folder / "config.json", to_json(run).encode())
    log = folder / "log.txt"
    if beginning.checkpoint is not None and beginning.checkpoint.parent == folder:
        cut_log(log, beginning.record["log_bytes"])
    else:
        write_whole(log, b"")
    return beginning


Found = tuple[Path | None, dict[str, Any], list[str]]


def _named(path: Path, folder: Path, own: Path | None) -> Found | None:
    """The checkpoint that `--resume PATH` names, or the newest of a run folder; None where the run's own goes on."""
    inside = path.resolve() == folder.resolve() or path.resolve().parent == folder.resolve()
    if inside and own is not None and path.resolve() not in (folder.resolve(), own.resolve()):
        raise UserError(
            f"--resume {path} would go back in a run that has reached {own.name}; let it branch off into a folder of "
            "its own: --log.folder"
        )
    if own is not None:  # the run began at PATH, and has come further since
        return None
    if (path / checkpoint.RECORD).exists():
        return path, checkpoint.read(path), []
    found = checkpoint.newest(path)
    if found[0] is None:
        reasons = f" ({'; '.join(found[2])})" if found[2] else ""
        raise UserError(f"--resume {path} names no intact checkpoint{reasons}; give a run folder or its step_… folder")
    return found


def empty(folder: Path) -> None:
    """Remove what a run that is replaced has left."""
    for old in checkpoint.find(folder):
        checkpoint.remove(old)
    shutil.rmtree(folder / "model", ignore_errors=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)


def _refuse_other_run(run: Run, folder: Path) -> None:
    """A run that died before its first checkpoint starts again; one with other settings is not written over."""
    record, log = folder / "config.json", folder / "log.txt"
    if not log.exists() or log.stat().st_size == 0:
        return
    try:
        same = record.exists() and decisive(from_json(record.read_text()), []) == decisive(run, [])
    except (TypeError, ValueError):
        same = False
    if not same:
        raise UserError(
            f"{folder} holds another run, without a checkpoint to go on from; name another --log.folder, "
            "or replace it: --log.overwrite"
        )


def decisive(run: Run, shards: list[list[Any]]) -> dict[str, Any]:
    """What a checkpoint records of the settings, to be compared when a run goes on."""
    settings = json.loads(to_json(run))
    return {
        "settings": {
            **{name: settings[name] for name in DECISIVE},
            "seed": run.system.seed,
            "weights": run.system.weights,
        },
        "shards": shards,
    }


def differences(record: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings that change the run and are not those of the record: `optim.lr 0.001 → 0.002`."""
    before, after = _leaves(record["settings"]), _leaves(now["settings"])
    found = [
        f"{name} {before.get(name)!r} → {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    if record["shards"] != now["shards"] and not any(each.startswith("data.shards") for each in found):
        totals = (sum(tokens for _, tokens in each["shards"]) for each in (record, now))
        found.append("the train shards (now {1:,} tokens, then {0:,})".format(*totals))
    return found


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return leaves


def _refuse(found: list[str], what: str) -> None:
    if found:
        raise UserError(
            f"{what} was made with other settings: {', '.join(found)}; give those, start anew in another --log.folder, "
            "or go on with the new ones: --allow-changes"
        )


def finish(folder: Path, steps: int) -> None:
    """Mark the run as complete; restart loops end on this. Raises OSError."""
    write_whole(folder / DONE, f"{steps} steps\n".encode())
