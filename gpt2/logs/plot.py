"""The style of every figure, and the figure of a run.

Built in notebook 00.
"""

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import tyro
from annotated_types import Gt, Lt
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from gpt2.logs.reader import PUBLISHED, Log, published_log, published_runs, read_log
from gpt2.logs.writer import short_count
from gpt2.system.errors import UserError
from gpt2.system.ranges import check_ranges

LOSS = {"nats": "loss (nats per token)", "bits-per-byte": "loss (bits per byte)"}
# the panels below the loss: column of `Log` → label
PANELS = {
    "lr": "learning rate",
    "norm": "gradient norm",
    "tok_per_sec": "tokens/s, all processes",
    "hellaswag": "HellaSwag, acc_norm",
}
HELLASWAG = {"GPT-2 124M by OpenAI": 0.2955, "chance": 0.25}  # acc_norm, of the published weights

# the palette of Okabe and Ito, whose colours differ for colour-blind readers too
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]


def style() -> None:
    """Set matplotlib to the style of all figures: palette, light grid, no frame, white background."""
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
    """The running mean over a centred window, which is cut off at both ends of `values`."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def plot_logs(
    logs: list[Log],
    x: Literal["step", "tokens", "hours"] = "step",
    tokens_per_second: float | None = None,
    y: Literal["auto", "nats", "bits-per-byte"] = "auto",
) -> Figure:
    """Draw the losses of logs into one panel, and a panel for each of `PANELS` that any of the logs has numbers for.

    `x` in hours is the time spent in training steps. With `tokens_per_second` it is the time that an accelerator of
    this speed would have needed (the axis of Languini, arXiv 2309.11197). `y` in bits per byte compares runs of
    different vocabularies, and is chosen for them. Raises UserError if a log lacks what `x` or `y` needs.
    """
    unit = _loss_unit(logs, y)
    style()
    panels = [name for name in PANELS if any(np.isfinite(getattr(log, name)).any() for log in logs)]
    rows: list[Any] = [["loss"] * max(1, len(panels))] * 2 + ([panels] if panels else [])
    figure, axes = plt.subplot_mosaic(rows, figsize=(10, 7.5 if panels else 5), layout="constrained")
    for log, name, colour in zip(logs, short_names(logs), COLOURS * len(logs), strict=False):
        place = functools.partial(positions, log, x=x, tokens_per_second=tokens_per_second)
        scale = _bits_per_nat(log) if unit == "bits-per-byte" else 1.0
        _draw_loss(axes["loss"], log, place, scale, label=f"{name}, " if len(logs) > 1 else "", colour=colour)
        for panel in panels:
            steps, form = (log.hellaswag_step, ".-") if panel == "hellaswag" else (log.step, "-")
            axes[panel].plot(place(steps), getattr(log, panel), form, color=colour)
    for panel, axis in axes.items():
        axis.set(xlabel="hours" if tokens_per_second else x, ylabel=PANELS.get(panel, LOSS[unit]))
        if x == "tokens":
            axis.xaxis.set_major_formatter(lambda value, _: short_count(value))
            axis.xaxis.set_major_locator(plt.MaxNLocator(9 if panel == "loss" else 4))
    if tokens_per_second:
        axes["loss"].set_xlabel(f"hours of an accelerator at {tokens_per_second:,.0f} tokens/s")
    axes["loss"].legend(fontsize="medium" if len(logs) == 1 else "small")
    _finish_panels(axes)
    return figure


def positions(log: Log, steps: np.ndarray, x: str, tokens_per_second: float | None = None) -> np.ndarray:
    """Where these steps start on the axis `x`. Raises UserError if the log does not contain what this needs."""
    if tokens_per_second or x == "tokens":
        if not np.isfinite(log.batch_tokens):
            flag = "--tokens-per-second" if tokens_per_second else "--x tokens"
            raise UserError(f"{log.name} doesn't say how many tokens a step has; leave {flag} out")
        return steps * log.batch_tokens / (3600 * tokens_per_second if tokens_per_second else 1)
    if x == "hours":
        if not np.isfinite(log.seconds).any():
            raise UserError(f"{log.name} doesn't say how long a step took; leave --x hours out")
        return np.interp(steps, [0, *(log.step + 1)], [0, *log.seconds]) / 3600
    return steps


def short_names(logs: list[Log]) -> list[str]:
    """The paths of the logs, without the folder that they share, shortened to 40 characters; or their titles."""
    paths = [Path(log.name).absolute() for log in logs if log.source != PUBLISHED]
    shared = os.path.commonpath([path.parent for path in paths]) if paths else ""
    names = [log.name if log.source == PUBLISHED else os.path.relpath(log.name, shared) for log in logs]
    return [name if len(name) <= 41 else f"{name[:19]}…{name[-20:]}" for name in names]


def _loss_unit(logs: list[Log], y: str) -> str:
    """The unit of the loss that compares these logs. Raises UserError where none does."""
    by_size = {log.vocab_size: log for log in logs if log.vocab_size}
    if len(by_size) < 2:
        return "nats" if y == "auto" else y
    if y == "bits-per-byte" or (y == "auto" and all(np.isfinite(log.bits_per_byte).any() for log in logs)):
        return "bits-per-byte"
    (one, first), (other, second) = list(by_size.items())[:2]
    mend = "give --y bits-per-byte" if y == "nats" else "draw them apart, because not all say bits per byte"
    raise UserError(
        f"{first.name} has a vocabulary of {one:,} tokens, {second.name} one of {other:,}, so nats per token can't "
        f"compare them; {mend}"
    )


def _bits_per_nat(log: Log) -> float:
    """The bits per byte that one nat per token is, from the validations. Raises UserError if they don't say it."""
    ratios = log.bits_per_byte / log.val_loss
    if not np.isfinite(ratios).any():
        raise UserError(f"{log.name} doesn't say bits per byte; leave --y bits-per-byte out")
    return float(np.nanmedian(ratios))


