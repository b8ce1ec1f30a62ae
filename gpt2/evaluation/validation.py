"""How good a model is on held-out text: loss, bits per byte, and accuracy. Built in notebook 11."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2.data.loader import Sequences
from gpt2.kernels import IGNORED
from gpt2.model import GPT
from gpt2.modern.model import Modern
from gpt2.system.devices import autocast
from gpt2.system.errors import UserError
from gpt2.system.processes import Processes

CHUNK_LOGITS = 2**25  # logits that exist at a time: 128 MiB in fp32


@dataclass(frozen=True)
class HeldOut:
    """The text of an evaluation: the first `tokens` targets of `sequences`."""

    sequences: Sequences
    tokens: int
    token_bytes: np.ndarray  # (vocabulary,) bytes of text behind every token


@dataclass(frozen=True)
class Measured:
    """What `measure` found, over `tokens` targets that stand for `text_bytes` bytes of text."""

    loss: float  # nats per token
    bits_per_byte: float
    top1: float  # fraction of the targets that were the likeliest token
    top10: float  # fraction of the targets among the ten likeliest
    tokens: int
    text_bytes: int

    @property
    def perplexity(self) -> float:
        """Per token: the model is as uncertain as in a choice among so many equally likely tokens."""
        return math.exp(min(self.loss, 700.0))  # beyond that a float overflows

    @property
    def perplexity_per_byte(self) -> float:
        """Per byte of text, so that tokenizers can be compared (Stanić et al., arXiv 2309.11197)."""
        return 2.0 ** min(self.bits_per_byte, 1000.0)


def bits_per_byte(nats: float, text_bytes: float) -> float:
    """The summed loss of `text_bytes` of text in bits per byte, which is comparable across vocabularies."""
    return nats / math.log(2) / text_bytes


@contextlib.contextmanager
def evaluating(model: nn.Module, device: torch.device, precision: str) -> Iterator[None]:
    """Evaluation mode, no gradients, matrix products in `precision`. Afterwards the model has its old mode again."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(device, precision):
            yield
    finally:
        model.train(training)


def validate(
    loss_of: Callable[[Tensor, Tensor], Tensor], text: HeldOut, micro_batch: int, processes: Processes
) -> tuple[float, float]:
    """Mean loss (nats per token) and bits per byte of whole sequences of the text.

    `loss_of(x, y)` is the mean loss of a micro-batch (micro_batch, T). The micro-batches are dealt to the processes in
    turn. The last ones are padded with ignored targets, so shapes never change. Every process calls `loss_of` equally
    often, since a sharded model gathers its weights from all processes in each call.
    """
    sequences, T = text.sequences, text.sequences.block_size
    count = min(len(sequences), max(1, text.tokens // T))
    nats, text_bytes = 0.0, 0
    for first in range(0, count, processes.world_size * micro_batch):
        index = first + processes.rank * micro_batch + np.arange(micro_batch)
        real = index < count
        rows = sequences.read(np.minimum(index, count - 1)).astype(np.int64)
        text_bytes += int(text.token_bytes[rows[real, 1:]].sum())
        x, y = (torch.from_numpy(part).to(processes.device) for part in (rows[:, :-1].copy(), rows[:, 1:].copy()))
        if real.any():  # without any target the mean loss would be nan; it has a weight of zero below
            y[~torch.from_numpy(real).to(y.device)] = IGNORED
        nats += loss_of(x, y).item() * int(real.sum()) * T
    nats, total_bytes = processes.sum(nats, text_bytes)
    return nats / (count * T), bits_per_byte(nats, total_bytes)


def logits_in_chunks(model: GPT | Modern, x: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Final residual stream (N, C) and targets (N,) → logits (n, V) in fp32 and their targets (n,), chunk by chunk.

    At most `CHUNK_LOGITS` logits exist at a time: those of 8 × 1,024 positions of GPT-2 would take 1.6 GiB.
    """
    rows = max(1, CHUNK_LOGITS // model.config.padded_vocab_size)
    for states, chunk in zip(x.split(rows), targets.split(rows), strict=True):
        yield model.logits(states).float(), chunk


def token_losses(model: GPT | Modern, x: Tensor, targets: Tensor) -> Tensor:
    """Loss in nats of every target (N,), given the final residual stream x (N, C) that predicts it: (N,) fp32."""
    chunks = logits_in_chunks(model, x, targets)
    return torch.cat([F.cross_entropy(logits, chunk, reduction="none") for logits, chunk in chunks])


def count_windows(sequences: Sequences, tokens: int, last_n: int) -> int:
    """How many windows of T inputs, each `last_n` tokens after the one before, have `tokens` targets in all.

    Only the last `last_n` targets of a window count. Raises UserError if `last_n` is not from 1 to T.
    """
    T = sequences.block_size
    if not 1 <= last_n <= T:
        raise UserError(f"last-n {last_n} does not fit a window; give 1 to {T}, its length")
    available = max(0, (sequences.tokens - 1 - T) // last_n + 1)
    return min(available, tokens // last_n)


def measure(
    model: GPT | Modern,
    text: HeldOut,
    micro_batch: int,
    processes: Processes,
    precision: str,
    last_n: int | None = None,
) -> Measured:
    """Loss, bits per byte, and top-1 and top-10 accuracy on the text. `model` is neither compiled nor wrapped.

    With `last_n` (1 … T) the windows overlap: each begins `last_n` tokens after the one before, and only its last
    `last_n` targets count. So every target is predicted from at least T - last_n + 1 tokens. At T, the default, they do
    not overlap. Raises UserError for another `last_n`.
    """
    sequences, length = text.sequences, text.sequences.block_size + 1
    n = last_n or sequences.block_size
    count = max(1, count_windows(sequences, text.tokens, n))
    totals = torch.zeros(3, dtype=torch.float64)  # nats, targets that were the likeliest, among the ten likeliest
    text_bytes = 0
    with evaluating(model, processes.device, precision):
        for first in range(processes.rank * micro_batch, count, processes.world_size * micro_batch):
            last = min(first + micro_batch, count) - 1
            line = sequences.line(first * n, last * n + length)
            rows = np.lib.stride_tricks.sliding_window_view(line, length)[::n].astype(np.int64)
            idx = torch.from_numpy(rows).to(processes.device)
            states = model.hidden(idx[:, :-1])[:, -n:]  # only the positions that count reach the head
            totals += _tally(model, states.flatten(0, 1), idx[:, -n:].flatten())
            text_bytes += int(text.token_bytes[rows[:, -n:]].sum())
    nats, top1, top10, total_bytes = processes.sum(*totals, text_bytes)
    bits = bits_per_byte(nats, total_bytes) if total_bytes else math.nan
    targets = count * n
    return Measured(nats / targets, bits, top1 / targets, top10 / targets, targets, int(total_bytes))


def _tally(model: GPT | Modern, x: Tensor, targets: Tensor) -> Tensor:
    """Summed loss in nats, targets that were the likeliest, and targets among the ten likeliest: (3,) float64."""
    totals = torch.zeros(3, dtype=torch.float64)
    for logits, chunk in logits_in_chunks(model, x, targets):
        hits = logits.topk(min(10, logits.size(-1)), dim=-1).indices == chunk[:, None]  # (n, 10)
        nats = F.cross_entropy(logits, chunk, reduction="none").cpu().double()  # MPS has no float64
        totals += torch.stack([nats.sum(), *torch.stack([hits[:, 0].sum(), hits.sum()]).cpu()])
    return totals
