"""How large should a model be? `novels` at several widths, with equal FLOPs per group of runs (IsoFLOP).

    python fineweb.py --source novels --files NOVELS --vocab-size 4096 --out data/novels-4096
    python benchmarks/isoflop.py             on two cores; a run that is there is not made again
    python benchmarks/isoflop.py --last 160  the run that the others predict, with five times the FLOPs of the largest

As in Hoffmann et al. (arXiv 2203.15556): a model that is too small learns too little from a token, one that is too
large sees too few. All have 4 layers with heads 32 wide (or one of 16), 4,096 tokens per step, T = 256, and their whole
schedule within their FLOPs (the planner's count). Notebook 17 reads the results from isoflop.json and fits them.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from experiments import run_all

from gpt2.config.presets import PRESETS
from gpt2.formats.build import make_config
from gpt2.model import GPTConfig
from gpt2.planning.flops import flops_per_token
from gpt2.system.errors import UserError, run_command

RESULTS = Path(__file__).resolve().parent / "isoflop.json"
BATCH, LAYERS, HEAD = 4096, 4, 32
# FLOPs of a run → widths
GROUPS = {
    4e12: (16, 32, 64, 96, 128, 160),
    1.6e13: (32, 64, 96, 128, 160, 192),
    6.4e13: (64, 96, 128, 160, 192, 256),
}
LAST = 3.2e14


@dataclass(frozen=True)
class Options:
    """`novels` at several widths, with equal FLOPs."""

    shards: Path = Path("data/novels-4096")
    last: int | None = None
    """Make the run with five times the FLOPs at this width."""


def heads(width: int) -> int:
    """Heads 32 wide, or one that is narrower."""
    return max(1, width // HEAD)


def config_of(width: int) -> GPTConfig:
    """The configuration of a run."""
    run = PRESETS["novels"][1]
    return make_config(replace(run.model, n_layer=LAYERS, n_embd=width, n_head=heads(width)), run.parts)


def words(options: Options, width: int, flops: float) -> list[str]:
    """The command line of a run."""
    steps = round(flops / (flops_per_token(config_of(width)) * BATCH))
    flags = {
        "system.precision": "bf16",
        "data.shards": options.shards,
        "data.batch-tokens": BATCH,
        "model.n-layer": LAYERS,
        "model.n-embd": width,
        "model.n-head": heads(width),
        "schedule.steps": steps,
        "schedule.warmup": 0,
        "eval.every": math.ceil(steps / 4),
    }
    return ["novels", *(str(word) for name, value in flags.items() for word in (f"--{name}", value))]


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if not options.shards.exists():
        raise UserError(f"{options.shards} does not exist; make it with fineweb.py, as `--help` says")
    runs = {(width, flops): words(options, width, flops) for flops, widths in GROUPS.items() for width in widths}
    if options.last is not None:
        runs = {(options.last, LAST): words(options, options.last, LAST)}
    named = {f"width {width}, {flops:.1e} FLOPs": command for (width, flops), command in runs.items()}
    for name, result in run_all(RESULTS, named).items():
        print(f"{result['bits_per_byte'][-1]:.4f} bits/byte, {result['step'][-1]} steps, {name}")


if __name__ == "__main__":
    run_command(main)
