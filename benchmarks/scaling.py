"""Which width is best for the compute there is: `novels` at several widths and learning rates, at equal FLOPs.

    python benchmarks/scaling.py       40 minutes on two cores; a run whose log is there is not made again

Every run has 6 layers with heads 64 wide, 8,192 tokens per step, and its whole schedule within its FLOPs (the planner's
count). As in Hoffmann et al. (arXiv 2203.15556), the losses of one budget make a valley: a model that is too small
learns too little from a token, one that is too large sees too few. With more compute, the valley moves to larger
models. The budgets here are so small that only its right slope is seen. Writes each log into
benchmarks/scaling/, and scaling.png.
"""

import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import tyro

from gpt2.config.presets import PRESETS
from gpt2.formats.build import make_config
from gpt2.logs.plot import COLOURS, style
from gpt2.logs.reader import Log, read_log
from gpt2.model import GPTConfig
from gpt2.planning.flops import flops_per_token, published_parameters
from gpt2.system.errors import run_command

ROOT = Path(__file__).resolve().parent.parent
LOGS = Path(__file__).resolve().parent / "scaling"
BATCH, LR = 8192, PRESETS["novels"][1].optim.lr


@dataclass(frozen=True)
class Options:
    """`novels` at several widths, at equal FLOPs."""

    shards: Path = Path("data/novels-4096")
    widths: tuple[int, ...] = (128, 192, 256, 320, 384)
    budgets: tuple[float, ...] = (3e13, 1.2e14)
    """FLOPs of a run."""
    rates: tuple[float, ...] = (0.01, 0.04)
    """Other learning rates of the matrices, at the first budget."""
    rates_width: int = 256
    folder: Path = Path("runs/scaling")


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    runs = [(width, budget, LR) for budget in options.budgets for width in options.widths]
    runs += [(options.rates_width, options.budgets[0], lr) for lr in options.rates]
    logs = {run: train(options, *run) for run in runs}
    print("| width | parameters | FLOPs | learning rate | tokens | s | bits/byte |\n|---|---|---|---|---|---|---|")
    for (width, budget, lr), log in logs.items():
        count, tokens = parameters(width) / 1e6, len(log.step) * BATCH / 1e6
        print(
            f"| {width} | {count:.2f} M | {budget:.1e} | {lr:g} | {tokens:.2f} M | {log.seconds[-1]:.0f} "
            f"| {log.bits_per_byte[-1]:.3f} |"
        )
    draw(options, logs)


def train(options: Options, width: int, budget: float, lr: float) -> Log:
    """One run of train_gpt2.py; its log is kept, and a run whose log is there is not made again."""
    kept = LOGS / f"width-{width}-flops-{budget:.1e}-lr-{lr:g}.txt"
    if not kept.exists():
        folder = options.folder / kept.stem
        steps = round(budget / (flops_per_token(config_of(width)) * BATCH))
        words = [sys.executable, "train_gpt2.py", "novels", "--log.folder", folder, "--data.shards", options.shards]
        words += ["--model.n-embd", width, "--model.n-head", width // 64, "--data.batch-tokens", BATCH]
        words += ["--optim.lr", lr, "--schedule.steps", steps, "--schedule.warmup", 0, "--eval.every", steps // 4]
        words += ["--eval.sample-every", 0, "--log.save-every", 0]
        subprocess.run([str(word) for word in words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        LOGS.mkdir(exist_ok=True)
        shutil.copy(folder / "log.txt", kept)
    return read_log(kept)


def config_of(width: int) -> GPTConfig:
    """The configuration of `novels` at this width."""
    run = PRESETS["novels"][1]
    return make_config(replace(run.model, n_embd=width, n_head=width // 64), run.parts)


def parameters(width: int) -> int:
    """Parameters of `novels` at this width."""
    return published_parameters(config_of(width))


def draw(options: Options, logs: dict[tuple[int, float, float], Log]) -> None:
    """Bits per byte by parameters, a curve per budget; and by learning rate."""
    style()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    for budget, colour in zip(options.budgets, COLOURS, strict=False):
        points = [(parameters(width) / 1e6, logs[width, budget, LR].bits_per_byte[-1]) for width in options.widths]
        left.plot(*zip(*points, strict=True), "o-", color=colour, label=f"{budget:.1e} FLOPs")
        for width, point in zip(options.widths, points, strict=True):
            left.annotate(f"{width} wide", point, textcoords="offset points", xytext=(0, 8), ha="center", fontsize=8)
    left.set(xlabel="parameters (million)", ylabel="validation, bits per byte", title="equal FLOPs, several sizes")
    left.margins(0.1)
    left.legend()
    width, budget = options.rates_width, options.budgets[0]
    rates = sorted({LR, *options.rates})
    right.plot(rates, [logs[width, budget, lr].bits_per_byte[-1] for lr in rates], "o-")
    right.set(xscale="log", xlabel="learning rate of Muon", title=f"{width} wide, {budget:.1e} FLOPs")
    right.minorticks_off()
    right.set_xticks(rates, [f"{lr:g}" for lr in rates])
    figure.savefig(LOGS.parent / "scaling.png")


if __name__ == "__main__":
    run_command(main)
