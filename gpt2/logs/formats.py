"""The lines in which GPT-2 projects log a run, as data, and the parser that reads them.

Built in notebook 12. The forms are taken from what each project writes: build-nanogpt's log.txt and its output;
Train GPT-2's output; nanoGPT's output; llm.c's main.log (of its C, CUDA and Python trainers); the files in
modded-nanogpt's records/, which begin with the script that ran.
"""

import functools
import re

OURS = "log.txt of train_gpt2.py"

# project → the forms of its lines, as regular expressions. `<step>` stands for an integer of at most 15 digits.
# `<loss>` stands for a number, and `<loss.4>` for one of at least 4 decimals, so that a line that was cut off is not
# read. The step lines of two projects may be alike, so all lines are counted when a log is recognised.
FORMATS = {
    OURS: [
        r"step +<step> \| loss: <loss> \| lr: <lr> \| norm: <norm> \| dt: <dt>ms \| tok/sec: <tok_per_sec.2>",
        r"step +<step> \| val loss: <val_loss> \| bits/byte: <bits_per_byte.4>",
        r"step +<step> \| hellaswag: \d+/\d+ = <hellaswag.4>",
        r"# tokens: .* steps of <batch_tokens>;.*",
    ],
    "build-nanogpt": [
        r"step +<step> \| loss: <loss> \| lr <lr> \| norm: <norm> \| dt: <dt>ms \| tok/sec: <tok_per_sec.2>",
        r"total desired batch size: <batch_tokens>",
        r"validation loss: <val_loss.4>",  # of the step that the next line names
        r"HellaSwag accuracy: \d+/\d+=<hellaswag.4>",
        r"<step> train <loss.4>",
        r"<step> val <val_loss.4>",
        r"<step> hella <hellaswag.4>",
    ],
    "Train GPT-2": [
        r"step +<step> \| loss: <loss> \| lr:? <lr> \| norm: <norm> \| dt: <dt>(?:ms)? \| tok/sec: <tok_per_sec.2>",
        r"total desired batch size: <batch_tokens>",
        r"Validation loss:? <val_loss.4>",  # of the step that the next line names
    ],
    "nanoGPT": [
        r"iter <step>: loss <loss>, time <dt>ms(?:, mfu \S+%)?",
        r"step <step>: train loss \S+, val loss <val_loss.4>",
        r"tokens per iteration will be: <batch_tokens>",
    ],
    "llm.c": [
        r"s:<step> trl:<loss.4>(?: lr:<lr> norm:<norm.2>)?",
        r"s:<step> tel:<val_loss.4>",
        r"s:<step> eval:<hellaswag.4>",
    ],
    "modded-nanogpt": [
        r"step:<step>/\d+ (?:train_loss:<loss> |val_loss:<val_loss> )?(?:\S+ )*?"
        r"train_time:(?:<elapsed_ms>ms|<elapsed_s>s)\b.*",
    ],
}
# modded-nanogpt counts the steps that are done: its training line `step:1` is about the step that others call 0
COUNTS_DONE = {"modded-nanogpt"}


def recognise(lines: list[str]) -> str | None:
    """The project of `FORMATS` that has the form of most of the lines; None if there are no such lines."""
    counts = {source: sum(bool(_numbers(line, source)) for line in lines) for source in FORMATS}
    source = max(counts, key=lambda name: counts[name])
    return source if counts[source] else None


def rows_of(lines: list[str], source: str) -> tuple[dict[int, dict[str, float]], float]:
    """The numbers in the lines of a log, {step: {column: number}}, and the tokens per step (NaN if no line says them).

    Columns are named as in `gpt2.logs.reader.Log`; `elapsed` is the training time in ms at the end of the step. A run
    that was resumed, or started again, at an earlier step replaces what the log says about later steps.
    """
    rows: dict[int, dict[str, float]] = {}
    numbers: dict[str, float] = {}  # read, but the line that names their step is still to come
    latest, batch_tokens, shift = 0, float("nan"), int(source in COUNTS_DONE)
    for line in lines:
        numbers |= _numbers(line, source)
        batch_tokens = numbers.pop("batch_tokens", batch_tokens)
        if "step" not in numbers:
            continue
        step = int(numbers.pop("step")) - shift
        if step < latest:
            rows = {earlier: row for earlier, row in rows.items() if earlier <= step}
        latest = step
        for column, number in numbers.items():
            rows.setdefault(step + shift if column == "val_loss" else step, {})[column] = number
        numbers = {}
    rows.pop(-1, None)  # the clock before the first step
    return rows, batch_tokens


@functools.cache
def _patterns(source: str) -> list[re.Pattern[str]]:
    def number(placeholder: re.Match[str]) -> str:
        name, decimals = placeholder.groups()
        if name == "step":
            return r"(?P<step>\d{1,15})"
        digits = rf"\d[\d,]*\.\d{{{decimals},}}" if decimals else r"\d[\d,]*(?:\.\d*)?(?:e[-+]?\d+)?"
        return rf"(?P<{name}>[-+]?(?:nan|inf|{digits}))"

    return [re.compile(re.sub(r"<(\w+)(?:\.(\d))?>", number, form)) for form in FORMATS[source]]


def _numbers(line: str, source: str) -> dict[str, float]:
    """The numbers in a line, by the names in its form; none if it has no form of this project."""
    match = next(filter(None, (pattern.fullmatch(line) for pattern in _patterns(source))), None)
    groups = match.groupdict() if match else {}
    numbers = {name: float(digits.replace(",", "")) for name, digits in groups.items() if digits}
    if "elapsed_s" in numbers:
        numbers["elapsed_ms"] = 1e3 * numbers.pop("elapsed_s")
    return numbers