def _draw_loss(
    axis: Axes, log: Log, place: Callable[[np.ndarray], np.ndarray], unit: float, label: str, colour: str
) -> None:
    """Draw the loss of every step, its running mean, and the validation loss, in `unit` per nat."""
    known = np.isfinite(log.loss)
    if known.any():
        at, loss = place(log.step[known]), unit * log.loss[known]
        window = max(1, len(loss) // 50)
        axis.plot(at, loss, color=colour, alpha=0.25, linewidth=0.8)
        axis.plot(at, smooth(loss, window), color=colour, label=f"{label or 'training, '}mean of {window}")
    if len(log.val_step):
        bits = f", {log.bits_per_byte[-1]:.3f} bits per byte" if np.isfinite(log.bits_per_byte[-1]) else ""
        axis.plot(
            place(log.val_step),
            unit * log.val_loss,
            "o--",
            color=colour,
            markerfacecolor="white",
            markersize=6 if len(log.val_step) < 30 else 3,
            label=f"{label}validation: {log.val_loss[-1]:.4f} nats{bits} at the end",
        )


def _finish_panels(axes: dict[str, Axes]) -> None:
    if norm := axes.get("norm"):
        norm.set_yscale("log", nonpositive="mask")
        norm.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        norm.yaxis.set_major_formatter("{x:g}")
        norm.yaxis.set_minor_formatter("")
    if speed := axes.get("tok_per_sec"):
        speed.set_ylim(0, None)
        speed.yaxis.set_major_formatter(lambda value, _: short_count(value))
    if hellaswag := axes.get("hellaswag"):
        for name, value in HELLASWAG.items():
            hellaswag.axhline(value, color="grey", linewidth=0.8, linestyle=":")
            hellaswag.annotate(name, (0.02, value), xycoords=("axes fraction", "data"), fontsize=7, va="bottom")


@dataclass(frozen=True)
class Options:
    """Draw the losses, learning rate, gradient norm, speed and HellaSwag accuracy of one log or several, overlaid.

    A log is a run folder of train_gpt2.py or its log.txt, or what build-nanogpt, Train GPT-2, nanoGPT, llm.c or
    modded-nanogpt wrote.
    """

    logs: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("log.txt"),)
    published: Annotated[tuple[str, ...], tyro.conf.arg(name="with")] = ()
    """Published runs to draw beside them: lecture, train-gpt-2, llmc-124m, speedrun-8."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("loss.png")
    x: Literal["step", "tokens", "hours"] = "step"
    """The horizontal axis: steps, tokens seen, or hours spent in training steps."""
    tokens_per_second: Annotated[float | None, Gt(0), Lt(math.inf)] = None
    """Make the horizontal axis the hours that a reference accelerator of this speed would have needed for the tokens
    (an RTX 3090: 55,416 with languini-small, 16,618 with languini-medium)."""
    y: Literal["auto", "nats", "bits-per-byte"] = "auto"
    """The loss in nats per token, or in bits per byte. auto: nats, but bits per byte for different vocabularies."""


def main(options: Options) -> None:
    """Draw the figure into a file. Raises UserError for a file that is no log, or that can't be written."""
    matplotlib.use("Agg")
    check_ranges(options)
    if options.out.is_dir() or not options.out.suffix:
        what = "is a folder" if options.out.is_dir() else "has no ending"
        raise UserError(f"-o {options.out} {what}; name a .png, .svg or .pdf file")
    speed = options.tokens_per_second
    if speed and options.x == "tokens":
        raise UserError(f"--tokens-per-second {speed:g} makes x hours; leave --x tokens out")
    names = [name for word in options.published for name in word.split(",")]
    if unknown := sorted(set(names) - published_runs().keys()):
        raise UserError(f"--with {unknown[0]} is not a published run; known: {', '.join(published_runs())}")
    logs = [*(read_log(path) for path in options.logs), *(published_log(name) for name in names)]
    figure: Any = plot_logs(logs, options.x, speed, options.y)
    try:
        figure.savefig(options.out)
    except (OSError, ValueError) as error:
        raise UserError(f"can't write {options.out} ({error}); name a .png, .svg or .pdf with -o") from None
    print(f"wrote {options.out}")
