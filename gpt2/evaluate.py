"""How good a model is on held-out text.

Holds:    `validate` (inside training, through its compiled graph), `measure` (everything, on the plain model),
          `token_losses`, `evaluating`, `bits_per_byte`, and `python -m gpt2.evaluate MODEL`, which sets the model
          beside compressors.
Built in: notebook 11.
Imports:  torch, numpy, tyro, gpt2.distributed, gpt2.generate, gpt2.loader, gpt2.model, gpt2.modern, gpt2.run,
          gpt2.shards, gpt2.tokenizer.
"""

import bz2
import contextlib
import gzip
import lzma
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2.distributed import Processes, autocast, choose_precision, joined
from gpt2.errors import UserError, run_command, speaks
from gpt2.generate import load
from gpt2.loader import Sequences
from gpt2.model import GPT
from gpt2.modern import Modern
from gpt2.run import Eval, Run, from_json
from gpt2.shards import find_shards
from gpt2.tokenizer import get_encoding, token_bytes

IGNORED = -100  # a target that does not count
CHUNK_LOGITS = 2**25  # logits that exist at a time: 128 MiB in fp32


def bits_per_byte(nats: float, text_bytes: float) -> float:
    """Summed loss in nats over `text_bytes` of text → bits a byte, comparable across vocabularies."""
    return nats / math.log(2) / text_bytes


