"""Write log.txt, and read it and the logs of other GPT-2 projects.

Built in notebook 12.

A log is lines of text that a person reads while the run goes on and a program reads afterwards:

    # lines at the top: what runs, on what
    step    0 | loss: 10.955009 | lr: 1.2000e-05 | norm: 15.9685 | dt: 12701.84ms | tok/sec: 41276.54
    step  250 | val loss: 6.1631 | bits/byte: 1.8312
    step  250 | hellaswag: 2561/10042 = 0.2550
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tqdm import tqdm


class Tracker(Protocol):
    """Another place that a run's values go to, such as TensorBoard: see gpt2/training/telemetry.py."""

    name: str

    def log(self, step: int, values: dict[str, float]) -> None:
        """Values by name, measured at this step."""

    def text(self, step: int, name: str, text: str) -> None:
        """A text, such as a sample."""

    def close(self) -> None:
        """Nothing more will come."""


class Measured(Protocol):
    """What `gpt2.evaluation.validation.measure` found: nats per token, bits per byte, and fractions of the targets."""

    @property
    def loss(self) -> float: ...
    @property
    def bits_per_byte(self) -> float: ...
    @property
    def top1(self) -> float: ...
    @property
    def top10(self) -> float: ...


@dataclass(frozen=True)
class StepMetrics:
    """What the log says of one optimiser step."""

    loss: float  # nats per token, the mean over the whole batch
    lr: float
    norm: float  # of all gradients, before clipping
    seconds: float
    tokens: int  # over all processes
    epoch: float | None = None  # passes over the data so far
    mfu: float | None = None  # model FLOPs utilisation, 0 to 1


