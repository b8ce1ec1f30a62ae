"""The museum of notebook 18: the curves of its exhibits, their damage, and their cards."""

import json
import statistics
from typing import Any

import numpy as np

from checks import ROOT
from checks.exhibits import EXHIBITS

RESULTS = ROOT / "benchmarks" / "silent_bugs.json"
GITHUB = "https://github.com/"
FIRST = 3  # of the measurements that are drawn: the fall before it would hide all differences


def results() -> dict[str, Any]:
    """What benchmarks/silent_bugs.py measured."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def curves(name: str, what: str = "true") -> np.ndarray:
    """The curve of every seed of a bug: (seeds, points). `what` is true, printed, train or norm."""
    runs = results()["runs"]
    found = [log[what] for key, log in runs.items() if key.rsplit(" · ", 1)[0] == name]
    return np.array([[float(value) for value in one.split()] for one in found])


def spread() -> float:
    """The standard deviation of the last loss over the seeds of the right run, in nats per byte."""
    return statistics.stdev(curves("right")[:, -1])


def differences(name: str) -> tuple[float, float]:
    """(damage, shown): how much higher a bug's last losses are than those of the run without it, in nats per byte.

    The first is measured by right code, and the second is what the program itself prints. Means over seeds.
    """
    base = EXHIBITS[name].base
    if EXHIBITS[name].shows in ("tokens", "seeds"):
        return 0.0, 0.0
    true = curves(name)[:, -1]
    before = curves(base)[: len(true), -1] if base else true
    said = curves(base, "printed")[: len(true), -1] if base else true
    return float((true - before).mean()), float((curves(name, "printed")[:, -1] - said).mean())


def in_spreads(difference: float) -> str:
    """A difference in words: within the noise, or how many spreads."""
    many = abs(difference) / spread()
    return "within the noise" if many < 2 else f"{many:.0f} spreads"


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign, and a true minus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def table(name: str) -> str:
    """The card of an exhibit: its diff, its damage, where it was found, its check and its test."""
    one, (damage, shown) = EXHIBITS[name], differences(name)
    lines = [name.upper(), f"  - {one.right}", f"  + {one.wrong}"]
    if one.shows not in ("tokens", "seeds"):
        lines.append(f"  model: {signed(damage)} nats per byte, {in_spreads(damage)}")
        if abs(shown - damage) > 0.5 * spread():
            lines.append(f"  log:   {signed(shown)} nats per byte, {in_spreads(shown)}")
    lines.append(f"  found: {GITHUB}{one.found}")
    lines.append(f"  check: {one.check}")
    lines.append(f"  test:  {one.test or 'none can: a test sees one run'}")
    return "\n".join(lines)


def exhibit(*names: str) -> None:
    """Print the cards of some exhibits, and draw the curves of each beside those of the right run."""
    import matplotlib.pyplot as plt

    print("\n\n".join(table(name) for name in names))
    size = (3.6 * len(names), 2.3)
    _, panels = plt.subplots(1, len(names), figsize=size, dpi=70, layout="constrained", squeeze=False)
    told: set[str] = set()
    for axis, name in zip(panels[0], names, strict=True):
        _panel(axis, name)
        labels = set(axis.get_legend_handles_labels()[1])
        if not labels <= told:  # what the panels before have told is not told again
            axis.legend(fontsize=8)
        told |= labels
    plt.show()


def _panel(axis: Any, name: str) -> None:
    """One bug: three seeds of the right run, of the bug measured rightly, and of what its log says."""
    one, kept = EXHIBITS[name], results()
    steps = np.arange(FIRST, kept["steps"] // kept["every"] + 1) * kept["every"]
    damage, shown = differences(name)
    axis.set(xlabel="step", ylabel="loss (nats per byte)")
    if one.shows == "seeds":
        ends = curves("right")[:, -1]
        for seed, label in ((ends.argmax(), "worst seed"), (ends.argmin(), "best seed")):
            axis.plot(steps, curves("right")[seed, FIRST:], label=label)
        title = f"{np.ptp(ends):.3f} nats between equal runs"
    elif one.shows == "tokens":
        axis.plot(steps * kept["bytes per step"] / 1000, curves("right")[:3, FIRST:].mean(0), label="all ranks")
        axis.plot(
            steps * kept["bytes per step"] / 2000, curves("right")[:3, FIRST:].mean(0), "--", label="one rank of two"
        )
        axis.set(xlabel="1,000 bytes, as logged")
        title = "half the text for the same loss"
    elif one.shows in ("norm", "train"):
        for kind, line in ((one.base, "C0-"), (name, "C1-")):
            values = curves(kind, one.shows)[0]
            every = kept["steps"] // len(values)
            axis.plot(np.arange(1, len(values) + 1) * every, values, line, label=kind, linewidth=1)
        axis.set(ylabel="gradient norm" if one.shows == "norm" else "training loss of a step")
        title = f"model {signed(damage)}, {in_spreads(damage)}"
    else:
        if one.base:
            _seeds(
                axis,
                steps,
                curves(one.base)[: len(curves(name)), FIRST:],
                "C0-",
                "right" if one.base == "right" else f"right, {one.base}",
            )
        _seeds(axis, steps, curves(name)[:, FIRST:], "C1-", "with the bug")
        if abs(shown - damage) > 0.5 * spread():
            _seeds(axis, steps, curves(name, "printed")[:, FIRST:], "C3--", "what its log says")
        title = f"model {signed(damage)}, {in_spreads(damage)}"
        if abs(shown - damage) > 0.5 * spread():
            title = f"model {signed(damage, 2)}, log {signed(shown, 2)}"
    axis.set_title(f"{name}\n{title}", fontsize=10)


def _seeds(axis: Any, steps: np.ndarray, many: np.ndarray, line: str, label: str) -> None:
    for i, one in enumerate(many):
        axis.plot(steps, one, line, linewidth=1, label=label if i == 0 else None)
