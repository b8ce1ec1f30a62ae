"""How long until nanoGPT's own result: its CPU example and the preset `shakespeare`, whole processes, in turn.

    git clone https://github.com/karpathy/nanoGPT
    python benchmarks/time_to_loss.py --clone nanoGPT --text tinyshakespeare.txt

Both read the first 90 % of the characters and train a network of 4 layers, 128 wide, on sequences of 64. nanoGPT runs
its own train.py by the command of its README, in a copy of the clone, once more compiled; this project runs
train_gpt2.py, each round with other random numbers. A time is that of a process from start to end: imports, validation
and checkpoints are in it. Then one function takes the loss of both over the whole last 10 %. Exit status 1 unless every
model of ours is at or below nanoGPT's loss and the 1.8857 that it is known for, and was there four times as fast.
"""

import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from peers import definitions
from torch import Tensor
from torch.nn import functional as F

from gpt2.data.tokenizer import get_encoding
from gpt2.formats.load import from_pretrained
from gpt2.logs.reader import read_log
from gpt2.system.errors import UserError, run_command
from gpt2.system.machine import available_cores, processor_name

ROOT = Path(__file__).resolve().parent.parent
T = 64  # characters a sequence
KNOWN_LOSS = 1.8857  # nats a character, of nanoGPT's example by its own estimate
WANTED_RATIO = 4.0
SETTINGS = (  # of nanoGPT's README, "I only have a macbook"
    "--device=cpu --eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 "
    "--n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)


@dataclass(frozen=True)
class Options:
    """How long until nanoGPT's own result."""

    clone: Path
    """A clone of github.com/karpathy/nanoGPT."""
    text: Path
    """tinyshakespeare.txt, or another text in ASCII."""
    rounds: int = 3
    """Runs of each side; medians count."""


@dataclass(frozen=True)
class Result:
    """What one process did."""

    name: str
    seconds: float  # from its start to its end
    training: float  # seconds of its steps alone, evaluation left out
    steps: int
    loss: float  # nats a character over all held-out text
    parameters: int


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    text = read_text(options.text)
    print(f"{processor_name()}, {available_cores()} cores, torch {torch.__version__}; {len(text):,} characters\n")
    print("                     whole process   its steps alone    steps   loss   parameters")
    with tempfile.TemporaryDirectory() as folder:
        clone, shards = prepare_nanogpt(options.clone, text, Path(folder)), write_shards(text, Path(folder))
        ours, theirs = [], []
        for number in range(options.rounds):
            for side in (ours, theirs) if number % 2 else (theirs, ours):
                side.append(run_ours(shards, number, text) if side is ours else run_nanogpt(clone, compiled=False))
                show(side[-1])
        compiled = run_nanogpt(clone, compiled=True)
        show(compiled)
    sys.exit(not judge(ours, theirs, compiled))


def read_text(path: Path) -> str:
    """The text. Raises UserError where there is none, or a character is more than a byte."""
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"can't read {path} as ASCII ({error}); give tinyshakespeare.txt with --text") from None


def split(text: str) -> tuple[str, str]:
    """What is trained on and what is held out, cut where nanoGPT's prepare.py cuts."""
    cut = int(len(text) * 0.9)
    return text[:cut], text[cut:]


def prepare_nanogpt(clone: Path, text: str, folder: Path) -> Path:
    """A copy of the clone in `folder`, with the text as its own script prepares it. Raises UserError."""
    if not (clone / "train.py").is_file() or not (clone / "data" / "shakespeare_char").is_dir():
        raise UserError(f"no train.py and data/shakespeare_char in {clone}; name a clone of nanoGPT with --clone")
    copy = folder / "nanoGPT"
    shutil.copytree(clone, copy, ignore=shutil.ignore_patterns(".git", "out*"))
    (copy / "data" / "shakespeare_char" / "input.txt").write_text(text)
    timed("data/shakespeare_char/prepare.py", folder=copy)
    return copy


def write_shards(text: str, folder: Path) -> Path:
    """The text as shards, made by fineweb.py of two documents, the first of which becomes `val`."""
    train, held_out = split(text)
    documents, shards = folder / "text.jsonl", folder / "shards"
    documents.write_text("".join(json.dumps({"text": part}) + "\n" for part in (held_out, train)))
    words = ["--source", "files", "--files", str(documents), "--vocab-size", "257", "--val-tokens", "1"]
    timed(str(ROOT / "fineweb.py"), *words, "--out", str(shards), folder=folder)
    return shards


