"""Read a log of this project or of another one into arrays.

Built in notebook 12.
"""

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.logs.formats import FORMATS, OURS, recognise, rows_of
from gpt2.system.errors import UserError

PUBLISHED = "published figures"


@dataclass(frozen=True)
class Log:
    """A log as arrays; NaN stands for a number that the log does not contain.

    Columns of one group have the same length; the first one holds the steps.
    """

    name: str  # path of the file, or title of a published run
    source: str  # one of gpt2.logs.formats.FORMATS, or PUBLISHED
    header: dict[str, str]
    batch_tokens: float  # tokens per step
    # training steps
    step: np.ndarray
    loss: np.ndarray  # nats per token
    lr: np.ndarray
    norm: np.ndarray
    dt: np.ndarray  # ms
    tok_per_sec: np.ndarray
    seconds: np.ndarray  # spent in training steps, without evaluation, from the start to the end of this step
    # validations
    val_step: np.ndarray
    val_loss: np.ndarray  # nats per token
    bits_per_byte: np.ndarray
    # evaluations on HellaSwag
    hellaswag_step: np.ndarray
    hellaswag: np.ndarray  # accuracy, 0 to 1

    @property
    def vocab_size(self) -> int | None:
        """The size of the vocabulary, if the log says it."""
        match = re.search(r'"vocab_size": (\d{1,15})', self.header.get("model", ""))
        return int(match[1]) if match else None


def read_log(path: str | Path) -> Log:
    """Read a log of any of the `FORMATS`, which is recognised by its lines; other lines are ignored.

    `path` is a file, or a run folder with a log.txt.
    Raises UserError for a file that can't be read, or that has lines about fewer than two steps, as a text that quotes
    a log has. A curve needs two.
    """
    path = Path(path)
    path = path / "log.txt" if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"can't read the log {path} ({error.strerror}); give the log.txt of a run") from None
    lines = [line.rstrip() for line in text.split("\n")]
    source = recognise(lines)
    rows, batch_tokens = rows_of(lines, source) if source else ({}, np.nan)
    if source is None or len(rows) < 2:
        raise UserError(
            f"{path} holds {'only one step' if rows else 'no line'} of a log; give the log.txt of a run, or one of "
            f"{', '.join(list(FORMATS)[1:])} (their log file, or what they print)"
        )
    header = [line[2:].split(": ", 1) for line in lines if source == OURS and line.startswith("# ") and ": " in line]
    return log_of_rows(str(path), source, dict(header), rows, batch_tokens)


@functools.cache
def published_runs() -> dict[str, dict[str, Any]]:
    """What is known of published runs, by short name: title, source, date, tokens and ms per step, losses by step."""
    return json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))


def published_log(name: str) -> Log:
    """The losses of one of the `published_runs`. Its name is a title that says which text it was validated on."""
    run = published_runs()[name]
    rows: dict[int, dict[str, float]] = {}
    for column in ("loss", "val_loss"):
        for step, value in run[column]:
            rows.setdefault(step, {})[column] = value
    for row in rows.values():
        row["dt"] = run["step_ms"] or np.nan
    header = {"source": run["source"], "date": run["date"], "model": f'{{"vocab_size": {run["vocab_size"]}}}'}
    return log_of_rows(run["title"], PUBLISHED, header, rows, run["batch_tokens"])


def log_of_rows(
    name: str, source: str, header: dict[str, str], rows: dict[int, dict[str, float]], batch_tokens: float
) -> Log:
    """The log whose rows have these numbers; what follows from others is computed."""
    training = _table(rows, "step", "loss", "lr", "norm", "dt", "tok_per_sec", "elapsed_ms")
    training["dt"], training["seconds"] = _times(training["step"], training["dt"], training.pop("elapsed_ms"))
    if np.isnan(batch_tokens):
        batch_tokens = float(np.round(_median(training["dt"] * training["tok_per_sec"]) / 1e3))
    with np.errstate(divide="ignore"):
        computed = batch_tokens / training["dt"] * 1e3
    training["tok_per_sec"] = np.where(np.isnan(training["tok_per_sec"]), computed, training["tok_per_sec"])
    validations = _table(rows, "val_step", "val_loss", "bits_per_byte")
    hellaswag = _table(rows, "hellaswag_step", "hellaswag")
    return Log(name, source, header, batch_tokens, **training, **validations, **hellaswag)


def _median(values: np.ndarray) -> float:
    """The median of the numbers that are finite; NaN if there are none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else np.nan


def _table(rows: dict[int, dict[str, float]], steps_name: str, *columns: str) -> dict[str, np.ndarray]:
    """The steps at which any of the columns has a number, under the name `steps_name`; and the columns."""
    steps = sorted(step for step, row in rows.items() if row.keys() & set(columns))
    arrays = {column: np.array([rows[step].get(column, np.nan) for step in steps]) for column in columns}
    return {steps_name: np.array(steps, dtype=float), **arrays}


def _times(step: np.ndarray, dt: np.ndarray, elapsed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ms per step, and the seconds from the start of the run to the end of each step.

    They come from a clock in ms if the log has one; it may have been set back to 0 during the run. Otherwise they come
    from `dt`; a step that the log leaves out counts as the median step.
    """
    gaps = np.diff(step, prepend=-1)
    if np.isfinite(elapsed).any():
        spent = np.diff(elapsed, prepend=0)
        spent = np.where(spent < 0, _median((spent / gaps)[spent > 0]) * gaps, spent)
        dt = spent / gaps
    else:
        usual = _median(dt)
        spent = np.where(np.isfinite(dt), dt, usual) + (gaps - 1) * usual
    return dt, np.cumsum(spent) / 1e3
