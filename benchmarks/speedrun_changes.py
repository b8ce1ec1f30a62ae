"""From GPT-2 to modded-nanogpt's eighth checkpoint, one change at a time, on the stories: three seeds per change.

    python benchmarks/speedrun_changes.py            on two cores; a run that is there is not made again
    python benchmarks/speedrun_changes.py --pace     the time of a step, on a quiet machine

Each row has all changes of the rows before it. Everything else is equal: 4 layers, 128 wide, 2,048 tokens per step,
bf16, the learning rate of AdamW. Notebook 14 reads the results from speedrun_changes.json.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro
from experiments import make_stories, pace, run_all, write

from gpt2.system.errors import run_command

RESULTS = Path(__file__).resolve().parent / "speedrun_changes.json"
STEPS, SEEDS = 600, (0, 1, 2)
# what changes → the flags that change it
CHANGES = {
    "GPT-2": "",
    "rotary positions": "--parts.position rotary",
    "QK-norm": "--parts.qk-norm",
    "ReLU²": "--parts.mlp relu2",
    "RMSNorm, no biases": "--parts.norm rms-plain --parts.norm-embedding --parts.no-bias",
    "untied head": "--parts.no-tied",
    "projections start at zero": "--parts.init zero",  # and a tied head would start as a large copy of the embedding
    "trapezoidal schedule": "--schedule.kind trapezoid --schedule.warmup 0 --schedule.plateau 0.7",
    "Muon": "--optim.kind muon --optim.lr 0.02 --optim.embedding-lr 0.3 --optim.head-lr 0.002 "
    "--optim.weight-decay 0 --optim.clip 0",
}


@dataclass(frozen=True)
class Options:
    """One change at a time."""

    pace: bool = False
    """Measure the time of a step instead."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    make_stories()
    words, rows = ["llmc-demo", "--system.precision", "bf16", "--schedule.steps", str(STEPS)], {}
    words += ["--schedule.warmup", "60", "--eval.every", "50"]
    for name, flags in CHANGES.items():
        words = [*words, *flags.split()]
        rows[name] = words
    if options.pace:
        write(RESULTS.with_name("speedrun_changes_pace.json"), pace(rows))
        return
    runs = {
        f"{name} · seed {seed}": [*row, "--system.seed", str(seed), "--data.seed", str(seed + 1)]
        for seed in SEEDS
        for name, row in rows.items()
    }
    for name, result in run_all(RESULTS, runs).items():
        print(f"{result['bits_per_byte'][-1]:.4f} {name}")


if __name__ == "__main__":
    run_command(main)
