"""Follows a growing log. The first read takes the whole file, and later reads take the new lines."""

import json
import re
import threading
import time
from array import array
from bisect import bisect_left
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpt2.logs.formats import COUNTS_DONE, OURS, recognise, rows_of
from gpt2.logs.reader import Log, log_of_rows

# table → its columns. The first one holds the steps in ascending order; hours are spent in the training steps before
TABLES = {
    "training": ("step", "hours", "loss", "lr", "norm", "tok_per_sec"),
    "validation": ("val_step", "val_hours", "val_loss", "bits_per_byte"),
    "hellaswag": ("hellaswag_step", "hellaswag_hours", "hellaswag"),
}
NUMBERS = ("loss", "val loss", "hellaswag", "measured", "gpu", "norms")  # lines with numbers, which are not notes
NOTE = re.compile(r"step +(\d{1,15}) \| ([^:|]+): (.*)")
DECIDED = 2_000  # lines after which it is certain which project wrote a log
KEPT = 200  # lines that are kept because a later line may give them a meaning
OVERLAP = 50  # rows that are kept for the time per step
FINGERPRINT = 1024  # the last bytes that were read; if they have changed, the file is read again
CUT_OFF = 2.0  # seconds after which a last line without an end is read for the time being

Rows = dict[int, dict[str, float]]


class Curves:
    """The numbers of a run as tables that only grow. Any other change gives the run a new `generation`."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget everything."""
        self.generation = time.time_ns() // 1000  # differs after every restart, also of the server
        self.tables = {name: {column: array("d") for column in columns} for name, columns in TABLES.items()}
        self.seconds = array("d")  # at the end of each training step
        self.entries: list[dict[str, Any]] = []  # samples, and notes such as skipped steps

    def add(self, log: Log, first: int) -> None:
        """Append the rows of `log` from step `first` on. The rows before it are only used to add up the time."""
        known = log.step < first
        table = self.tables["training"]
        place = bisect_left(table["step"], first)
        before = self.seconds[place - 1] if place else 0.0
        spent = log.seconds + (before - log.seconds[known][-1] if known.any() and place else 0.0)
        hours = partial(_hours, steps=log.step, seconds=spent)
        for name, (steps, times, *columns) in TABLES.items():
            at = getattr(log, steps)
            new = at >= first
            arrays = {steps: at, times: hours(at), **{column: getattr(log, column) for column in columns}}
            self._replace(self.tables[name], {column: values[new] for column, values in arrays.items()})
            if name == "training" and new.any():
                del self.seconds[bisect_left(table["step"], at[new][0]) :]
                self.seconds.frombytes(spent[new].tobytes())

    def counts(self) -> list[int]:
        """How many rows the tables have, and how many entries there are."""
        return [*(len(next(iter(table.values()))) for table in self.tables.values()), len(self.entries)]

    def last(self) -> dict[str, float]:
        """The newest number of every column."""
        return {name: column[-1] for table in self.tables.values() for name, column in table.items() if column}

    @staticmethod
    def _replace(table: dict[str, array], rows: dict[str, np.ndarray]) -> None:
        """Append rows, which replace the rows of the same steps and of later ones."""
        steps = next(iter(rows))
        if len(rows[steps]):
            place = bisect_left(table[steps], rows[steps][0])
            for name, values in rows.items():
                del table[name][place:]
                table[name].frombytes(np.asarray(values, dtype=np.float64).tobytes())