def validate(
    loss_of: Callable[[Tensor, Tensor], Tensor],
    sequences: Sequences,
    tokens: int,
    micro_batch: int,
    processes: Processes,
    sizes: np.ndarray,
) -> tuple[float, float]:
    """Mean loss (nats per token) and bits per byte over the first `tokens` tokens, always the same ones.

    `loss_of(x, y)` is the mean loss of a micro-batch (micro_batch, T); `sizes` are the bytes behind each token.
    Micro-batches go round the processes; the last is filled up with ignored targets, so shapes never change. Every
    process calls `loss_of` equally often, since a sharded model gathers its weights from all of them in each call.
    """
    count = min(len(sequences), max(1, tokens // sequences.block_size))
    nats, scored, text_bytes = 0.0, 0, 0
    for first in range(0, count, processes.world_size * micro_batch):
        index = first + processes.rank * micro_batch + np.arange(micro_batch)
        counts = index < count
        rows = sequences.read(np.minimum(index, count - 1)).astype(np.int64)
        targets = rows[:, 1:].copy()
        text_bytes += int(sizes[targets[counts]].sum())
        if counts.any():  # a mean over no target at all would be no number; it is weighed with zero below
            targets[~counts] = IGNORED
        x, y = (torch.from_numpy(np.ascontiguousarray(a)).to(processes.device) for a in (rows[:, :-1], targets))
        here = int(counts.sum()) * sequences.block_size
        nats += loss_of(x, y).item() * here
        scored += here
    nats, total, total_bytes = processes.sum(nats, scored, text_bytes)
    return nats / total, bits_per_byte(nats, total_bytes)


@contextlib.contextmanager
def evaluating(model: nn.Module, device: torch.device, precision: str) -> Iterator[None]:
    """Evaluation mode, no gradients, matrix products in `precision`; afterwards the model is in the mode it was in."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(device, precision):
            yield
    finally:
        model.train(training)


def logits_in_chunks(model: GPT | Modern, x: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Final residual stream (N, C) and targets (N,) → logits (n, V) in fp32 and their targets (n,), chunk by chunk.

    At most `CHUNK_LOGITS` logits at a time: those of 8 × 1,024 positions of GPT-2 would take 1.6 GiB.
    """
    rows = max(1, CHUNK_LOGITS // model.config.padded_vocab_size)
    for hidden, wanted in zip(x.split(rows), targets.split(rows), strict=True):
        yield model.logits(hidden).float(), wanted


def token_losses(model: GPT | Modern, x: Tensor, targets: Tensor) -> Tensor:
    """Loss in nats of every target (N,) under the final residual stream x (N, C) before it: (N,) fp32."""
    chunks = logits_in_chunks(model, x, targets)
    return torch.cat([F.cross_entropy(logits, wanted, reduction="none") for logits, wanted in chunks])


@dataclass(frozen=True)
class Measured:
    """What `measure` found on `tokens` targets, which stand for `text_bytes` bytes of text."""

    loss: float  # nats per token
    bits_per_byte: float
    top1: float  # fraction of the targets that were the likeliest token
    top10: float  # fraction of the targets among the ten likeliest
    tokens: int
    text_bytes: int

    @property
    def perplexity(self) -> float:
        """Per token: as uncertain as a choice among so many equally likely tokens."""
        return math.exp(min(self.loss, 700.0))  # beyond that a float overflows

    @property
    def perplexity_per_byte(self) -> float:
        """Normalised: per byte of text, so that tokenizers can be compared (Stanić et al., arXiv 2309.11197)."""
        return 2.0 ** min(self.bits_per_byte, 1000.0)


def count_windows(sequences: Sequences, tokens: int, last_n: int) -> int:
    """Windows of T inputs, each `last_n` after the one before, whose last `last_n` targets make up `tokens`.

    Raises UserError where `last_n` is not from 1 to T.
    """
    if not 1 <= last_n <= sequences.block_size:
        raise UserError(f"last-n {last_n} does not fit a window; give 1 to {sequences.block_size}, its length")
    there = max(0, (sequences.tokens - 1 - sequences.block_size) // last_n + 1)
    return min(there, tokens // last_n)


def measure(
    model: GPT | Modern,
    sequences: Sequences,
    tokens: int,
    micro_batch: int,
    processes: Processes,
    sizes: np.ndarray,
    precision: str,
    last_n: int | None = None,
) -> Measured:
    """Loss, bits per byte and top-1 and top-10 accuracy over `tokens` targets, always the same ones.

    `model` is the plain one, neither compiled nor wrapped: shapes are free. `sizes` are the bytes behind each token.
    With `last_n` (1 … T) the windows overlap: each moves on by `last_n` and only its last `last_n` targets count, so
    that every one of them was predicted from at least T - last_n + 1 tokens. At T, the default, they do not overlap.
    Raises UserError for another `last_n`.
    """
    n = last_n or sequences.block_size
    count = max(1, count_windows(sequences, tokens, n))
    totals = torch.zeros(3, dtype=torch.float64)  # nats, hits among one, hits among ten
    scored, text_bytes = 0, 0
    with evaluating(model, processes.device, precision):
        for rows in _windows(sequences, count, n, micro_batch, processes):
            idx = torch.from_numpy(rows).to(processes.device)
            hidden = model.hidden(idx[:, :-1])[:, -n:]  # only the positions that count reach the head
            totals += _tally(model, hidden.flatten(0, 1), idx[:, -n:].flatten())
            text_bytes += int(sizes[rows[:, -n:]].sum())
            scored += len(rows) * n
    nats, top1, top10, total, total_bytes = processes.sum(*totals, scored, text_bytes)
    bits = bits_per_byte(nats, total_bytes) if total_bytes else math.nan
    return Measured(nats / total, bits, top1 / total, top10 / total, int(total), int(total_bytes))


def _windows(
    sequences: Sequences, count: int, step: int, micro_batch: int, processes: Processes
) -> Iterator[np.ndarray]:
    """This process's share of the first `count` windows, `step` tokens apart: (up to micro_batch, T + 1) int64."""
    length = sequences.block_size + 1
    for first in range(processes.rank * micro_batch, count, processes.world_size * micro_batch):
        last = min(first + micro_batch, count) - 1
        line = sequences.line(first * step, last * step + length)
        yield np.lib.stride_tricks.sliding_window_view(line, length)[::step].astype(np.int64)


def _tally(model: GPT | Modern, x: Tensor, targets: Tensor) -> Tensor:
    """Summed loss in nats, targets that were the likeliest, and targets among the ten likeliest: (3,) float64."""
    totals = torch.zeros(3, dtype=torch.float64)
    for logits, wanted in logits_in_chunks(model, x, targets):
        likeliest = logits.topk(min(10, logits.size(-1)), dim=-1).indices == wanted[:, None]
        nats = F.cross_entropy(logits, wanted, reduction="none").cpu().double()  # MPS has no float64
        totals += torch.stack([nats.sum(), *torch.stack([likeliest[:, 0].sum(), likeliest.sum()]).cpu()])
    return totals


def compressed_bits_per_byte(text: bytes) -> dict[str, float]:
    """Bits that gzip, bz2 and xz need for each byte of `text`, at their strongest setting."""
    packers: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.compress,
        "bz2": bz2.compress,
        "xz": lambda data: lzma.compress(data, preset=9),
    }
    return {name: 8 * len(pack(text)) / len(text) for name, pack in packers.items()}


@dataclass(frozen=True)
class Options:
    """A model on held-out text: loss, perplexity, accuracy, and bits per byte beside gzip, bz2 and xz."""

    model: Annotated[str, tyro.conf.Positional]
    """Run folder, Hugging Face folder, or a published name such as gpt2."""
    shards: str | None = None
    """Folder of shards whose val part is read, or a glob pattern of shards (quote it) [the run's]."""
    tokens: int | None = None
    """Targets to score, from the start [as many as the run used]."""
    last_n: int | None = None
    """Score only the last N targets of every window, and move on by N [all]."""
    micro_batch: int = 8
    """Sequences a process computes at a time."""
    precision: Literal["auto", "bf16", "fp16", "tf32", "fp32"] | None = None
    """[the run's; else auto]"""


def main() -> None:
    """`python -m gpt2.evaluate`: see `Options`."""
    options = tyro.cli(Options, prog="python -m gpt2.evaluate", console_outputs=speaks())
    for name in ("tokens", "last_n", "micro_batch"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value} is out of range; give at least 1")
    with joined() as processes:
        report(options, processes)


def report(options: Options, processes: Processes) -> None:
    """Measure, and print from the first process. Raises UserError for what can't be measured."""
    run = recorded_run(options.model)
    model = load(options.model).to(processes.device)
    block_size = (run.model.block_size if run else None) or model.config.block_size
    sequences = held_out_text(options, run, model.config.vocab_size, block_size)
    n, tokens = options.last_n or block_size, options.tokens or (run.eval if run else Eval()).tokens
    count = count_windows(sequences, tokens, n)
    if count < 1:
        raise UserError(
            f"--tokens {tokens:,} of {sequences.tokens:,} held-out ones are not one sequence of {block_size} "
            f"with {n} to score; give more"
        )
    encoding = get_encoding(model.config.vocab_size)
    precision = choose_precision(processes.device, options.precision or (run.system.precision if run else "auto"))
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    sizes = token_bytes(encoding)
    found = measure(model, sequences, count * n, options.micro_batch, processes, sizes, precision, n)
    if not processes.is_first:
        return
    overlap = f", the last {n} of every {block_size}" if options.last_n else ""
    print(f"{options.model}: loss {found.loss:.4f} nats per token on {found.tokens:,} held-out tokens{overlap}")
    print(f"perplexity per token {found.perplexity:.2f}, per byte {found.perplexity_per_byte:.4f}")
    print(f"accuracy top-1 {found.top1:.4f}, top-10 {found.top10:.4f}")
    first = block_size - n + 1  # the first target that was scored
    scored = [token for token in sequences.line(first, first + count * n).tolist() if token != encoding.eot_token]
    text = b"".join(encoding.decode_tokens_bytes(scored))
    others = compressed_bits_per_byte(text) if text else {}
    beside = "".join(f" | {name} {value:.3f}" for name, value in others.items())
    print(f"bits per byte on the same {len(text):,} bytes: model {found.bits_per_byte:.3f}{beside}")


def recorded_run(folder: str) -> Run | None:
    """What a run folder says about its run; None for a Hugging Face folder or a name on the hub."""
    record = Path(folder, "config.json")
    if not record.exists():
        return None
    try:
        return from_json(record.read_text())
    except (KeyError, TypeError, ValueError, AttributeError):  # a Hugging Face model's own config.json
        return None


def held_out_text(options: Options, run: Run | None, vocab_size: int, block_size: int) -> Sequences:
    """The val shards that were named, or the run's. Raises UserError where there are none."""
    where = options.shards or (run and (run.data.val_shards or run.data.shards))
    if not where:
        raise UserError(f"{options.model} is no run folder, so it names no text; add --shards DATA")
    return Sequences(find_shards(where, "val", vocab_size), block_size)


if __name__ == "__main__":
    run_command(main)
