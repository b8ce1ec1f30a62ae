"""Write and read log.txt.

Holds:    `RunLog`, `Log`, `read_log`.
Built in: notebook 12.
Imports:  numpy, tqdm, gpt2.errors.

A log is lines of text that a person reads while the run goes on and a program reads afterwards:

    # lines at the top: what runs, on what
    step    0 | loss: 10.955009 | lr: 1.2000e-05 | norm: 15.9685 | dt: 12701.84ms | tok/sec: 41276.54
    step  250 | val loss: 6.1631 | bits/byte: 1.8312
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gpt2.errors import UserError


class RunLog:
    """The log of a run: appended to a file and shown on the terminal, by the first process alone."""

    def __init__(self, path: Path, active: bool, steps: int):
        """`active` False makes every method do nothing (on all processes but the first)."""
        self.active = active
        self.file = open(path, "a", buffering=1, encoding="utf-8") if active else None  # noqa: SIM115 - open as long as the run
        self.bar = tqdm(total=steps, unit="step", disable=None if active else True)

    def line(self, text: str) -> None:
        """One line, in the file and on the terminal (above the bar)."""
        if self.file is not None:
            self.file.write(text + "\n")
            tqdm.write(text)

    def header(self, lines: dict[str, str]) -> None:
        """What runs, on what: lines that start with `#`."""
        for name, value in lines.items():
            self.line(f"# {name}: {value}")

    def step(self, step: int, loss: float, lr: float, norm: float, seconds: float, tokens: int) -> None:
        """One optimiser step: loss in nats per token, gradient norm before clipping, tokens over all processes."""
        self.line(
            f"step {step:4d} | loss: {loss:.6f} | lr: {lr:.4e} | norm: {norm:.4f} "
            f"| dt: {seconds * 1e3:.2f}ms | tok/sec: {tokens / seconds:.2f}"
        )
        self.bar.update()

    def validation(self, step: int, loss: float, bits_per_byte: float) -> None:
        """Validation loss in nats per token and bits per byte."""
        self.line(f"step {step:4d} | val loss: {loss:.4f} | bits/byte: {bits_per_byte:.4f}")

    def samples(self, step: int, texts: list[str]) -> None:
        """Texts that the model wrote, each as a JSON string so that it stays one line."""
        for text in texts:
            self.line(f"step {step:4d} | sample: {json.dumps(text, ensure_ascii=False)}")

    def close(self) -> None:
        """Close the bar and the file."""
        self.bar.close()
        if self.file is not None:
            self.file.close()


@dataclass(frozen=True)
class Log:
    """A log as arrays. `step` goes with `loss`, `lr`, `norm`, `dt` (ms) and `tok_per_sec`; `val_step` with
    `val_loss` (nats per token) and `bits_per_byte`."""

    name: str
    header: dict[str, str]
    step: np.ndarray
    loss: np.ndarray
    lr: np.ndarray
    norm: np.ndarray
    dt: np.ndarray
    tok_per_sec: np.ndarray
    val_step: np.ndarray
    val_loss: np.ndarray
    bits_per_byte: np.ndarray


_NUMBER = r"(nan|[-+]?inf|[-+]?[\d.]+(?:e[-+]?\d+)?)"
_STEP = re.compile(
    rf"step +(\d+) \| loss: {_NUMBER} \| lr:? {_NUMBER} \| norm: {_NUMBER} \| dt: {_NUMBER}ms \| tok/sec: {_NUMBER}"
)
_VAL = re.compile(rf"step +(\d+) \| val loss: {_NUMBER} \| bits/byte: {_NUMBER}")


def read_log(path: str | Path) -> Log:
    """Read a log.txt. Raises UserError where there is none or it holds no steps."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't read the log {path} ({error}); give the log.txt of a run") from None
    header = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# ") and ": " in line)
    steps = np.array([m.groups() for line in lines if (m := _STEP.fullmatch(line))], dtype=float).reshape(-1, 6)
    vals = np.array([m.groups() for line in lines if (m := _VAL.fullmatch(line))], dtype=float).reshape(-1, 3)
    if not len(steps):
        raise UserError(f"{path} holds no line such as 'step    0 | loss: …'; give the log.txt of a run")
    return Log(str(path), header, *steps.T, *vals.T)
