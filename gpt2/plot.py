"""Every figure's style, and the figure of a run.

Holds:    `style`, `plot_logs`, and `python -m gpt2.plot log.txt [more logs] -o loss.png`.
Built in: notebook 00.
Imports:  matplotlib, numpy, tyro, gpt2.logs, gpt2.errors.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import tyro
from cycler import cycler
from matplotlib.figure import Figure

from gpt2.errors import UserError, run_command
from gpt2.logs import Log, read_log

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


def plot_logs(logs: list[Log]) -> Figure:
    """Loss with validation loss, learning rate, gradient norm and tokens/s of one or several logs, overlaid."""
    style()
    figure, axes = plt.subplot_mosaic(
        [["loss"] * 3, ["loss"] * 3, ["lr", "norm", "speed"]], figsize=(10, 7.5), layout="constrained"
    )
    for log, colour in zip(logs, COLOURS * len(logs), strict=False):
        name = log.name if len(logs) > 1 else "training"
        axes["loss"].plot(log.step, log.loss, color=colour, alpha=0.25, linewidth=0.8)
        window = max(1, len(log.step) // 50)
        axes["loss"].plot(log.step, smooth(log.loss, window), color=colour, label=f"{name}, mean of {window}")
        if len(log.val_step):
            label = f"validation: {log.val_loss[-1]:.4f} nats, {log.bits_per_byte[-1]:.3f} bits per byte at the end"
            axes["loss"].plot(
                log.val_step, log.val_loss, "o--", color=colour, mfc="white", label=label if len(logs) == 1 else None
            )
        axes["lr"].plot(log.step, log.lr, color=colour)
        axes["norm"].semilogy(log.step, log.norm, color=colour)
        axes["norm"].yaxis.set_major_formatter("{x:g}")
        axes["norm"].yaxis.set_minor_formatter("{x:g}")
        axes["speed"].plot(log.step, log.tok_per_sec, color=colour)
    axes["loss"].set(xlabel="step", ylabel="loss (nats per token)")
    axes["loss"].legend()
    axes["lr"].set(xlabel="step", ylabel="learning rate")
    axes["norm"].set(xlabel="step", ylabel="gradient norm")
    axes["speed"].set(xlabel="step", ylabel="tokens/s, all processes", ylim=(0, None))
    return figure


@dataclass(frozen=True)
class Options:
    """Draw the losses, learning rate, gradient norm and speed of one log or several."""

    logs: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("log.txt"),)
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("loss.png")


def main() -> None:
    """`python -m gpt2.plot`: see `Options`."""
    options = tyro.cli(Options, prog="python -m gpt2.plot")
    figure: Any = plot_logs([read_log(path) for path in options.logs])
    try:
        figure.savefig(options.out)
    except (OSError, ValueError) as error:
        raise UserError(f"can't write {options.out} ({error}); name a .png, .svg or .pdf with -o") from None
    print(f"wrote {options.out}")


if __name__ == "__main__":
    matplotlib.use("Agg")
    run_command(main)
