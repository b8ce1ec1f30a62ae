"""How good a model is on held-out text: loss, bits per byte, and accuracy. Built in notebook 11."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from gpt2.data.loader import Sequences
from gpt2.kernels import IGNORED
from gpt2.model import GPT
from gpt2.modern.model import Modern
from gpt2.system.devices import autocast
from gpt2.system.errors import UserError
from gpt2.system.processes import Processes

CHUNK_LOGITS = 2**25  # logits that exist at a time: 128 MiB in fp32
PADDED_TO = 32  # padded sequences have a multiple of so many positions
GROUP_POSITIONS = 2**15  # of padded sequences per forward pass, on CUDA


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
    losses, targets, text_bytes = [], [], 0  # the losses stay on the device: the host waits once, at the end
    for first in range(0, count, processes.world_size * micro_batch):
        index = first + processes.rank * micro_batch + np.arange(micro_batch)
        real = index < count
        rows = sequences.read(np.minimum(index, count - 1)).astype(np.int64)
        text_bytes += int(text.token_bytes[rows[real, 1:]].sum())
        x, y = (torch.from_numpy(part.copy()) for part in (rows[:, :-1], rows[:, 1:]))
        if real.any():  # without any target the mean loss would be nan; it has a weight of zero below
            y[~torch.from_numpy(real)] = IGNORED
        losses.append(loss_of(x.to(processes.device), y.to(processes.device)).detach())
        targets.append(int(real.sum()) * T)
    nats, total_bytes = processes.sum(torch.stack(losses).cpu().double() @ torch.tensor(targets).double(), text_bytes)
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


def _group_by_length(lengths: Sequence[int], longest: int) -> list[tuple[int, list[int]]]:
    """Which sequences to compute together on CUDA: per group, the length to pad them to, and their numbers.

    cuDNN attention plans every new shape for about 0.4 s. So the lengths are multiples of 32 (or `longest`), and all
    groups of one length have the same number of sequences, except the last.
    """
    padded = [min(longest, -(-length // PADDED_TO) * PADDED_TO) for length in lengths]
    groups = []
    for length in sorted(set(padded), reverse=True):
        numbers = [number for number, one in enumerate(padded) if one == length]
        size = max(1, GROUP_POSITIONS // length)
        groups += [(length, numbers[first : first + size]) for first in range(0, len(numbers), size)]
    return groups


def ending_losses(model: GPT | Modern, contexts: Sequence[Tensor], endings: Sequence[Tensor]) -> Tensor:
    """Summed loss in nats of every ending after its context, each (L,) tokens: (N,) fp32 on the CPU. For CUDA.

    Each row holds a context, its ending, and padding, which no position before it sees in causal attention.
    """
    device = next(model.parameters()).device
    rows = [torch.cat(pair) for pair in zip(contexts, endings, strict=True)]
    sums = torch.zeros(len(rows), device=device)
    for T, numbers in _group_by_length([len(row) - 1 for row in rows], model.config.block_size):
        full = torch.zeros(T + 1, dtype=torch.long)  # sets the length of the padded rows
        tokens = pad_sequence([full, *(rows[i] for i in numbers)], batch_first=True)[1:].to(device)  # (R, T + 1)
        ends = torch.tensor([[len(rows[i]) - 1] for i in numbers])  # (R, 1)
        starts = ends - torch.tensor([[len(endings[i])] for i in numbers])
        position = torch.arange(T)  # position t predicts token t + 1
        counts = ((starts <= position) & (position < ends)).to(device)  # (R, T): padding and contexts do not count
        x, targets = model.hidden(tokens[:, :-1]), tokens[:, 1:]
        losses = torch.zeros(counts.shape, device=device)
        losses[counts] = token_losses(model, x[counts], targets[counts])
        sums[numbers] = losses.sum(dim=1)
    return sums.cpu()


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
    tallies = [torch.zeros(3, device=processes.device)]  # they stay there: the host waits once, at the end
    text_bytes = 0
    with evaluating(model, processes.device, precision):
        for first in range(processes.rank * micro_batch, count, processes.world_size * micro_batch):
            last = min(first + micro_batch, count) - 1
            line = sequences.line(first * n, last * n + length)
            rows = np.lib.stride_tricks.sliding_window_view(line, length)[::n].astype(np.int64)
            idx = torch.from_numpy(rows).to(processes.device)
            states = model.hidden(idx[:, :-1])[:, -n:]  # only the positions that count reach the head
            tallies += _tally(model, states.flatten(0, 1), idx[:, -n:].flatten())
            text_bytes += int(text.token_bytes[rows[:, -n:]].sum())
    totals = torch.stack(tallies).cpu().double().sum(dim=0)  # MPS has no float64
    nats, top1, top10, total_bytes = processes.sum(*totals, text_bytes)
    bits = bits_per_byte(nats, total_bytes) if total_bytes else math.nan
    targets = count * n
    return Measured(nats / targets, bits, top1 / targets, top10 / targets, targets, int(total_bytes))


def _tally(model: GPT | Modern, x: Tensor, targets: Tensor) -> Iterator[Tensor]:
    """Per chunk: summed loss in nats, targets that were the likeliest, and targets among the ten likeliest, (3,)."""
    for logits, chunk in logits_in_chunks(model, x, targets):
        hits = logits.topk(min(10, logits.size(-1)), dim=-1).indices == chunk[:, None]  # (n, 10)
        yield torch.stack([F.cross_entropy(logits, chunk, reduction="sum"), hits[:, 0].sum(), hits.sum()])
