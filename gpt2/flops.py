"""What a model costs: parameters and floating-point operations; and the speed they are measured against.

Holds:    `parameters`, `flops_per_token`, `recompute_flops_per_token`, `matmul_rate`, and
          `python -m gpt2.flops gpt2-124m --gpus 8 --hardware a100`, the plan of a run before machines are rented for
          it (see `gpt2.plan`).
Built in: notebook 07.
Imports:  torch, gpt2.distributed, gpt2.model (for its sizes), gpt2.plan (as a command).
"""

import statistics
import time

import torch

from gpt2.distributed import wait
from gpt2.errors import run_command
from gpt2.model import GPTConfig


def parameters(config: GPTConfig) -> dict[str, int]:
    """Parameters by part, biases and the padding rows of the token table included."""
    L, C = config.n_layer, config.n_embd
    return {
        "token table": config.padded_vocab_size * C,
        "position table": config.block_size * C,
        "attention": L * (4 * C**2 + 4 * C),
        "MLP": L * (8 * C**2 + 5 * C),
        "norms": (2 * L + 1) * 2 * C,
    }


def published_parameters(config: GPTConfig) -> int:
    """Parameters as publications count them: without the padding rows of the token table."""
    return sum(parameters(config).values()) - (config.padded_vocab_size - config.vocab_size) * config.n_embd


def matrix_parameters(config: GPTConfig) -> int:
    """Parameters that multiply every token: blocks and head (the token table counts once, as the head)."""
    return 12 * config.n_layer * config.n_embd**2 + config.padded_vocab_size * config.n_embd


def flops_per_token(config: GPTConfig) -> float:
    """Training FLOPs a token, forward and backward: 6 N + 12 L d T, the PaLM count (arXiv 2204.02311, appendix B)."""
    attention = 12 * config.n_layer * config.n_embd * config.block_size
    return 6 * matrix_parameters(config) + attention


def recompute_flops_per_token(config: GPTConfig, recompute: str) -> float:
    """FLOPs a token done twice. The last product of a recomputed part isn't: backward doesn't need its result."""
    L, C, T = config.n_layer, config.n_embd, config.block_size
    return {"none": 0, "mlp": 8 * L * C**2, "block": 16 * L * C**2 + 4 * L * C * T}[recompute]


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 4096, repeats: int = 20) -> float:
    """FLOP/s of a square matrix product: the peak against which MFU is named. The median of `repeats`."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats + 3):
        wait(device)
        started = time.perf_counter()
        a @ b
        wait(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds[3:])


if __name__ == "__main__":
    from gpt2.plan import main

    run_command(main)
