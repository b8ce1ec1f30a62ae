"""`gpt2 watch`: a page that shows the logs of runs while they are written."""

import json
import os
import struct
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from annotated_types import Ge, Le

from gpt2.logs.reader import Log, published_log, published_runs, read_log
from gpt2.system.errors import UserError
from gpt2.system.ranges import check_ranges
from gpt2.web.follow import Curves, FollowedLog
from gpt2.web.server import Answer, serve

FILES = {".txt", ".log", ".out"}  # suffixes that mark a missing path as a log, not a run folder
SOON = 60  # seconds; a file with a single step that is older than this is not taken for a log
ENTRIES = 200  # samples and notes of a run that are sent at most
LOOK_AGAIN = 3.0  # seconds between two looks for new runs


@dataclass(frozen=True)
class Options:
    """Show losses, learning rate, gradient norm, speed and samples of runs in the browser, while they train.

    A run is a run folder of train_gpt2.py, a folder of run folders, or a log: log.txt, or what build-nanogpt, Train
    GPT-2, nanoGPT, llm.c or modded-nanogpt wrote. A log that does not exist yet is waited for.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("runs"),)
    published: Annotated[tuple[str, ...], tyro.conf.arg(name="with")] = ()
    """Published runs to draw beside them: lecture, train-gpt-2, llmc-124m, speedrun-8."""
    x: Literal["step", "tokens", "hours"] = "step"
    """The horizontal axis at first: steps, tokens seen, or hours spent in training steps."""
    port: Annotated[int, Ge(0), Le(65535)] = 8001
    """0: any that is free. Only this machine can connect."""


def main(options: Options) -> None:
    """Serve the page until Ctrl-C. Raises UserError for a file that is no log, and for a port in use."""
    check_ranges(options)
    names = [name for word in options.published for name in word.split(",")]
    if unknown := sorted(set(names) - published_runs().keys()):
        raise UserError(f"--with {unknown[0]} is not a published run; known: {', '.join(published_runs())}")
    watched = Watched(options.runs, names, options.x)
    for run in watched.answer_runs({})["runs"]:
        if run["problem"]:
            print(f"{run['problem']}; the page shows it as soon as it is there")
    for log in watched.logs.values():
        if log.path in options.runs:
            check_log(log)
    serve("watch.html", watched.answers(), options.port)


def check_log(log: FollowedLog) -> None:
    """Raise UserError for a file that is not a log. An empty file may become one."""
    is_known = len(log.recent) > 1 or "tokens" in log.header or (log.source is not None and log.age() < SOON)
    if not is_known and log.path.is_file() and log.path.stat().st_size:
        read_log(log.path)


class Watched:
    """The logs that a page shows, and what the server answers to that page."""

    def __init__(self, runs: Iterable[Path], published: Iterable[str] = (), x: str = "step"):
        self.runs, self.x = list(runs), x
        self.lock, self.looked_at = threading.Lock(), 0.0
        self.logs: dict[str, FollowedLog] = {}
        self.published = {f"published:{name}": PublishedRun(name) for name in published}

    def answers(self) -> dict[str, Answer]:
        """The paths that the page requests, with their answers."""
        return {"watch/runs": self.answer_runs, "watch/data": self.answer_data}

    def answer_runs(self, _: dict[str, str]) -> dict[str, Any]:
        """The state of every run, without its curves. Reads the new lines of all logs."""
        with self.lock:
            logs = self._look_for_runs()
        runs = []
        for (key, log), name in zip(logs.items(), short_names([log.path for log in logs.values()]), strict=True):
            with log.lock:
                log.refresh()
                runs.append({"id": key, "name": readable(name), "path": readable(str(log.path)), **describe(log)})
        for key, run in self.published.items():
            runs.append({"id": key, "name": run.log.name, "path": run.log.name, **run.describe()})
        return {"runs": runs, "x": self.x}

    def answer_data(self, parameters: dict[str, str]) -> bytes:
        """The curves of `run` after the rows that the page has. `since` counts those rows per table.

        All rows are sent if the rows of the page are of another `generation` than those of the run.
        Raises UserError for a run that is not watched.
        """
        curves = self.logs.get(parameters.get("run", "")) or self.published.get(parameters.get("run", ""))
        if curves is None:
            raise UserError(f"{parameters.get('run', '')!r} is not a run that is watched; load the page again")
        try:
            generation, since = int(parameters["generation"]), [int(n) for n in parameters["since"].split(",")]
        except (KeyError, ValueError):
            generation, since = 0, []
        if isinstance(curves, FollowedLog):
            with curves.lock:
                return encode(curves, generation, since)
        return encode(curves, generation, since)

    def _look_for_runs(self) -> dict[str, FollowedLog]:
        """The logs, including new ones. A deleted log stays if something was read from it."""
        if time.monotonic() - self.looked_at > LOOK_AGAIN or not self.logs:
            self.looked_at = time.monotonic()
            found = {os.fsencode(log).hex(): log for path in self.runs for log in find_logs(path)}
            kept = {key: log for key, log in self.logs.items() if key in found or log.was_there}
            self.logs = kept | {key: FollowedLog(path) for key, path in found.items() if key not in kept}
        return self.logs


class PublishedRun(Curves):
    """A published run, which does not grow."""

    def __init__(self, name: str):
        super().__init__()
        self.log: Log = published_log(name)
        self.add(self.log, 0)

    def last(self) -> dict[str, float]:
        """The newest number of every column that was published."""
        return {name: number for name, number in super().last().items() if np.isfinite(number)}

    def describe(self) -> dict[str, Any]:
        """The same as `describe` of a log."""
        said = f"{self.log.header['source']}, {self.log.header['date']}"
        return _description(self, self.log.batch_tokens, self.log.vocab_size) | {"state": "published", "event": said}


def find_logs(path: Path) -> list[Path]:
    """The log at `path`: a file, or a run folder's log.txt. For a folder of runs, the logs one or two levels below.

    Raises UserError for a path that can't be looked up.
    """
    try:
        if path.is_file() or (not path.exists() and path.suffix in FILES):
            return [path]
        own = path / "log.txt"
        below = [] if own.exists() else sorted([*path.glob("*/log.txt"), *path.glob("*/*/log.txt")])
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); give a run folder or a log") from None
    return below or [own]


def short_names(paths: list[Path]) -> list[str]:
    """The name of each log's run folder or file, with as many parent folders as are needed to tell the logs apart."""
    wholes = [path.absolute() for path in paths]
    wholes = [path.parent if path.name == "log.txt" and path.parent != Path.cwd() else path for path in wholes]
    names = []
    for path in wholes:
        parts = path.parts[1:] or path.parts
        others = [other.parts for other in wholes if other != path]
        count = next(
            n for n in range(1, len(parts) + 1) if n == len(parts) or parts[-n:] not in [o[-n:] for o in others]
        )
        names.append("/".join(parts[-count:]))
    return names