class FollowedLog(Curves):
    """The log at a path, which may not exist yet, of any project that `gpt2.logs.formats` knows."""

    def __init__(self, path: Path):
        self.path, self.lock = path, threading.Lock()
        self.event = ""  # the last thing that happened to the file, as a sentence
        self.problem = ""  # why the file can't be read
        self.was_there = False
        super().__init__()

    def restart(self) -> None:
        """Forget everything that was read, to read it again."""
        super().restart()
        self.identity: tuple[int, ...] = ()
        self.offset, self.fingerprint = 0, b""  # of the lines that have an end
        self.early = b""  # the last line, if it was read without an end: it is read again when the file has changed
        self.unfinished = False  # whether the last line waits for its end
        self.source: str | None = None
        self.header: dict[str, str] = {}
        self.batch_tokens = float("nan")
        self.vocab_size: int | None = None
        self.head: list[str] = []  # the lines so far, while it is not certain which project wrote them
        self.certain, self.asked_at = False, 0
        self.pending: list[str] = []  # lines about a step that a later line names
        self.recent: Rows = {}
        self.lasting = 0  # entries of lines that have an end

    def refresh(self) -> None:
        """Read the new lines. `event` says what happened to the file, and `problem` why it can't be read."""
        try:
            status = self.path.stat()
            identity = (status.st_ino, status.st_size, status.st_mtime_ns)
            if identity != self.identity or self.unfinished:
                with open(self.path, "rb") as file:
                    self._read(file, is_still=time.time() - status.st_mtime > CUT_OFF)
            self.identity, self.problem, self.was_there = identity, "", True
        except (FileNotFoundError, NotADirectoryError):
            self.problem = self._absence()
            self.identity = ()
        except OSError as error:
            self.problem = f"{self.path} can't be read ({error.strerror})"
            self.identity = ()

    def _absence(self) -> str:
        if self.was_there:
            return f"{self.path} was deleted"
        is_of_folder = self.path.name == "log.txt"
        return f"{self.path.parent} holds no log yet" if is_of_folder else f"{self.path} does not exist yet"

    def age(self) -> float:
        """Seconds since the log was last written to; 0 where there is none."""
        return max(0.0, time.time() - self.identity[2] / 1e9) if self.identity else 0.0

    def steps(self) -> int | None:
        """The planned number of steps, if the log says it."""
        match = re.search(r"(\d[\d,]{0,19}) steps of", self.header.get("tokens", ""))
        return int(match[1].replace(",", "")) if match else None

    def _read(self, file: BinaryIO, is_still: bool) -> None:
        """Take the lines after those that were read. Take all lines if the file has other bytes in their place."""
        file.seek(self.offset - len(self.fingerprint))
        is_same = file.read(len(self.fingerprint)) == self.fingerprint
        new = file.read()
        if not (is_same and new.startswith(self.early)):
            return self._read_again(file, is_still)
        end = new.rfind(b"\n") + 1
        self.unfinished = end < len(new) and not is_still
        if not end and not is_still:
            return None
        self.offset += end
        self.fingerprint = (self.fingerprint + new[:end])[-FINGERPRINT:]
        # a killed process never ends its last line, and a buffer may hold the rest of a line for minutes
        self.early = new[end:] if is_still else b""
        if not self._take(_lines(new[:end]), _lines(self.early)):
            self._read_again(file, is_still)
        return None

    def _read_again(self, file: BinaryIO, is_still: bool) -> None:
        before = self.last_step()
        self.restart()
        self._read(file, is_still)
        after, now = self.last_step(), time.strftime("%H:%M")
        if before is None:
            return
        if after is None:
            self.event = f"{now}: the log was emptied after step {before:,}"
        elif after < before:
            self.event = f"{now}: the log went back from step {before:,} to step {after:,}"
        else:
            self.event = f"{now}: the log was rewritten, and goes on at step {after:,}"

    def last_step(self) -> int | None:
        """The newest step in the log; None if there is none."""
        return max(self.recent, default=None)

    def last(self) -> dict[str, float]:
        """The newest number of every column, without the loss if the newest step was logged without one."""
        numbers = super().last()
        if "loss" not in self.recent.get(int(numbers.get("step", -1)), numbers):
            numbers.pop("loss", None)
        return numbers

    def _take(self, lines: list[str], early: list[str]) -> bool:
        """Add the numbers and notes of these lines. The line of `early` will be read again.

        False if the lines go back to an earlier step, so that the whole file must be read again.
        """
        lines = self._lines_of_project(lines)
        if self.source is None:
            return True
        whole = self.pending + lines
        rows, batch_tokens = rows_of(whole + early, self.source)
        self._take_entries(lines, early)
        self.pending = _without_step(whole, self.source)
        if not np.isnan(batch_tokens):
            self.batch_tokens = batch_tokens
        if not rows:
            return True
        first = min(rows)
        # modded-nanogpt writes a validation before the training step that others give the same number
        if first < (self.last_step() or 0) - int(self.source in COUNTS_DONE):
            return False
        merged = self.recent | {step: self.recent.get(step, {}) | row for step, row in rows.items()}
        log = log_of_rows(str(self.path), self.source, self.header, merged, self.batch_tokens)
        self.batch_tokens, self.vocab_size = log.batch_tokens, log.vocab_size
        self.add(log, first)
        self.recent = {step: merged[step] for step in sorted(merged)[-OVERLAP:]}
        return True

    def _lines_of_project(self, lines: list[str]) -> list[str]:
        """These lines. All lines so far, where another project turns out to have written them."""
        if self.certain:
            return lines
        self.head += lines
        if self.source is None or len(self.head) >= 2 * self.asked_at:
            self.asked_at = len(self.head)
            source = recognise(self.head[:DECIDED]) or recognise(lines)
            if source not in (None, self.source):
                Curves.restart(self)
                self.source, self.pending, self.recent, self.lasting = source, [], {}, 0
                lines = self.head
        if self.source is None:
            self.head = self.head[-KEPT:]
        elif len(self.head) >= DECIDED:
            self.certain, self.head = True, []
        return lines

    def _take_entries(self, lines: list[str], early: list[str]) -> None:
        if len(self.entries) > self.lasting:
            del self.entries[self.lasting :]
            self.generation += 1  # the page holds what was deleted
        self._take_notes(lines)
        self.lasting = len(self.entries)
        self._take_notes(early)

    def _take_notes(self, lines: list[str]) -> None:
        if self.source != OURS:
            return
        for line in lines:
            if line.startswith("# ") and ": " in line:
                name, value = line[2:].split(": ", 1)
                self.header[name] = value
            elif (match := NOTE.fullmatch(line)) and match[2] not in NUMBERS:
                text = _sample_text(match[3]) if match[2] == "sample" else match[3]
                self.entries.append({"step": int(match[1]), "kind": match[2], "text": text})


def _lines(content: bytes) -> list[str]:
    lines = [line.rstrip() for line in content.decode(errors="replace").split("\n")]
    return lines if lines[-1] else lines[:-1]


def _hours(at: np.ndarray, steps: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """The hours spent in training before the steps `at`, from the seconds at the end of some steps."""
    return np.interp(at, [0, *(steps + 1)], [0, *seconds]) / 3600


def _without_step(lines: list[str], source: str) -> list[str]:
    """The lines after the last one that names a step, at most `KEPT`."""
    for i in range(len(lines) - 1, max(-1, len(lines) - KEPT - 1), -1):
        if rows_of([lines[i]], source)[0]:
            return lines[i + 1 :]
    return lines[-KEPT:]


def _sample_text(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        return text
