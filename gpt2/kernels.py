"""The formulas of the model that are computed differently on different devices, with equal results.

Built in notebooks 02, 03, 05 and 07.

Shapes in comments: B sequences, T new and S all positions, C channels, H heads of D channels, V tokens, N = B · T.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 2**28  # 1 GiB of fp32 logits
FEW_ROWS = 16  # in a product whose time is that of reading the weight
IGNORED = -100  # a target that does not count, as in F.cross_entropy
# the product that torch.compile itself uses on a CPU; None where torch is built without oneDNN
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def no_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The context in which products are computed in the precision of their factors. There is no autocast on meta."""
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def autocast_enabled(device: torch.device) -> bool:
    """Whether autocast will cast the factors of products on this device."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (…, in) @ weight (out, in)ᵀ + bias (out,), as `F.linear`; without autocast, computed in the precision of x.

    On a CPU, `F.linear` calls MKL in fp32. oneDNN may be faster: on an AMD EPYC it took 0.6 of the time for a single
    row, as in sampling, and 0.7 for many. On an Intel Xeon with AMX one row was slower. A measurement decides.
    """
    weight, bias = _as_input(x, weight), None if bias is None else _as_input(x, bias)
    plain = torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype != torch.float32 or not x.numel()
    if plain or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    few = x.numel() <= FEW_ROWS * x.size(-1)
    return onednn_linear(x, weight, bias) if onednn_is_faster(few) else F.linear(x, weight, bias)


def _as_input(x: Tensor, weight: Tensor) -> Tensor:
    """The weight in the precision of x. Under autocast it stays as it is, since autocast casts both."""
    return weight if autocast_enabled(x.device) else weight.to(x.dtype)


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` through oneDNN: fp32 on a CPU, without gradients."""
    return _ONEDNN(x, weight, bias, "none", [], "")  # type: ignore[misc]


@functools.cache
def onednn_is_faster(few: bool) -> bool:
    """Whether this machine multiplies few rows, or many, faster with oneDNN. Measured once each, in about 50 ms."""
    if _ONEDNN is None:
        return False
    # few rows take as long as it takes to read the weight: 16 MB, as in the model, more than a cache holds
    x, weight = (torch.ones(1, 1024), torch.ones(4096, 1024)) if few else (torch.ones(256, 768), torch.ones(1536, 768))

    def seconds(product: Callable[[Tensor, Tensor], Tensor]) -> float:
        """The fastest of five products."""
        times = []
        for _ in range(5):
            started = time.perf_counter()
            product(x, weight)
            times.append(time.perf_counter() - started)
        return min(times)

    return seconds(onednn_linear) < seconds(F.linear)


def gelu(x: Tensor) -> Tensor:
    """The tanh form of GELU, as published: x/2 · (1 + tanh(z)) with z = sqrt(2/π) · (x + 0.044715 x³).

    torch.compile makes CPU code of it that is 2.5 × faster when it is written as x · sigmoid(2z), the same function.
    """
    if x.device.type == "cpu" and torch.compiler.is_compiling():
        return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
    return F.gelu(x, approximate="tanh")


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention of the last T of S positions: q (B, H, T, D), k and v (B, H, S, D) → (B, H, T, D).

    `mask` (T, S) is True where a query may look. Without one, attention is causal. The kernel is PyTorch's fused one,
    except when training on short sequences on a CPU, where the plain formula took half the time at T 256 and an eighth
    at T 64.
    """
    T, S = q.size(2), k.size(2)
    if mask is None and 1 < T < S:  # after cached positions, the diagonal of the mask is shifted
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    causal = bool(mask is None and T > 1)  # torch.export, which makes T a symbol, needs it decided
    if q.device.type != "cpu" or not q.requires_grad or T > 512:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    if causal:
        mask = torch.ones(T, S, dtype=torch.bool).tril()
    scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)  # (B, H, T, S)
    if mask is not None:
        scores = scores + torch.zeros(T, S, dtype=q.dtype).masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ v


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """Mean cross-entropy in nats of targets (N,) under the logits x (N, C) @ weight (rows, C)ᵀ.

    Rows from `vocab_size` on are padding and get no probability. Targets of -100 do not count.
    Small logits, and all logits under torch.compile, are computed by the plain formula. Otherwise only a chunk of them
    exists at a time: `F.linear_cross_entropy` (torch 2.13) does this for fp32 on CUDA, `chunked_cross_entropy`
    elsewhere. PyTorch's function is not used in bf16, where it rounds the loss to bf16 (10.81 for 10.97), nor on a
    CPU, where it took 3.5 × the time of the plain formula at 1,024 × 50,304 logits.
    """
    weight = _as_input(x, weight)
    if x.size(0) * weight.size(0) <= CHUNK_LOGITS or torch.compiler.is_compiling():
        return F.cross_entropy(_without_padding(F.linear(x, weight), vocab_size).float(), targets)
    autocast = autocast_enabled(x.device)
    if hasattr(F, "linear_cross_entropy") and x.device.type == "cuda" and x.dtype == torch.float32 and not autocast:
        padding = torch.zeros(weight.size(0), device=x.device)
        padding[vocab_size:] = float("-inf")
        options = nn.LinearCrossEntropyOptions()
        return F.linear_cross_entropy(x, weight, targets, linear_bias=padding, options=options)
    return chunked_cross_entropy(x, weight, targets, vocab_size)


def _without_padding(logits: Tensor, vocab_size: int) -> Tensor:
    """Logits (N, rows) whose columns from `vocab_size` on count for nothing.

    Compiled for a GPU, a slice of odd width would be read 2 bytes at a time. With -inf in the padding, it is 8 bytes.
    """
    if logits.device.type == "cpu" or not torch.compiler.is_compiling():
        return logits[:, :vocab_size]
    columns = torch.arange(logits.size(1), device=logits.device)
    return logits.masked_fill(columns >= vocab_size, float("-inf"))


def chunked_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, chunk_logits: int = CHUNK_LOGITS
) -> Tensor:
    """As `linear_cross_entropy`, with at most `chunk_logits` logits at a time; backward computes them again."""

    def loss_sum(x: Tensor, targets: Tensor) -> Tensor:
        logits = F.linear(x, weight)[:, :vocab_size].float()
        return F.cross_entropy(logits, targets, reduction="sum")

    rows = max(1, chunk_logits // weight.size(0))
    chunks = zip(x.split(rows), targets.split(rows), strict=True)
    losses = [checkpoint(loss_sum, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return torch.stack(losses).sum() / (targets != IGNORED).sum()