def timed(script: str, *words: str, folder: Path) -> tuple[float, str]:
    """Run a script of Python in `folder`: the seconds of the whole process, and what it printed. Raises UserError."""
    cold = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")}  # nothing compiled by an earlier run
    started = time.perf_counter()
    done = subprocess.run([sys.executable, script, *words], cwd=folder, capture_output=True, text=True, env=cold)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise UserError(f"{script} failed: {done.stderr.strip() or done.stdout.strip()}")
    return seconds, done.stdout


def run_ours(shards: Path, number: int, text: str) -> Result:
    """Train the preset with random numbers of its own for every `number`."""
    folder = shards.parent / f"ours-{number}"
    words = ["--data.shards", str(shards), "--log.folder", str(folder), "--data.seed", str(number + 1)]
    words += ["--system.seed", str(number + 1), "--system.device", "cpu"]
    seconds, _ = timed(str(ROOT / "train_gpt2.py"), "shakespeare", *words, folder=shards.parent)
    milliseconds = read_log(folder / "log.txt").dt
    model = from_pretrained(str(folder))
    tokens = np.array(get_encoding(257).encode_ordinary(split(text)[1]))
    loss = held_out_loss(model, tokens)
    return Result("shakespeare", seconds, milliseconds.sum() / 1e3, len(milliseconds), loss, model.num_params())


def run_nanogpt(clone: Path, compiled: bool) -> Result:
    """nanoGPT's CPU example. Its model is the one it keeps: that with the best of its estimates of the loss."""
    words = ["config/train_shakespeare_char.py", *SETTINGS.split(), f"--compile={compiled}"]
    seconds, said = timed("train.py", *words, folder=clone)
    milliseconds = np.array([float(t) for t in re.findall(r"^iter \d+: .* time (\S+)ms", said, re.MULTILINE)])
    saved = torch.load(clone / "out-shakespeare-char" / "ckpt.pt", weights_only=True)
    module = definitions(clone / "model.py")
    with contextlib.redirect_stdout(None):  # it prints its size
        model = module.GPT(module.GPTConfig(**saved["model_args"]))
    model.load_state_dict({name.removeprefix("_orig_mod."): p for name, p in saved["model"].items()})
    tokens = np.fromfile(clone / "data" / "shakespeare_char" / "val.bin", dtype=np.uint16)
    loss = held_out_loss(lambda x: model(x, x)[0], tokens)  # it gives all logits only beside a loss
    parameters = sum(p.numel() for p in model.parameters())
    usual = milliseconds[np.arange(len(milliseconds)) % 250 != 0]  # its times of the others include its evaluation
    name = "nanoGPT, compiled" if compiled else "nanoGPT"
    return Result(name, seconds, usual.mean() * len(milliseconds) / 1e3, len(milliseconds), loss, parameters)


@torch.no_grad()
def held_out_loss(logits_of: Callable[[Tensor], Tensor], tokens: np.ndarray) -> float:
    """Mean loss in nats of every target in windows of T that do not overlap. `logits_of`: (B, T) → (B, T, V)."""
    line = torch.from_numpy(tokens.astype(np.int64))
    count = (len(line) - 1) // T
    x, y = line[: count * T].view(count, T), line[1 : count * T + 1].view(count, T)
    losses = [
        F.cross_entropy(logits_of(a).flatten(0, 1).double(), b.flatten(), reduction="sum").item()
        for a, b in zip(x.split(128), y.split(128), strict=True)
    ]
    return sum(losses) / y.numel()


def show(result: Result) -> None:
    """Print one run."""
    print(
        f"{result.name:20}{result.seconds:12.1f} s{result.training:16.1f} s{result.steps:9,}{result.loss:9.4f}"
        f"{result.parameters:11,}",
        flush=True,
    )


def judge(ours: list[Result], theirs: list[Result], compiled: Result) -> bool:
    """Print medians and ratios; whether our models are good enough, and four times as fast."""
    target = min(KNOWN_LOSS, *(result.loss for result in theirs))
    worst = max(result.loss for result in ours)
    mine, peer = (statistics.median(result.seconds for result in side) for side in (ours, theirs))
    steps, peer_steps = (statistics.median(result.training for result in side) for side in (ours, theirs))
    print(f"\nloss to reach {target:.4f}: ours at most {worst:.4f}, {'reached' if worst <= target else 'NOT reached'}")
    print(f"ratio time to loss: {peer / mine:.2f} (ours {mine:.1f} s, nanoGPT {peer:.1f} s; whole processes, medians)")
    print(f"ratio of their steps alone: {peer_steps / steps:.2f} (ours {steps:.1f} s, nanoGPT {peer_steps:.1f} s)")
    print(f"ratio to nanoGPT compiled: {compiled.seconds / mine:.2f} (nanoGPT {compiled.seconds:.1f} s, one run)")
    return worst <= target and min(peer, compiled.seconds) / mine >= WANTED_RATIO


if __name__ == "__main__":
    run_command(main)
