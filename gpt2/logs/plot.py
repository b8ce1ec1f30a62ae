"""Every figure's style, and the figure of a run.

Built in notebook 00.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import tyro
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from gpt2.logs.reader import Log, read_log
from gpt2.logs.writer import short_count
from gpt2.system.errors import UserError

# what a log has a panel for, beside the loss: column of `Log` → label
PANELS = {"lr": "learning rate", "norm": "gradient norm", "tok_per_sec": "tokens/s, all processes"}
LOSS = {"nats": "loss (nats per token)", "bits-per-byte": "loss (bits per byte)"}
HELLASWAG = {"GPT-2 124M by OpenAI": 0.2955, "chance": 0.25}  # acc_norm, of the published weights

# Okabe and Ito's palette, which stays apart for colour-blind readers
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]


def style() -> None:
    """Set matplotlib to the one style of all figures: palette, light grid, no box, opaque white ground."""
    plt.rcParams.update(
        {
            "axes.prop_cycle": cycler(color=COLOURS),
            "axes.grid": True,
            "grid.alpha": 0.25,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "figure.facecolor": "white",
            "figure.dpi": 110,
            "font.size": 10,
            "legend.frameon": False,
            "lines.linewidth": 1.5,
        }
    )


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred running mean; at the ends over what there is."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def plot_logs(
    logs: list[Log],
    x: Literal["step", "tokens", "hours"] = "step",
    tokens_per_second: float | None = None,
    y: Literal["nats", "bits-per-byte"] = "nats",
) -> Figure:
    """Loss with validation loss, learning rate, gradient norm, tokens/s and HellaSwag of logs, overlaid.

    A panel that no log has anything for is left out. `x` in hours is the time spent in training steps, or with
    `tokens_per_second` what an accelerator of that speed would have needed (Languini's axis, arXiv 2309.11197). `y` in
    bits per byte compares runs of different vocabularies. Raises UserError where a log doesn't say what `x` or `y`
    needs.
    """
    style()
    units = [_bits_per_byte(log) if y == "bits-per-byte" else 1.0 for log in logs]
    panels = [name for name in PANELS if any(np.isfinite(getattr(log, name)).any() for log in logs)]
    panels += ["hellaswag"] if any(len(log.hellaswag) for log in logs) else []
    rows: list[Any] = [["loss"] * max(1, len(panels))] * 2 + ([panels] if panels else [])
    figure, axes = plt.subplot_mosaic(rows, figsize=(10, 7.5 if panels else 5), layout="constrained")
    for log, name, colour, unit in zip(logs, short_names(logs), COLOURS * len(logs), units, strict=False):
        at, val_at = (positions(log, steps, x, tokens_per_second) for steps in (log.step, log.val_step))
        _draw_loss(axes["loss"], log, at, val_at, unit, colour, name if len(logs) > 1 else "")
        for panel in PANELS.keys() & set(panels):
            axes[panel].plot(at, getattr(log, panel), color=colour)
        if len(log.hellaswag):
            at = positions(log, log.hellaswag_step, x, tokens_per_second)
            axes["hellaswag"].plot(at, log.hellaswag, ".-", color=colour)
    for panel, axis in axes.items():
        axis.set(xlabel="hours" if tokens_per_second else x, ylabel=PANELS.get(panel, LOSS[y]))
        if x == "tokens":
            axis.xaxis.set_major_formatter(lambda value, _: short_count(value))
            axis.xaxis.set_major_locator(plt.MaxNLocator(9 if panel == "loss" else 4))
    if tokens_per_second:
        axes["loss"].set_xlabel(f"hours of an accelerator at {tokens_per_second:,.0f} tokens/s")
    axes["loss"].legend(fontsize="medium" if len(logs) == 1 else "small")
    _finish_panels(axes)
    return figure


def positions(log: Log, steps: np.ndarray, x: str, tokens_per_second: float | None = None) -> np.ndarray:
    """Where on the axis `x` these steps begin. Raises UserError where the log doesn't say what that needs."""
    if x == "tokens" or tokens_per_second:
        if not np.isfinite(log.batch_tokens):
            flag = "--tokens-per-second" if tokens_per_second else "--x tokens"
            raise UserError(f"{log.name} doesn't say how many tokens a step has; leave {flag} out")
        return steps * log.batch_tokens / (3600 * tokens_per_second if tokens_per_second else 1)
    if x == "hours":
        if not np.isfinite(log.seconds).any():
            raise UserError(f"{log.name} doesn't say how long a step took; leave --x hours out")
        return np.interp(steps, [0, *(log.step + 1)], [0, *log.seconds]) / 3600
    return steps


def _bits_per_byte(log: Log) -> float:
    """Bits per byte that one nat per token is, by the log's validations; UserError where they don't say."""
    ratio = log.bits_per_byte / log.val_loss
    if not np.isfinite(ratio).any():
        raise UserError(f"{log.name} doesn't say bits per byte; leave --y bits-per-byte out")
    return float(np.nanmedian(ratio))


def short_names(logs: list[Log]) -> list[str]:
    """The logs' paths without the folder that all are in, at most 40 letters of each."""
    parts = [Path(log.name).parts for log in logs]
    shared = 0
    while all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    names = [str(Path(*part[shared:])) for part in parts]
    return [name if len(name) <= 40 else f"{name[:19]}…{name[-20:]}" for name in names]


def _draw_loss(axis: Axes, log: Log, at: np.ndarray, val_at: np.ndarray, unit: float, colour: str, name: str) -> None:
    """The loss of every step, its running mean, and the validation loss, labelled with `name` where there is one.

    `at` and `val_at` are their places on the x axis; a nat per token is `unit` on the y axis.
    """
    there = np.isfinite(log.loss)
    loss = unit * log.loss[there]
    if len(loss):
        window = max(1, len(loss) // 50)
        axis.plot(at[there], loss, color=colour, alpha=0.25, linewidth=0.8)
        axis.plot(at[there], smooth(loss, window), color=colour, label=f"{name or 'training'}, mean of {window}")
    if len(log.val_step):
        bits = log.bits_per_byte[-1]
        last = f"{log.val_loss[-1]:.4f} nats" + (f", {bits:.3f} bits per byte" if np.isfinite(bits) else "")
        label = f"{name}, validation: {last} at the end" if name else f"validation: {last} at the end"
        size = 6 if len(log.val_step) < 30 else 3
        axis.plot(val_at, unit * log.val_loss, "o--", color=colour, mfc="white", markersize=size, label=label)


def _finish_panels(axes: dict[str, Axes]) -> None:
    """What is particular to a panel, where it is there."""
    if norm := axes.get("norm"):
        norm.set_yscale("log", nonpositive="mask")
        norm.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        norm.yaxis.set_major_formatter("{x:g}")
        norm.yaxis.set_minor_formatter("")
    if speed := axes.get("tok_per_sec"):
        speed.set_ylim(0, None)
        speed.yaxis.set_major_formatter(lambda value, _: short_count(value))
    if hellaswag := axes.get("hellaswag"):
        hellaswag.set_ylabel("HellaSwag, acc_norm")
        for name, value in HELLASWAG.items():
            hellaswag.axhline(value, color="grey", linewidth=0.8, linestyle=":")
            hellaswag.annotate(name, (0.02, value), xycoords=("axes fraction", "data"), fontsize=7, va="bottom")


@dataclass(frozen=True)
class Options:
    """Draw the losses, learning rate, gradient norm, speed and HellaSwag accuracy of one log or several, overlaid.

    A log is the log.txt of a run of train_gpt2.py, or one of build-nanogpt, nanoGPT, llm.c or modded-nanogpt.
    """

    logs: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("log.txt"),)
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("loss.png")
    x: Literal["step", "tokens", "hours"] = "step"
    """What is drawn to the right: steps, tokens seen, or hours spent in training steps."""
    tokens_per_second: float | None = None
    """Draw to the right the hours that a reference accelerator of this speed would have needed for the tokens seen
    (an RTX 3090: 55,416 with languini-small, 16,618 with languini-medium)."""
    y: Literal["nats", "bits-per-byte"] = "nats"
    """The loss in nats per token, or in bits per byte, which compares runs of different vocabularies."""


def main(options: Options) -> None:
    """Draw, and say what was written. Raises UserError for a file that is no log, or can't be written."""
    matplotlib.use("Agg")
    speed = options.tokens_per_second
    if speed is not None and not 0 < speed < float("inf"):
        raise UserError(f"--tokens-per-second {speed} is out of range; give more than 0")
    if speed and options.x == "tokens":
        raise UserError(f"--tokens-per-second {speed:g} makes x hours; leave --x tokens out")
    figure: Any = plot_logs([read_log(path) for path in options.logs], options.x, speed, options.y)
    try:
        figure.savefig(options.out)
    except (OSError, ValueError) as error:
        raise UserError(f"can't write {options.out} ({error}); name a .png, .svg or .pdf with -o") from None
    print(f"wrote {options.out}")
