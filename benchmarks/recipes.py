"""Every recipe's demo sibling on the same text: at equal tokens, then at equal time, several seeds each.

    python benchmarks/recipes.py                                    six recipes, three seeds: over an hour
    python benchmarks/recipes.py --seeds 1 --tokens 1000000         a first look
    python benchmarks/recipes.py --recipes demo speedrun-demo

All have 4 layers, 128 wide, T 128, 2,048 tokens per step and the 2,048 tokens of the vocabulary in common; what differs
is the recipe. At equal tokens every one has the same steps. At equal time every one has the steps that take it as long
as the fastest took for those, with its schedule shortened to fit. Training time is the median step's, times the steps,
so compiling does not count. Runs that are complete are not made again: an interrupted comparison goes on, and the
fastest recipe's runs stand in both columns. Writes recipes.png, and prints the table.
"""

import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tyro

from gpt2.config.presets import PRESETS
from gpt2.data.shards import find_shards
from gpt2.data.tokenizer import get_encoding
from gpt2.evaluation.report import compressed_bits_per_byte
from gpt2.logs.plot import COLOURS, style
from gpt2.logs.reader import Log, read_log
from gpt2.system.errors import run_command
from gpt2.system.machine import available_cores, processor_name

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Options:
    """Recipes side by side."""

    recipes: tuple[str, ...] = ("demo", *(name for name in PRESETS if name.endswith("-demo")))
    """Presets of train_gpt2.py."""
    seeds: int = 3
    tokens: int = 4_096_000
    """Tokens of a run at equal tokens."""
    folder: Path = Path("runs/recipes")
    """Where the runs and the figure go."""
    shards: Path = Path("data/stories-2048")
    """As `python fineweb.py --source stories --vocab-size 2048 --out data/stories-2048` made them."""


@dataclass(frozen=True)
class Outcome:
    """A finished run: its log, and seconds of training, compilation left out."""

    log: Log
    seconds: float

    @property
    def bits_per_byte(self) -> float:
        """On the held-out text, after the last step."""
        return float(self.log.bits_per_byte[-1])


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    steps = {name: max(1, options.tokens // PRESETS[name][1].data.batch_tokens) for name in options.recipes}
    equal_tokens = run_all(options, "tokens", steps)
    seconds = {name: statistics.median(one.seconds for one in runs) for name, runs in equal_tokens.items()}
    budget = min(seconds.values())
    steps = {name: max(1, round(steps[name] * budget / seconds[name])) for name in options.recipes}
    equal_time = run_all(options, "time", steps)
    print_table(options, equal_tokens, equal_time)
    draw(options.folder / "recipes.png", {"equal tokens": equal_tokens, "equal time": equal_time})


def run_all(options: Options, what: str, steps: dict[str, int]) -> dict[str, list[Outcome]]:
    """Train every recipe with every seed, in turn."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in options.recipes}
    for seed in range(options.seeds):
        for name in options.recipes:
            outcome = train(options, f"{name}-{seed}-{steps[name]}", name, seed, steps[name])
            outcomes[name].append(outcome)
            speed = steps[name] * PRESETS[name][1].data.batch_tokens / outcome.seconds
            print(
                f"equal {what}: {name}, seed {seed}, {steps[name]} steps: {outcome.bits_per_byte:.4f} bits/byte, "
                f"{outcome.seconds:.1f} s, {speed:,.0f} tokens/s, load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    return outcomes


def train(options: Options, name: str, preset: str, seed: int, steps: int) -> Outcome:
    """One run of train_gpt2.py; a complete one is taken as it is."""
    folder = options.folder / name
    warmup = min(PRESETS[preset][1].schedule.warmup, steps // 4)
    words = [sys.executable, "train_gpt2.py", preset, "--log.folder", folder, "--data.shards", options.shards]
    words += ["--data.seed", seed + 1, "--system.seed", seed, "--schedule.steps", steps, "--schedule.warmup", warmup]
    words += ["--eval.sample-every", 0, "--log.save-every", 0, "--eval.every", max(1, steps // 8)]
    done = subprocess.run([str(word) for word in words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    log = read_log(folder / "log.txt")
    return Outcome(log, float(np.median(log.dt) / 1000 * len(log.dt)))


def compressed(shards: Path) -> dict[str, float]:
    """Bits per byte of gzip, bz2 and xz on the held-out text that the runs are validated on."""
    encoding = get_encoding(2048)
    tokens = np.concatenate([shard.map() for shard in find_shards(str(shards), "val", 2048)])
    scored = tokens[1 : PRESETS["demo"][1].eval.tokens + 1].tolist()  # the targets
    return compressed_bits_per_byte(
        b"".join(encoding.decode_tokens_bytes([t for t in scored if t != encoding.eot_token]))
    )


def print_table(options: Options, equal_tokens: dict[str, list[Outcome]], equal_time: dict[str, list[Outcome]]) -> None:
    """Mean and standard deviation over the seeds; `seconds` are those that the steps then really took."""
    print(f"\n{processor_name()}, {available_cores()} cores; {options.seeds} seeds, mean ± standard deviation")
    print("\n| recipe | tokens/s | bits/byte, equal tokens | bits/byte, equal time | steps in that time | seconds |")
    print("|---|---|---|---|---|---|")
    for name in options.recipes:
        first, second = equal_tokens[name], equal_time[name]
        speed = statistics.median(len(one.log.dt) * one.log.batch_tokens / one.seconds for one in first)
        steps, seconds = len(second[0].log.dt), statistics.median(one.seconds for one in second)
        print(f"| `{name}` | {speed:,.0f} | {spread(first)} | {spread(second)} | {steps:,} | {seconds:.0f} |")
    print(f"\nOn the same text: {', '.join(f'{name} {bits:.3f}' for name, bits in compressed(options.shards).items())}")


def spread(outcomes: list[Outcome]) -> str:
    """Mean ± standard deviation of the runs' bits per byte."""
    values = [one.bits_per_byte for one in outcomes]
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"


def draw(path: Path, panels: dict[str, dict[str, list[Outcome]]]) -> None:
    """Bits per byte against tokens and time, a band from the worst to the best seed.

    Time is steps times the median step of the runs at equal tokens, which were made in turn: by that the steps at
    equal time were chosen.
    """
    style()
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 4.5), sharey=True, layout="constrained")
    first = panels["equal tokens"]
    pace = {name: statistics.median(one.seconds / len(one.log.dt) for one in runs) for name, runs in first.items()}
    for axis, (title, recipes) in zip(axes, panels.items(), strict=True):
        for (name, runs), colour in zip(recipes.items(), COLOURS, strict=False):
            curves = np.array([one.log.bits_per_byte[1:] for one in runs])  # before the first step all are alike
            at = runs[0].log.val_step[1:]
            x = at * pace[name] if title == "equal time" else at * runs[0].log.batch_tokens / 1e6
            axis.plot(x, curves.mean(0), ".-", color=colour, label=name)
            axis.fill_between(x, curves.min(0), curves.max(0), color=colour, alpha=0.2, linewidth=0)
        timed = title == "equal time"
        axis.set(title=title, xlabel="training time at the pace of the left (s)" if timed else "tokens (million)")
    axes[0].set_ylabel("validation, bits per byte")
    axes[0].legend()
    figure.savefig(path)
    print(f"wrote {path}")


if __name__ == "__main__":
    run_command(main)
