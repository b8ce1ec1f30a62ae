"""What a model costs: parameters, floating-point operations, memory.

Holds:    `flops_per_token`, `activation_bytes`, `matmul_rate`.
Built in: notebook 07.
Imports:  torch, gpt2.distributed, gpt2.model.
"""

import statistics
import time

import torch

from gpt2.distributed import wait
from gpt2.model import GPTConfig


def matrix_parameters(config: GPTConfig) -> int:
    """Parameters that multiply every token: blocks and head (the token table counts once, as the head)."""
    return 12 * config.n_layer * config.n_embd**2 + config.padded_vocab_size * config.n_embd


def flops_per_token(config: GPTConfig) -> float:
    """Training FLOPs a token, forward and backward: 6 N + 12 L d T, the PaLM count (arXiv 2204.02311, appendix B)."""
    attention = 12 * config.n_layer * config.n_embd * config.block_size
    return 6 * matrix_parameters(config) + attention


def activation_bytes(config: GPTConfig) -> int:
    """Bytes that forward keeps for the backward of one sequence, without recompute; an upper estimate in fp32.

    A block keeps about 17 values a channel (norms, q, k, v, attention, four-wide MLP twice, residuals) and, where
    attention isn't fused, two T × T maps a head; the head keeps logits and their gradient.
    """
    T = config.block_size
    maps = 2 * config.n_head * T if T <= 512 else 0
    block = config.n_layer * (17 * config.n_embd + maps)
    return 4 * T * (block + 3 * config.padded_vocab_size)


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
