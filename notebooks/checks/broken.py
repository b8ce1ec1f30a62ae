"""Right and broken pieces of a training run, on which the checkers of notebook 18 try the reader's checks."""

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class LeakyBlock(nn.Module):
    """LayerNorm, one attention head whose positions see `ahead` positions too many, and a residual connection."""

    def __init__(self, ahead: int, C: int = 32):
        super().__init__()
        self.ahead, self.inputs, random = ahead, [], torch.Generator().manual_seed(3)
        self.maps = [0.3 * torch.randn(C, C, generator=random) for _ in range(4)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.inputs.append(x.detach().clone())
        q, k, v, out = (F.layer_norm(x, x.shape[-1:]) @ one if i < 3 else one for i, one in enumerate(self.maps))
        hidden = torch.ones(x.size(1), x.size(1), dtype=torch.bool).triu(1 + self.ahead)
        scores = (q @ k.transpose(1, 2) / x.size(-1) ** 0.5).masked_fill(hidden, -math.inf)
        return x + scores.softmax(-1) @ v @ out


def accumulate(model: nn.Module, x: torch.Tensor, y: torch.Tensor, parts: int, kind: str = "right") -> float:
    counts = [int((one != -100).sum()) for one in y.chunk(parts)]
    total = 0.0
    for i, (a, b) in enumerate(zip(x.chunk(parts), y.chunk(parts), strict=True)):
        share = {"sums": 1.0, "means": 1 / parts}.get(kind, counts[i] / sum(counts))
        if kind == "last" and i:
            model.zero_grad()
        loss = model(a, b)
        (loss * share).backward()
        total += loss.item() * counts[i] / sum(counts)
    return total


class ToyRun:
    """A run with Adam's averages, a place in the data, random numbers and a schedule; `forgets` one when saving."""

    def __init__(self, forgets: str = ""):
        self.forgets, self.random = forgets, np.random.default_rng(7)
        self.all = {"weights": np.ones(2), "averages": np.zeros(2), "position": 0, "step": 0}

    def step(self) -> float:
        one = self.all
        target = math.sin(one["position"]) + 0.1 * self.random.standard_normal()
        error = one["weights"] - target
        one["averages"] += 0.1 * (error - one["averages"])
        one["weights"] -= 0.5 / (1 + one["step"]) * one["averages"]
        one["position"], one["step"] = one["position"] + 1, one["step"] + 1
        return float((error**2).sum())

    def state(self) -> dict[str, Any]:
        if self.forgets == "copies":
            return {"all": self.all, "random": self.random.bit_generator.state}
        kept = {name: np.copy(value)[()] for name, value in self.all.items()}
        return {"all": kept, "random": self.random.bit_generator.state}

    def load(self, state: dict[str, Any]) -> None:
        self.all |= {name: np.copy(value)[()] for name, value in state["all"].items() if name != self.forgets}
        if self.forgets != "random":
            self.random.bit_generator.state = state["random"]
