"""llm.c's CPU program on a checkpoint of ours: it must report the losses that this trainer computes.

    git clone https://github.com/karpathy/llm.c
    python benchmarks/llmc.py --clone llm.c

A small GPT-2 with random weights, large enough to put the loss far from ln V, is written by
`gpt2.formats.llmc`. The program,
train_gpt2.c as gcc compiles it, reads it, validates on five batches, trains on one batch for 20 steps (AdamW, learning
rate 1e-4) and validates again. The same is done here; exit status 1 if any loss differs by more than 1e-3 nats.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from gpt2.data.shards import write_shard
from gpt2.formats.llmc import write_model
from gpt2.model import GPT, GPTConfig
from gpt2.system.errors import UserError, run_command

TOLERANCE = 1e-3  # nats per token
B, T, VAL_BATCHES, STEPS, VAL_EVERY = 4, 64, 5, 20, 10  # what train_gpt2.c has in its main()
CONFIG = GPTConfig(block_size=96, n_layer=2, n_head=4, n_embd=32)
DATA = Path("dev/data/tinyshakespeare")  # where it looks for tokens
Losses = dict[tuple[int, str], float]  # (step, train or val) → nats per token


@dataclass(frozen=True)
class Options:
    """llm.c's CPU program on a checkpoint of ours."""

    clone: Path
    """A clone of github.com/karpathy/llm.c."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    torch.manual_seed(0)
    model = GPT(CONFIG)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.15 * torch.randn_like(p)
    val, train = (np.random.default_rng(0).integers(CONFIG.vocab_size, size=n * B * T + 1) for n in (VAL_BATCHES, 1))
    with tempfile.TemporaryDirectory() as folder:
        program = compile_program(options.clone, Path(folder))
        (Path(folder) / DATA).mkdir(parents=True)
        write_model(model, Path(folder, "gpt2_124M.bin"))
        write_shard(Path(folder, DATA, "tiny_shakespeare_val.bin"), val)
        write_shard(Path(folder, DATA, "tiny_shakespeare_train.bin"), train)
        theirs = run_program(program)
    ours = run_ours(model, torch.from_numpy(val), torch.from_numpy(train))
    print("step  loss   llm.c      ours       difference")
    for (step, kind), loss in theirs.items():
        print(f"{step:4}  {kind:5}  {loss:9.6f}  {ours[step, kind]:9.6f}  {loss - ours[step, kind]:+.1e}")
    largest = max(abs(theirs[key] - ours[key]) for key in ours)
    print(f"largest difference {largest:.1e} nats, allowed {TOLERANCE:.0e}")
    sys.exit(largest > TOLERANCE)


def compile_program(clone: Path, folder: Path) -> Path:
    """train_gpt2.c as a program in `folder`. Raises UserError where there is no clone, no gcc, or it fails."""
    source, program = clone / "train_gpt2.c", folder / "train_gpt2"
    if not source.is_file():
        raise UserError(f"no train_gpt2.c in {clone}; name a clone of llm.c with --clone")
    if shutil.which("gcc") is None:
        raise UserError("there is no gcc to compile train_gpt2.c with; install it")
    words = ["gcc", "-O3", "-fopenmp", "-DOMP", str(source), "-lm", "-o", str(program)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(words)} failed: {done.stderr}")
    return program


def run_program(program: Path) -> Losses:
    """The losses it prints before it samples for the first time, after `STEPS` steps, when it is stopped."""
    losses: Losses = {}
    step, said = 0, ""
    with subprocess.Popen([program], cwd=program.parent, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said += line
            if found := re.match(r"val loss (\S+)", line):
                losses[step, "val"] = float(found[1])
            elif found := re.match(r"step (\d+): train loss (\S+)", line):
                losses[int(found[1]), "train"] = float(found[2])
                step = int(found[1]) + 1
            elif line.startswith("generating"):
                process.kill()
                return losses
    raise UserError(f"{program.name} ended with {process.returncode} before step {STEPS}:\n{said}")


def run_ours(model: GPT, val: torch.Tensor, train: torch.Tensor) -> Losses:
    """The same losses, by this project's model."""

    def loss(tokens: torch.Tensor) -> torch.Tensor:
        x, y = tokens[:-1].view(-1, T), tokens[1:].view(-1, T)
        return model(x, y)  # of all batches at once: they are equally large

    losses: Losses = {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    for step in range(STEPS + 1):
        if step % VAL_EVERY == 0:
            with torch.no_grad():
                losses[step, "val"] = loss(val).item()
        if step < STEPS:
            mean = loss(train)
            losses[step, "train"] = mean.item()
            optimizer.zero_grad()
            mean.backward()
            optimizer.step()
    return losses


if __name__ == "__main__":
    run_command(main)
