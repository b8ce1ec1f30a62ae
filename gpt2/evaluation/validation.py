"""How good a model is on held-out text.

Built in notebook 11.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2.data.loader import Sequences
from gpt2.model import GPT
from gpt2.modern.model import Modern
from gpt2.system.devices import autocast
from gpt2.system.errors import UserError
from gpt2.system.processes import Processes

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