class RunLog:
    """The log of a run: appended to a file, shown on the terminal and sent to trackers, by the first process alone.

    No line of it can end a run: where the disk is full, lines wait in memory until there is room; where the terminal
    is gone, the file goes on; a tracker that fails is given up, and a line says so.
    """

    def __init__(self, path: Path, active: bool, steps: int, first: int = 0, trackers: Iterable[Tracker] = ()):
        """`active` False makes every method do nothing (on all processes but the first).

        The run has `steps` steps; it starts, or goes on, at step `first`.
        """
        self.file = open(path, "ab", buffering=0) if active else None  # noqa: SIM115 - open as long as the run
        self.waiting = b"\n" if active and _ends_within_a_line(path) else b""
        self.terminal, self.stuck, self.done = True, False, first
        self.trackers = list(trackers) if active else []
        self.bar = tqdm(total=steps, initial=first, unit="step", disable=None if active else True)

    def line(self, text: str) -> None:
        """One line, in the file and on the terminal (above the bar)."""
        if self.file is None:
            return
        self.waiting += text.encode() + b"\n"
        trouble = self._write()
        self._show(text)
        if trouble:
            self._show(f"{self.file.name} can't be written ({trouble}); its lines are kept until it can")

    def header(self, lines: dict[str, str]) -> None:
        """What runs, on what: lines that start with `#`."""
        for name, value in lines.items():
            self.line(f"# {name}: {value}")
        self._each(lambda tracker: tracker.text(0, "run", "\n\n".join(f"{k}: {v}" for k, v in lines.items())), 0)

    def step(self, step: int, metrics: StepMetrics) -> None:
        """One optimiser step."""
        m, speed = metrics, metrics.tokens / metrics.seconds
        self.line(
            f"step {step:4d} | loss: {m.loss:.6f} | lr: {m.lr:.4e} | norm: {m.norm:.4f} "
            f"| dt: {m.seconds * 1e3:.2f}ms | tok/sec: {speed:.2f}"
        )
        seen = (step + 1) * m.tokens
        parts = [f"loss {m.loss:.4f}", f"{short_count(seen)} tokens"]
        parts += [] if m.epoch is None else [f"epoch {m.epoch:.2f}"]
        parts += [] if m.mfu is None else [f"MFU {100 * m.mfu:.1f}%"]
        self.bar.set_postfix_str(", ".join(parts), refresh=False)
        self.bar.update(step + 1 - self.done)
        self.done = step + 1
        values = {"loss": m.loss, "lr": m.lr, "norm": m.norm, "ms": m.seconds * 1e3, "tok_per_sec": speed}
        more = {"tokens": float(seen), "epoch": m.epoch, "mfu": m.mfu}
        self._track(step, "train", values | {name: value for name, value in more.items() if value is not None})

    def validation(self, step: int, loss: float, bits_per_byte: float) -> None:
        """Validation loss in nats per token and bits per byte."""
        self.line(f"step {step:4d} | val loss: {loss:.4f} | bits/byte: {bits_per_byte:.4f}")
        self._track(step, "val", {"loss": loss, "bits_per_byte": bits_per_byte})

    def measured(self, step: int, found: Measured) -> None:
        """The longer look at the val text: top-1 and top-10 accuracy, and the loss where only last n targets count."""
        values = {"loss": found.loss, "bits/byte": found.bits_per_byte, "top-1": found.top1, "top-10": found.top10}
        self.line(f"step {step:4d} | measured: " + " | ".join(f"{name} {value:.4f}" for name, value in values.items()))
        self._track(step, "measured", {name.replace("/", "_per_"): value for name, value in values.items()})

    def hellaswag(self, step: int, correct: int, total: int) -> None:
        """HellaSwag: items whose true ending the model found likeliest (a token, on average), of all."""
        self.line(f"step {step:4d} | hellaswag: {correct}/{total} = {correct / total:.4f}")
        self._track(step, "hellaswag", {"accuracy": correct / total})

    def samples(self, step: int, texts: list[str]) -> None:
        """Texts that the model wrote, each as a JSON string so that it stays one line."""
        for text in texts:
            self.line(f"step {step:4d} | sample: {json.dumps(text, ensure_ascii=False)}")
        self._each(lambda tracker: tracker.text(step, "samples", "\n\n".join(texts)), step)

    def skipped(self, step: int, reason: str | None) -> None:
        """Why the optimiser made no update in this step; no line where it made one."""
        if reason:
            self.note(step, "skipped", reason)
            self._track(step, "train", {"skipped": 1.0})

    def not_saved(self, step: int, problem: str | None) -> None:
        """Why a checkpoint could not be written; no line where there is no problem. The one before it stays."""
        if problem:
            self.note(step, "checkpoint", f"not saved ({problem}); the one before it is kept")

    def note(self, step: int, name: str, text: str) -> None:
        """Anything else worth a line: `step  250 | checkpoint: not saved (No space left on device)`."""
        self.line(f"step {step:4d} | {name}: {' '.join(text.split())}")

    def gpu(self, step: int, state: dict[str, float]) -> None:
        """What `gpt2.training.telemetry.gpu_state` says, names with units; no line where it says nothing."""
        if state:
            self.note(step, "gpu", " | ".join(f"{name} {value:.4g}" for name, value in state.items()))
            self._track(step, "gpu", state)

    def norms(self, step: int, layers: dict[str, tuple[float, float]]) -> None:
        """The L2 norm of every layer's (gradient, weight)."""
        if not layers:
            return
        self.note(step, "norms", " | ".join(f"{name} {g:.4e} {w:.4e}" for name, (g, w) in layers.items()))
        self._track(step, "gradient_norm", {name: gradient for name, (gradient, _) in layers.items()})
        self._track(step, "weight_norm", {name: weight for name, (_, weight) in layers.items()})

    def position(self) -> int:
        """Bytes of the log so far, synced to the disk: what a checkpoint stores for `truncate_log`."""
        if self.file is None:
            return 0
        self._write()
        with contextlib.suppress(
            OSError
        ):  # at worst the log is shorter after a power failure, and `truncate_log` leaves it
            os.fsync(self.file.fileno())
        return os.fstat(self.file.fileno()).st_size

    def close(self) -> None:
        """Close the bar, the trackers and the file."""
        self.bar.close()
        self._each(lambda tracker: tracker.close(), self.done)
        if self.file is not None:
            self._write()
            self.file.close()

    def _write(self) -> str | None:
        """Bring the waiting lines into the file, as far as they go; what stops them, where it is new."""
        assert self.file is not None
        try:
            while self.waiting:
                self.waiting = self.waiting[self.file.write(self.waiting) :]
        except OSError as error:
            known, self.stuck = self.stuck, True
            return None if known else error.strerror
        self.stuck = False
        return None

    def _show(self, text: str) -> None:
        try:
            if self.terminal:
                tqdm.write(text)
        except UnicodeEncodeError:  # a sample in letters that this terminal doesn't have
            tqdm.write(ascii(text))
        except OSError:  # the terminal was closed, or a pipe's other end: the file still tells everything
            self.terminal = False

    def _track(self, step: int, group: str, values: dict[str, float]) -> None:
        self._each(lambda tracker: tracker.log(step, {f"{group}/{name}": v for name, v in values.items()}), step)

    def _each(self, act: Callable[[Tracker], None], step: int) -> None:
        for tracker in list(self.trackers):
            try:
                act(tracker)
            except Exception as error:  # whatever it is, a run is worth more than its dashboard
                self.trackers.remove(tracker)
                self.note(step, tracker.name, f"given up, the run goes on without it ({error})")


def _ends_within_a_line(path: Path) -> bool:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        return size > 0 and file.seek(size - 1) >= 0 and file.read(1) != b"\n"


def short_count(number: float) -> str:
    """A count as people say it: 1310720 → `1.31M`."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:g}"


def truncate_log(path: Path, length: int) -> None:
    """Shorten a log to its first `length` bytes, where `RunLog.position` stood; a shorter one is left as it is."""
    with open(path, "r+b") as file:
        if file.seek(0, os.SEEK_END) > length:
            file.truncate(length)
            os.fsync(file.fileno())
