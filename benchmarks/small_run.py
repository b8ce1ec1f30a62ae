"""A small, right training run in one process, whose methods silent_bugs.py overrides, one per bug."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from experiments import ROOT, STORIES
from torch import Tensor
from torch.nn import functional as F

from gpt2 import kernels
from gpt2.data.shards import find_shards
from gpt2.data.tokenizer import get_encoding
from gpt2.model import GPT, GPTConfig

T, STEPS, EVERY = 32, 160, 16
BATCH, MICRO = 16, 4  # sequences per step; micro-batches per step where a bug needs them, and one elsewhere
BETAS, RATE, WARMUP = (0.9, 0.95), 2e-3, 16
HELD_OUT = 48  # sequences of the held-out text that are measured
CONFIG = GPTConfig(block_size=T, vocab_size=257, n_layer=2, n_head=2, n_embd=64)


def rows_of(split: str) -> np.ndarray:
    """All sequences of bytes of a split, in file order: (N, T + 1) int64. 256 stands between two documents."""
    encoding = get_encoding(2048)
    spelt = [*(list(encoding.decode_single_token_bytes(i)) for i in range(2047)), [256]]
    tokens = np.concatenate([shard.read(0, shard.tokens) for shard in find_shards(ROOT / STORIES, split)])
    line = np.array([byte for token in tokens.tolist() for byte in spelt[token]])
    return np.lib.stride_tricks.sliding_window_view(line, T + 1)[::T].copy()


@contextlib.contextmanager
def attention(attend: Callable[..., Tensor]) -> Iterator[None]:
    """Let the model's blocks use another function for attention."""
    before, kernels.attend = kernels.attend, attend
    try:
        yield
    finally:
        kernels.attend = before


class Run:
    """The right training run."""

    attend = staticmethod(kernels.attend)
    dropout, padded = 0.0, False
    parts = 1  # micro-batches per step
    sequences: int | None = None  # of the training text that are used, in turn; None: all

    def __init__(self, seed: int, train: np.ndarray, val: np.ndarray):
        self.seed, self.train_rows = seed, train[: self.sequences]
        self.val_rows = torch.from_numpy(val[:: len(val) // HELD_OUT][:HELD_OUT].copy())
        self.lengths = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.models = [GPT(CONFIG)]
        self.start()
        self.optimizers = [self.make_optimizer(model) for model in self.models]
        self.order = self.make_order()
        self.log: dict[str, list[float]] = {"true": [], "printed": [], "train": [], "norm": []}

    def start(self) -> None:
        if self.dropout:
            for block in self.models[0].transformer.h:
                block.mlp.register_forward_hook(lambda m, _, out: F.dropout(out, self.dropout, m.training))

    def groups(self, model: GPT) -> list[dict[str, Any]]:
        parameters = list(model.parameters())
        matrices = {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.1}
        return [matrices, {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}]

    def make_optimizer(self, model: GPT) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.groups(model), betas=BETAS, fused=True)

    def make_order(self) -> np.ndarray:
        return np.random.default_rng(self.seed).permutation(len(self.train_rows))

    def train(self, steps: int = STEPS) -> dict[str, list[float]]:
        """Make so many steps of the run; return its curves."""
        for step in range(steps):
            if step % EVERY == 0:
                self.validate()
            if step == STEPS // 2:
                self.resume()
            losses = self.gradients(self.micro_batches(self.position(step)))
            norm = self.clip()
            self.update(self.rate(step))
            self.clear()
            if step % 4 == 3:
                self.log["train"].append(losses)
                self.log["norm"].append(norm)
        self.validate()
        return self.log

    def position(self, step: int) -> int:
        return step

    def micro_batches(self, position: int) -> list[Tensor]:
        places = np.arange(position * BATCH, (position + 1) * BATCH) % len(self.order)
        return list(torch.from_numpy(self.train_rows[self.order[places]]).chunk(self.parts))

    def cut(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        x, y = rows[:, :-1].clone(), rows[:, 1:].clone()
        if self.padded:  # texts that end early
            ended = torch.arange(T) >= torch.randint(8, T + 1, (len(rows), 1), generator=self.lengths)
            x[ended], y[ended] = 0, kernels.IGNORED
        return x, y

    def loss(self, model: GPT, x: Tensor, y: Tensor) -> Tensor:
        with attention(self.attend):
            return model(x, y)

    def gradients(self, batches: list[Tensor]) -> float:
        pairs = [self.cut(rows) for rows in batches]
        counts = [int((y != kernels.IGNORED).sum()) for _, y in pairs]
        total = 0.0
        for (x, y), share in zip(pairs, self.shares(counts), strict=True):
            loss = self.loss(self.models[0], x, y)
            (loss * share).backward()
            total += loss.item() / len(pairs)
        return total

    def shares(self, counts: list[int]) -> list[float]:
        return [count / sum(counts) for count in counts]

    def clip(self) -> float:
        norms = [torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item() for model in self.models]
        return norms[0]

    def rate(self, step: int) -> float:
        if step < WARMUP:
            return RATE * (step + 1) / WARMUP
        r = min(1.0, (step - WARMUP) / (STEPS - WARMUP))
        return RATE * (0.1 + 0.45 * (1 + math.cos(math.pi * r)))

    def update(self, rate: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()

    def clear(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def resume(self) -> None:
        """Save and load all of the training state."""

    @torch.no_grad()
    def validate(self) -> None:
        model = self.models[0].eval()
        true = model(self.val_rows[:, :-1], self.val_rows[:, 1:]).item()
        self.lengths, kept = torch.Generator().manual_seed(0), self.lengths
        self.log["true"].append(true)
        self.log["printed"].append(self.printed(model) if self.measures_otherwise() else true)
        self.lengths = kept
        model.train()

    def measures_otherwise(self) -> bool:
        """Whether the program's own measurement runs other code than the right one."""
        names = ("printed", "cut", "loss", "attend", "padded")
        return any(getattr(type(self), name) is not getattr(Run, name) for name in names)

    def printed(self, model: GPT) -> float:
        return self.loss(model, *self.cut(self.val_rows)).item()


class TwoRanks(Run):
    """Two models, each with half of the micro-batches. After `averaged` micro-steps their gradients are averaged."""

    parts, averaged = MICRO, 2

    def start(self):
        self.models.append(copy.deepcopy(self.models[0]))

    def gradients(self, batches):
        total = 0.0
        for i in range(2):
            for model, rows in zip(self.models, batches[i::2], strict=True):
                loss = self.loss(model, *self.cut(rows)) / 2
                loss.backward()
                total += loss.item() / 2
            if i + 1 == self.averaged:
                for a, b in zip(*(model.parameters() for model in self.models), strict=True):
                    a.grad = (a.grad + b.grad) / 2
                    b.grad = a.grad.clone()
        return total


def sees_all(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def adds_ones(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    visible = torch.ones(q.size(2), k.size(2)).tril()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)  # added to the scores, since it is not boolean
