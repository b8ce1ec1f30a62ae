"""Write log.txt, show it on the terminal, and send its numbers to trackers.

Built in notebook 12. A log is lines of text that a person reads during the run and a program reads afterwards:

    # lines at the top: what runs, on what
    step    0 | loss: 10.955009 | lr: 1.2000e-05 | norm: 15.9685 | dt: 12701.84ms | tok/sec: 41276.54
    step  250 | val loss: 6.1631 | bits/byte: 1.8312
    step  250 | hellaswag: 2561/10042 = 0.2550
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from gpt2.system.errors import discard_stdout


class Tracker(Protocol):
    """Another place that the numbers of a run are sent to, such as TensorBoard: see gpt2/logs/trackers.py.

    `log` takes numbers by name, measured at a step; `text` takes a text, such as a sample; `close` comes last.
    """

    name: str

    def log(self, step: int, values: dict[str, float]) -> None: ...
    def text(self, step: int, name: str, text: str) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class StepMetrics:
    """What the log says about one optimiser step."""

    loss: float  # nats per token, the mean over the whole batch
    lr: float
    norm: float  # of all gradients, before clipping
    seconds: float
    tokens: int  # over all processes
    epoch: float  # passes over the data so far


class RunLog:
    """The log of a run, which the first process appends to a file, shows on the terminal and sends to trackers.

    Logging never ends a run. Lines that do not fit on a full disk wait in memory until there is room. If the terminal
    is closed, the file is still written. A tracker that fails is given up, which is logged.
    """

    def __init__(
        self,
        path: Path,
        active: bool,
        steps: int,
        first: int = 0,
        trackers: Iterable[Tracker] = (),
        ideal_seconds: float = 0.0,
    ):
        """Append to `path` the log of a run of `steps` steps that starts or resumes at step `first`.

        `active` is False in every process but the first; all methods then do nothing. `ideal_seconds` is what a step
        would take at the peak FLOPS of the devices, for the MFU.
        """
        self.file = open(path, "ab", buffering=0) if active else None  # noqa: SIM115 - open as long as the run
        cut_off = active and path.read_bytes()[-1:] not in (b"", b"\n")  # the last line of a killed run
        self.waiting = b"\n" if cut_off else b""
        self.disk_full, self.done = False, first
        self.trackers = list(trackers) if active else []
        self.ideal_seconds = ideal_seconds
        self.bar = tqdm(total=steps, initial=first, unit="step", disable=None if active else True)

    def line(self, text: str) -> None:
        """Write one line into the file and onto the terminal, above the progress bar."""
        if self.file is not None:
            self.waiting += text.encode() + b"\n"
            self._show(text)
            self._write()

    def note(self, step: int, name: str, text: str) -> None:
        """Write a line about a step: `step  250 | checkpoint: not saved (No space left on device)`."""
        self.line(f"step {step:4d} | {name}: {' '.join(text.split())}")

    def header(self, lines: dict[str, str]) -> None:
        """Write what runs on what, as lines that start with `#`."""
        for name, value in lines.items():
            self.line(f"# {name}: {value}")
        self._each(lambda tracker: tracker.text(0, "run", "\n\n".join(f"{k}: {v}" for k, v in lines.items())), 0)

    def step(self, step: int, metrics: StepMetrics) -> None:
        """Log one optimiser step, and move the progress bar."""
        m, ms, speed = metrics, metrics.seconds * 1e3, metrics.tokens / metrics.seconds
        seen, mfu = (step + 1) * m.tokens, self.ideal_seconds / m.seconds  # model FLOPs utilisation, 0 to 1
        numbers = f"{m.loss:.6f} | lr: {m.lr:.4e} | norm: {m.norm:.4f} | dt: {ms:.2f}ms | tok/sec: {speed:.2f}"
        self.note(step, "loss", numbers)
        postfix = f"loss {m.loss:.4f}, {short_count(seen)} tokens, epoch {m.epoch:.2f}, MFU {mfu:.1%}"
        self.bar.set_postfix_str(postfix, refresh=False)
        self.bar.update(step + 1 - self.done)
        self.done = step + 1
        values = {"loss": m.loss, "lr": m.lr, "norm": m.norm, "ms": ms, "tok_per_sec": speed}
        self._track(step, "train", values | {"tokens": float(seen), "epoch": m.epoch, "mfu": mfu})

    def validation(self, step: int, loss: float, bits_per_byte: float) -> None:
        """Log the validation loss in nats per token and bits per byte."""
        self.note(step, "val loss", f"{loss:.4f} | bits/byte: {bits_per_byte:.4f}")
        self._track(step, "val", {"loss": loss, "bits_per_byte": bits_per_byte})

    def measured(self, step: int, found: Any) -> None:
        """Log a `gpt2.evaluation.validation.Measured`: loss, and top-1 and top-10 accuracy, on the val text."""
        values = {"loss": found.loss, "bits/byte": found.bits_per_byte, "top-1": found.top1, "top-10": found.top10}
        self.note(step, "measured", " | ".join(f"{name} {value:.4f}" for name, value in values.items()))
        self._track(step, "measured", {name.replace("/", "_per_"): value for name, value in values.items()})

    def hellaswag(self, step: int, correct: int, total: int) -> None:
        """Log how many of the `total` HellaSwag items the model completed correctly."""
        self.note(step, "hellaswag", f"{correct}/{total} = {correct / total:.4f}")
        self._track(step, "hellaswag", {"accuracy": correct / total})

    def samples(self, step: int, texts: list[str]) -> None:
        """Log texts that the model wrote, one line per text, as JSON strings."""
        for text in texts:
            self.line(f"step {step:4d} | sample: {json.dumps(text, ensure_ascii=False)}")
        self._each(lambda tracker: tracker.text(step, "samples", "\n\n".join(texts)), step)

    def skipped(self, step: int, reason: str | None) -> None:
        """Log why the optimiser skipped its update in this step; None if it did not."""
        if reason:
            self.note(step, "skipped", reason)
            self._track(step, "train", {"skipped": 1.0})

    def save_problem(self, step: int, problem: str | None) -> None:
        """Log why a checkpoint could not be written; None if there was no problem."""
        if problem:
            self.note(step, "checkpoint", f"not saved ({problem}); the one before it is kept")

    def gpu(self, step: int, state: dict[str, float]) -> None:
        """Log the result of `gpt2.training.telemetry.gpu_state`, unless it is empty."""
        if state:
            self.note(step, "gpu", " | ".join(f"{name} {value:.4g}" for name, value in state.items()))
            self._track(step, "gpu", state)

    def norms(self, step: int, layers: dict[str, tuple[float, float, float]]) -> None:
        """Log the L2 norms per layer, (gradient, weight, step), unless there are none."""
        if layers:
            self.note(
                step, "norms", " | ".join(f"{name} {g:.4e} {w:.4e} {s:.4e}" for name, (g, w, s) in layers.items())
            )
            for i, kind in enumerate(("gradient", "weight", "step")):
                self._track(step, f"{kind}_norm", {name: norms[i] for name, norms in layers.items()})

    def position(self) -> int:
        """The length of the log in bytes, after syncing it to the disk: a checkpoint keeps it for `truncate_log`."""
        if self.file is None:
            return 0
        self._write()
        with contextlib.suppress(OSError):  # at worst, a power failure shortens the log
            os.fsync(self.file.fileno())
        return os.fstat(self.file.fileno()).st_size

    def close(self) -> None:
        """Close the progress bar, the trackers and the file."""
        self.bar.close()
        self._each(lambda tracker: tracker.close(), self.done)
        if self.file is not None:
            self._write()
            self.file.close()

    def _write(self) -> None:
        """Write the waiting lines into the file, as far as the disk has room."""
        assert self.file is not None
        try:
            while self.waiting:
                self.waiting = self.waiting[self.file.write(self.waiting) :]
            self.disk_full = False
        except OSError as error:
            if not self.disk_full:
                self._show(f"{self.file.name} can't be written ({error.strerror}); its lines are kept until it can")
            self.disk_full = True

    def _show(self, text: str) -> None:
        try:
            try:
                tqdm.write(text)
            except UnicodeEncodeError:  # a sample has letters that this terminal does not have
                tqdm.write(ascii(text))
            sys.stdout.flush()
        except OSError:  # the terminal, or the program at the other end of a pipe, is gone
            discard_stdout()

    def _track(self, step: int, group: str, values: dict[str, float]) -> None:
        self._each(lambda tracker: tracker.log(step, {f"{group}/{name}": v for name, v in values.items()}), step)

    def _each(self, act: Callable[[Tracker], None], step: int) -> None:
        for tracker in list(self.trackers):
            try:
                act(tracker)
            except Exception as error:  # whatever the error is, the run is worth more than the tracker
                self.trackers.remove(tracker)
                self.note(step, tracker.name, f"given up, the run goes on without it ({error})")


def short_count(number: float) -> str:
    """A count with three digits and a unit: 1310720 → `1.31M`."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:g}"


def truncate_log(path: Path, length: int) -> None:
    """Shorten a log to its first `length` bytes, which `RunLog.position` returned; a shorter log is left as it is."""
    with open(path, "r+b") as file:
        if file.seek(0, os.SEEK_END) > length:
            file.truncate(length)
            os.fsync(file.fileno())
