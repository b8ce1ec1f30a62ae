"""The forms of the lines in which GPT-2 projects write down a run.

Built in notebook 12.

Taken from what each project writes: build-nanogpt's log.txt and what it prints; what nanoGPT prints; llm.c's main.log
(of its C, CUDA and Python trainers); the logs in modded-nanogpt's records/, which begin with the script that ran.
"""

import math
import re
from collections import Counter


def _pattern(form: str) -> re.Pattern[str]:
    """A line's form: `<loss>` is a number, `<loss.4>` one of at least 4 decimals, so that half of it isn't taken."""

    def number(found: re.Match[str]) -> str:
        digits = rf"\d[\d,]*\.\d{{{found[2]},}}" if found[2] else r"\d[\d,]*(?:\.\d*)?(?:e[-+]?\d+)?"
        return rf"(?P<{found[1]}>[-+]?(?:nan|inf|{digits}))"

    return re.compile(re.sub(r"<(\w+)(?:\.(\d))?>", number, form))


OURS = "log.txt of train_gpt2.py"

# who writes → the forms of the lines that are read; no line has two writers
FORMATS: dict[str, list[re.Pattern[str]]] = {
    OURS: [
        _pattern(r"step +<step> \| loss: <loss> \| lr: <lr> \| norm: <norm> \| dt: <dt>ms \| tok/sec: <tok_per_sec.2>"),
        _pattern(r"step +<step> \| val loss: <val_loss> \| bits/byte: <bits_per_byte.4>"),
        _pattern(r"step +<step> \| hellaswag: \d+/\d+ = <hellaswag.4>"),
    ],
    "build-nanogpt": [
        _pattern(r"step +<step> \| loss: <loss> \| lr <lr> \| norm: <norm> \| dt: <dt>ms \| tok/sec: <tok_per_sec.2>"),
        _pattern(r"total desired batch size: <batch_tokens>"),
        _pattern(r"validation loss: <val_loss.4>"),  # of the step that the next line names
        _pattern(r"HellaSwag accuracy: \d+/\d+=<hellaswag.4>"),
        _pattern(r"<step> train <loss.4>"),
        _pattern(r"<step> val <val_loss.4>"),
        _pattern(r"<step> hella <hellaswag.4>"),
    ],
    "nanoGPT": [
        _pattern(r"iter <step>: loss <loss>, time <dt>ms(?:, mfu \S+%)?"),
        _pattern(r"step <step>: train loss \S+, val loss <val_loss.4>"),
        _pattern(r"tokens per iteration will be: <batch_tokens>"),
    ],
    "llm.c": [
        _pattern(r"s:<step> trl:<loss.4>(?: lr:<lr> norm:<norm.2>)?"),
        _pattern(r"s:<step> tel:<val_loss.4>"),
        _pattern(r"s:<step> eval:<hellaswag.4>"),
    ],
    "modded-nanogpt": [
        _pattern(
            r"step:<step>/\d+ (?:train_loss:<loss> |val_loss:<val_loss> )?(?:\S+ )*?"
            r"train_time:(?:<elapsed_ms>ms|<elapsed_s>s)\b.*"
        ),
    ],
}


def recognise(lines: list[str]) -> str | None:
    """Which of the `FORMATS` most of the lines about a step have; None where there are no such lines."""
    counts = Counter(source for line in lines for source, forms in FORMATS.items() if "step" in _values(line, forms))
    return counts.most_common(1)[0][0] if counts else None


def _values(line: str, forms: list[re.Pattern[str]]) -> dict[str, float]:
    found = next((match for form in forms if (match := form.fullmatch(line))), None)
    groups = found.groupdict() if found else {}
    return {name: float(digits.replace(",", "")) for name, digits in groups.items() if digits}


def rows_of(lines: list[str], source: str) -> tuple[dict[int, dict[str, float]], float]:
    """What the lines of a format say of each step, {step: {column: number}}, and the tokens of one step (or NaN).

    Columns are those of `gpt2.logs.reader.Log`, and `elapsed`, a clock in ms at the end of the step. A run that was
    stopped and resumed, or begun again, replaces what it had said of later steps.
    """
    rows: dict[int, dict[str, float]] = {}
    latest, batch_tokens = 0, float("nan")
    pending: dict[str, float] = {}  # said before the step was named

    def add(step: int, values: dict[str, float]) -> None:
        nonlocal latest
        if step < latest:
            for undone in [known for known in rows if known > step]:
                del rows[undone]
        latest = step
        rows.setdefault(step, {}).update(values)

    for line in lines:
        values = _values(line, FORMATS[source])
        batch_tokens = values.pop("batch_tokens", batch_tokens)
        if "step" not in values:
            pending |= values
            continue
        step = int(values.pop("step"))
        elapsed = values.pop("elapsed_ms", 1e3 * values.pop("elapsed_s", float("nan")))
        if math.isfinite(elapsed):  # modded-nanogpt: `step:1` is said after the first step, which is our step 0
            validation = {"val_loss": values.pop("val_loss")} if "val_loss" in values else {}
            if step > 0:
                add(step - 1, values | {"elapsed": elapsed})
            values = validation
        if values:
            add(step, values | pending)
            pending = {}
    return rows, batch_tokens
