"""How good a model is on held-out text.

Holds:    `validate`, `bits_per_byte`.
Built in: notebook 11.
Imports:  torch, numpy, gpt2.loader, gpt2.distributed.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gpt2.distributed import Processes
from gpt2.loader import Sequences

IGNORED = -100  # a target that does not count


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
    Micro-batches go round the processes; the last is filled up with ignored targets, so shapes never change.
    """
    count = min(len(sequences), max(1, tokens // sequences.block_size))
    nats, scored, text_bytes = 0.0, 0, 0
    for start in range(processes.rank * micro_batch, count, processes.world_size * micro_batch):
        index = np.arange(start, start + micro_batch)
        rows = sequences.read(np.minimum(index, count - 1)).astype(np.int64)
        targets = rows[:, 1:].copy()
        text_bytes += int(sizes[targets[index < count]].sum())
        targets[index >= count] = IGNORED
        x, y = (torch.from_numpy(np.ascontiguousarray(a)).to(processes.device) for a in (rows[:, :-1], targets))
        here = int((targets != IGNORED).sum())
        nats += loss_of(x, y).item() * here
        scored += here
    nats, total, total_bytes = processes.sum(nats, scored, text_bytes)
    return nats / total, bits_per_byte(nats, total_bytes)
