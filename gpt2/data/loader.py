"""Which token goes into which batch: the data order.

Built in notebook 06.

All shards together are one stream of tokens. Sequence i is tokens [i·T, i·T + T + 1): T inputs, and the same shifted
by one as targets. Step k takes sequences [k·B, (k+1)·B), for any number of processes, so the position in the data is
one integer. A sequence may reach into the next shard, so no token at the end of a shard is lost.
"""

import bisect
import hashlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from gpt2.data.shards import Shard
from gpt2.system.errors import UserError

MicroBatch = tuple[Tensor, Tensor]  # inputs and targets, each (micro_batch, T) int64


def shuffled(index: np.ndarray, size: int, key: str) -> np.ndarray:
    """Map each `index` (N,) by a pseudo-random permutation of 0 … size - 1, which depends on `key`.

    A Feistel network of four rounds permutes the numbers below an even power of two. It is applied again until the
    result is below `size` (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). The order of ten million
    sequences is computed in this way, where a stored permutation would take 80 MB.
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)  # bits in each half
    mask = np.uint64((1 << half) - 1)
    rounds = np.frombuffer(hashlib.sha256(key.encode()).digest(), dtype="<u8")  # four 64-bit round keys

    def once(x: np.ndarray) -> np.ndarray:
        left, right = x >> np.uint64(half), x & mask
        for k in rounds:
            mixed = (right ^ k) * np.uint64(0x9E3779B97F4A7C15)  # golden-ratio multiplier, as in SplitMix64
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        return (left << np.uint64(half)) | right

    out = once(index.astype(np.uint64))
    while (outside := out >= size).any():
        out[outside] = once(out[outside])
    return out.astype(np.int64)


class Sequences:
    """The shards as one stream of tokens, cut into sequences of `block_size` inputs and the target after the last."""

    def __init__(self, shards: Sequence[Shard], block_size: int, seed: int | None = None):
        """`seed` shuffles the sequences of every epoch; None keeps their order in the files."""
        self.shards, self.block_size, self.seed = list(shards), block_size, seed
        self.starts = np.cumsum([0, *(shard.tokens for shard in self.shards)])  # of each shard, in the stream
        self.tokens = int(self.starts[-1])

    def __len__(self) -> int:
        """The number of sequences per epoch."""
        return max(0, (self.tokens - 1) // self.block_size)

    def read(self, index: np.ndarray) -> np.ndarray:
        """The sequences with these numbers, counted over all epochs: (N,) → (N, T + 1) uint16."""
        epoch, inside = np.divmod(index, len(self))
        if self.seed is not None:
            for e in np.unique(epoch):
                inside[epoch == e] = shuffled(inside[epoch == e], len(self), key=f"{self.seed} {e}")
        rows = np.empty((len(index), self.block_size + 1), dtype=np.uint16)
        if np.array_equal(inside, np.arange(len(index)) + inside[:1]):  # consecutive sequences: one read
            line = self.line(int(inside[0]) * self.block_size, int(inside[-1] + 1) * self.block_size + 1)
            rows[:] = np.lib.stride_tricks.sliding_window_view(line, self.block_size + 1)[:: self.block_size]
        else:
            maps: dict[int, np.ndarray] = {}
            for row, i in zip(rows, inside.tolist(), strict=True):
                row[:] = self.line(i * self.block_size, (i + 1) * self.block_size + 1, maps)
        return rows

    def line(self, start: int, stop: int, maps: dict[int, np.ndarray] | None = None) -> np.ndarray:
        """Tokens [start, stop) of the stream; `maps` keeps shards mapped from call to call."""
        parts = []
        maps = {} if maps is None else maps
        shard = bisect.bisect_right(self.starts, start) - 1
        while start < stop:
            base, end = int(self.starts[shard]), int(self.starts[shard + 1])
            if shard not in maps:
                maps[shard] = self.shards[shard].map()
            parts.append(maps[shard][start - base : min(stop, end) - base])
            start, shard = min(stop, end), shard + 1
        return np.concatenate(parts)


class TokenLoader:
    """Divides the sequences of every step among processes and micro-batches, and prepares them one step ahead."""

    def __init__(
        self,
        shards: Sequence[Shard],
        batch_tokens: int,
        block_size: int,
        rank: int = 0,
        world_size: int = 1,
        micro_batch: int = 1,
        seed: int | None = None,
        device: torch.device | str = "cpu",
        overfit: bool = False,
    ):
        """All processes together read `batch_tokens` per step, each in micro-batches of `micro_batch` sequences.

        `seed` shuffles every epoch; None keeps file order. With `overfit`, every step has the tokens of the first.
        Raises UserError if a step doesn't divide evenly, or the shards hold fewer tokens than one step.
        """
        check_division(batch_tokens, block_size, micro_batch, world_size)
        self.sequences = Sequences(shards, block_size, seed)
        self.micro_batch, self.device = micro_batch, torch.device(device)
        self.batch = batch_tokens // block_size  # sequences per step
        self.own = self.batch // world_size  # sequences per step of this process
        self.first = rank * self.own  # the first of them
        if len(self.sequences) < self.batch:
            raise UserError(
                f"the shards hold {self.sequences.tokens:,} tokens, fewer than one batch of {batch_tokens:,} "
                f"(and the target after it); give more text, or a smaller --data.batch-tokens"
            )
        self.position = 0  # sequences that all processes together have read
        self.stride = 0 if overfit else self.batch
        self._thread = ThreadPoolExecutor(1, "token-loader", initializer=self._use_device)
        self._next: Future[list[MicroBatch]] | None = None

    @property
    def epoch(self) -> float:
        """Passes over the data so far."""
        return self.position / len(self.sequences)

    def next_step(self) -> list[MicroBatch]:
        """This process's micro-batches of the next step, on the device. A thread then prepares the step after it."""
        prepared = self._next or self._thread.submit(self._prepare, self.position)
        ready = prepared.result()
        batches = [(x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)) for x, y in ready]
        self.position += self.stride
        self._next = self._thread.submit(self._prepare, self.position)  # last, because it competes for Python's lock
        return batches

    def state_dict(self) -> dict[str, int | None]:
        """The position in the data: the sequences read so far, and the seed of their order."""
        return {"position": self.position, "seed": self.sequences.seed}

    def load_state_dict(self, state: dict[str, int | None]) -> None:
        """Continue from a `state_dict`, with any number of processes."""
        self.position, self.sequences.seed, self._next = int(state["position"] or 0), state["seed"], None

    def close(self) -> None:
        """End the thread that reads ahead."""
        self._thread.shutdown(cancel_futures=True)

    def _use_device(self) -> None:
        """Choose the thread's device, to which its pinned memory belongs; the default is the first GPU."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def _prepare(self, position: int) -> list[MicroBatch]:
        """The micro-batches of the step that starts at sequence `position`."""
        rows = self.sequences.read(np.arange(position + self.first, position + self.first + self.own))
        micro = rows.reshape(-1, self.micro_batch, rows.shape[1])
        x, y = (torch.from_numpy(part.astype(np.int64, order="C")) for part in (micro[..., :-1], micro[..., 1:]))
        batches = list(zip(x, y, strict=True))
        if self.device.type == "cuda":  # a copy runs beside the computation from pinned memory only
            batches = [(x.pin_memory(), y.pin_memory()) for x, y in batches]
        return batches


def check_division(batch_tokens: int, block_size: int, micro_batch: int, world_size: int) -> None:
    """Raise UserError unless a step divides into whole micro-batches on every process."""
    unit = micro_batch * block_size * world_size
    if batch_tokens % unit or batch_tokens < unit:
        nearest = max(1, round(batch_tokens / unit)) * unit
        raise UserError(
            f"a batch of {batch_tokens:,} tokens does not divide into micro-batches of {micro_batch} × {block_size} "
            f"tokens on {world_size} process{'es' if world_size > 1 else ''}; the nearest that does is "
            f"--data.batch-tokens {nearest}, or choose another --system.micro-batch"
        )
