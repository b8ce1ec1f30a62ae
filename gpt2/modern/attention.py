"""Attention with shared key and value heads, sliding windows and sinks; rotary positions.

Built in notebook 15.

Shapes in comments: as in `gpt2.model`, with H query heads, K heads of keys and values, and D = the width of a head.
"""

import functools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

from gpt2 import kernels
from gpt2.modern.parts import Parts

FLEX_FROM = 512  # positions; FlexAttention is compiled for every length, which does not pay off for short sequences


def rotary_table(parts: Parts, head_size: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine (T, D/2) of the angles by which `positions` (T,) rotate the pairs of a head.

    RoPE (Su et al., arXiv 2104.09864). YaRN (Peng et al., arXiv 2309.00071) slows down the pairs that turn less than
    once in the old context by `yarn_factor`. It keeps those that turn more than 32 times, and interpolates between.
    It also multiplies attention scores by (0.1 ln yarn_factor + 1)², half of it on queries and half on keys.
    """
    pairs = torch.arange(head_size // 2, device=positions.device)
    frequencies = parts.rotary_base ** (-2 * pairs / head_size)  # radians per position
    scale = 1.0
    if parts.yarn_factor > 1:
        # the pair that turns 32 times in the old context, and the pair that turns once
        first, last = (
            head_size * math.log(parts.yarn_context / (turns * 2 * math.pi)) / (2 * math.log(parts.rotary_base))
            for turns in (32, 1)
        )
        first, last = max(first, 0.0), min(last, head_size - 1.0)
        slowed = ((pairs - first) / max(last - first, 1e-3)).clamp(0, 1)
        frequencies = frequencies / parts.yarn_factor * slowed + frequencies * (1 - slowed)
        scale = 0.1 * math.log(parts.yarn_factor) + 1
    cos, sin = _cos_and_sin(positions[:, None] * frequencies)
    return cos * scale, sin * scale


@torch.library.custom_op("gpt2::cos_and_sin", mutates_args=())
def _cos_and_sin(angles: Tensor) -> tuple[Tensor, Tensor]:
    """An operator that torch.compile does not see into: otherwise it would compute both again in every layer."""
    return angles.cos(), angles.sin()


_cos_and_sin.register_fake(lambda angles: (torch.empty_like(angles), torch.empty_like(angles)))


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (i, i + D/2) of x (B, T, H, D) by a rotary table (T, D/2)."""
    cos, sin = (values[:, None] for values in table)
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def is_visible(query: Tensor, key: Tensor, window: int | None) -> Tensor:
    """Whether a query position sees a key position: one of the last `window` up to its own (None: all up to it)."""
    causal = key <= query
    return causal if window is None else causal & (key > query - window)


def causal_mask(T: int, S: int, window: int | None, device: torch.device) -> Tensor:
    """Which of S positions each of the last T sees: (T, S)."""
    positions = torch.arange(S, device=device)
    return is_visible(positions[S - T :, None], positions, window)


def block_masks(
    windows: Iterable[int | None], sinks: bool, T: int, S: int, device: torch.device
) -> dict[int | None, BlockMask]:
    """The masks of FlexAttention for the last T of S positions, one per window, which all layers share.

    A window has none where another formula is used: on a CPU, for short sequences, after cached positions, and without
    sinks for a window that holds all positions.
    """
    if device.type != "cuda" or T != S or T < FLEX_FROM:
        return {}
    return {w: block_mask(T, w, device) for w in windows if sinks or (w is not None and w < T)}


def block_mask(T: int, window: int | None, device: torch.device) -> BlockMask:
    """Which blocks of a (T, T) map hold visible positions. Kept for the next call, unless it is compiled."""
    make = _block_mask.__wrapped__ if torch.compiler.is_compiling() else _block_mask
    return make(T, window, device)


@functools.lru_cache(maxsize=8)
def _block_mask(T: int, window: int | None, device: torch.device) -> BlockMask:
    def mask_function(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return is_visible(query, key, window)

    return create_block_mask(mask_function, None, None, T, T, device=str(device))


def attend(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, sinks: Tensor | None = None, mask: BlockMask | None = None
) -> Tensor:
    """Attention of the last T of S positions: q (B, H, T, D), k and v (B, K, S, D) → (B, H, T, D).

    Each position sees the `window` positions that end with its own (None: all). `sinks` (H,) are logits that take part
    in the softmax and are dropped after it. With a block mask of the window, FlexAttention computes the same: it skips
    the positions outside the window and stores no (T, S) map.
    """
    T, S = q.size(2), k.size(2)
    q, k = q.to(v.dtype), k.to(v.dtype)  # autocast may leave normalised queries and keys in fp32
    if window is not None and window >= S:
        window = None
    if mask is not None:
        return flex_attend(q, k, v, sinks, mask)
    if T == 1:  # a single query sees everything in its window
        return attend_one(q, *((k, v) if window is None else (k[:, :, -window:], v[:, :, -window:])), sinks)
    if k.size(1) < q.size(1):
        k, v = (x.repeat_interleave(q.size(1) // k.size(1), dim=1) for x in (k, v))
    if sinks is None:
        return kernels.attend(q, k, v, None if window is None else causal_mask(T, S, window, q.device))
    scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)  # (B, H, T, S)
    scores = scores.masked_fill(~causal_mask(T, S, window, q.device), float("-inf"))
    return softmax_with_sinks(scores, sinks.view(1, -1, 1, 1)).to(v.dtype) @ v


def attend_one(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> Tensor:
    """Attention of one query per head to all positions: q (B, H, 1, D), k and v (B, K, S, D) → (B, H, 1, D).

    The H / K queries that share a head of keys are the rows of one matrix, so no key is copied.
    """
    rows = q.reshape(q.size(0), k.size(1), -1, q.size(-1))  # (B, K, H/K, D)
    if sinks is None:
        y = F.scaled_dot_product_attention(rows, k, v)
    else:
        scores = (rows / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)  # (B, K, H/K, S)
        y = softmax_with_sinks(scores, sinks.view(1, k.size(1), -1, 1)).to(v.dtype) @ v
    return y.reshape(q.shape)


def softmax_with_sinks(scores: Tensor, sinks: Tensor) -> Tensor:
    """The softmax over the last axis, in which one logit more per row takes part; its weight is dropped."""
    column = sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1]


def flex_attend(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, mask: BlockMask) -> Tensor:
    """`attend` for T = S through FlexAttention (Dong et al., arXiv 2412.05496), compiled.

    A sink only adds to the sum under the softmax: the output without it is multiplied by sum / (sum + exp(sink)).
    """
    # inside a compiled model, FlexAttention is compiled with it
    function = flex_attention if torch.compiler.is_compiling() or q.device.type == "cpu" else _compiled_flex_attention()
    # lse: the logarithm of that sum, (B, H, T)
    y, aux = function(q, k, v, block_mask=mask, enable_gqa=k.size(1) < q.size(1), return_aux=AuxRequest(lse=True))
    if sinks is not None:
        y = y * torch.sigmoid(aux.lse - sinks.view(1, -1, 1))[..., None].to(y.dtype)
    return y


@functools.cache
def _compiled_flex_attention() -> Any:
    return torch.compile(flex_attention, dynamic=False)