def readable(text: str) -> str:
    """The text, with � in place of the bytes of a file name that are not UTF-8."""
    return os.fsencode(text).decode(errors="replace")


def describe(log: FollowedLog) -> dict[str, Any]:
    """What the page says of a log: its state, its newest numbers, and what happened to its file."""
    if log.problem:
        state = "missing" if not log.was_there else "gone"
    elif log.last_step() is None:
        state = "empty"
    else:
        is_last = log.steps() is not None and (log.last_step() or 0) >= (log.steps() or 0) - 1
        state = "finished" if is_last or log.path.with_name("DONE").exists() else "there"
    return _description(log, log.batch_tokens, log.vocab_size) | {
        "state": state,
        "event": log.event,
        "problem": readable(log.problem),
        "age": log.age(),
        "steps": log.steps(),
        "source": log.source,
    }


def _description(curves: Curves, batch_tokens: float, vocab_size: int | None) -> dict[str, Any]:
    return {
        "generation": curves.generation,
        "counts": curves.counts(),
        "last": {name: _plain(number) for name, number in curves.last().items()},
        "batch_tokens": _plain(batch_tokens),
        "vocab_size": vocab_size,
        "problem": "",
        "age": 0,
        "steps": None,
        "source": None,
    }


def _plain(number: float) -> float | None:
    """The number, or None in place of one that JSON does not have."""
    return number if np.isfinite(number) else None


def encode(curves: Curves, generation: int, since: list[int]) -> bytes:
    """The rows after those that the page has: the length of a header, the header in JSON, and columns in float64.

    The newest row that the page has is sent again, because later lines of a log may add to it.
    """
    counts = curves.counts()
    if generation != curves.generation or len(since) != len(counts) or any(n < 0 for n in since):
        since = [0] * len(counts)
    starts = [max(0, min(n, count) - 1) for n, count in zip(since, counts, strict=True)]
    starts[-1] = max(min(since[-1], counts[-1]), counts[-1] - ENTRIES)
    tables = [
        {"name": name, "columns": list(columns), "from": start, "rows": count - start}
        for (name, columns), start, count in zip(curves.tables.items(), starts, counts, strict=False)
    ]
    header = {"generation": curves.generation, "counts": counts, "tables": tables}
    header["entries"] = curves.entries[starts[-1] :]
    text = json.dumps(header).encode()
    text += b" " * (-(4 + len(text)) % 8)  # numbers of 8 bytes begin at a multiple of 8
    columns = zip(starts, curves.tables.values(), strict=False)
    numbers = [column[start:].tobytes() for start, table in columns for column in table.values()]
    return struct.pack("<I", len(text)) + text + b"".join(numbers)
