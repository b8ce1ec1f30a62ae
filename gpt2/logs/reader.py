"""TODO."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2.logs.formats import FORMATS, OURS, recognise, rows_of
from gpt2.system.errors import UserError

TRAIN = {"loss", "lr", "norm", "dt", "tok_per_sec", "elapsed"}  # what a row of a training step may say


@dataclass(frozen=True)
class Log:
    """A log as arrays; NaN is what it doesn't say.

    `step` goes with `loss` (nats per token), `lr`, `norm`, `dt` (ms), `tok_per_sec` and `seconds` (of training, from
    the start to the end of that step, without evaluation); `val_step` with `val_loss` and `bits_per_byte`;
    `hellaswag_step` with `hellaswag` (0 to 1). `batch_tokens` are the tokens of one step. `source` wrote it.
    """

    name: str
    source: str
    header: dict[str, str]
    batch_tokens: float
    step: np.ndarray
    loss: np.ndarray
    lr: np.ndarray
    norm: np.ndarray
    dt: np.ndarray
    tok_per_sec: np.ndarray
    seconds: np.ndarray
    val_step: np.ndarray
    val_loss: np.ndarray
    bits_per_byte: np.ndarray
    hellaswag_step: np.ndarray
    hellaswag: np.ndarray


def read_log(path: str | Path) -> Log:
    """Read a log of any of the `FORMATS`, recognised by its lines; others in it are passed over.

    Raises UserError where there is no file or no line of any format in it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"can't read the log {path} ({error.strerror}); give the log.txt of a run") from None
    lines = [line.rstrip() for line in text.split("\n")]
    source = recognise(lines)
    # a page that quotes a few lines of a log is not a log
    quoted = source == OURS and 2 * sum(line.startswith(("step", "# ")) for line in lines) < sum(map(bool, lines))
    if source is None or quoted:
        raise UserError(
            f"{path} holds no line of a log; give the log.txt of a run, or one of "
            f"{', '.join(list(FORMATS)[1:])} (their log file, or what they print)"
        )
    rows, batch_tokens = rows_of(lines, source)
    headers = (line[2:].split(": ", 1) for line in lines if line.startswith("# ") and ": " in line)
    header = dict(headers) if source == OURS else {}
    if named := re.search(r"steps of ([\d,]+)", header.get("tokens", "")):
        batch_tokens = float(named[1].replace(",", ""))
    return _log(str(path), source, header, batch_tokens, rows)


def _log(name: str, source: str, header: dict[str, str], batch_tokens: float, rows: dict[int, dict[str, float]]) -> Log:
    def columns(wanted: set[str], *names: str) -> list[np.ndarray]:
        """The steps that have any of the `wanted` columns, then the named columns at these steps."""
        steps = sorted(step for step, row in rows.items() if wanted & row.keys())
        return [np.array(steps, dtype=float)] + [
            np.array([rows[step].get(column, np.nan) for step in steps]) for column in names
        ]

    step, loss, lr, norm, dt, speed, elapsed = columns(TRAIN, "loss", "lr", "norm", "dt", "tok_per_sec", "elapsed")
    if np.isfinite(elapsed).any():
        dt, seconds = _split(step, elapsed)
    else:
        seconds = _sum(step, dt)
    if np.isnan(batch_tokens) and np.isfinite(dt * speed).any():
        batch_tokens = float(round(np.nanmedian(dt * speed) / 1e3))
    with np.errstate(divide="ignore"):
        speed = np.where(np.isnan(speed), batch_tokens / dt * 1e3, speed)
    return Log(
        *(name, source, header, batch_tokens, step, loss, lr, norm, dt, speed, seconds),
        *columns({"val_loss"}, "val_loss", "bits_per_byte"),
        *columns({"hellaswag"}, "hellaswag"),
    )


def _sum(step: np.ndarray, dt: np.ndarray) -> np.ndarray:
    """Seconds from the start to each step's end; a step that no line names takes as long as most do."""
    if not np.isfinite(dt).any():
        return np.full(len(step), np.nan)
    usual = np.nanmedian(dt)
    between = np.diff(step, prepend=-1) - 1
    return np.cumsum(np.where(np.isfinite(dt), dt, usual) + between * usual) / 1e3


def _split(step: np.ndarray, elapsed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """dt in ms, and the seconds so far, from a clock in ms that may have been set back to 0 on the way."""
    spent = np.diff(elapsed, prepend=0)
    gaps = np.diff(step, prepend=-1)
    usual = np.median((spent / gaps)[spent > 0]) if (spent > 0).any() else np.nan
    spent = np.where(spent < 0, usual * gaps, spent)
    return spent / gaps, np.cumsum(spent) / 1e3
