"""Attention with shared key heads, sliding windows and sinks; rotary positions.

Built in notebooks 13 and 16.

Shapes in comments: as in `gpt2.model`, with H query heads, K heads of keys and values, and D = the width of a head.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor

from gpt2 import kernels
from gpt2.modern.parts import Parts

FLEX_FROM = 512  # positions; it is compiled for every length, which short sequences of any length would not repay


def rotary_table(parts: Parts, head_size: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine (T, D/2) by which the pairs of a head are turned at `positions` (T,).

    RoPE (Su et al., arXiv 2104.09864). YaRN (Peng et al., arXiv 2309.00071): pairs that turn fewer than once in the
    old context are slowed down by the factor, those that turn more than 32 times stay, the rest lies between; and
    logits grow by (0.1 ln factor + 1)², half of it on queries, half on keys.
    """
    pairs = torch.arange(head_size // 2, device=positions.device)
    speed = parts.rotary_base ** (-2 * pairs / head_size)  # radians a position
    scale = 1.0
    if parts.yarn_factor > 1:
        pair_that_turns = [
            head_size * math.log(parts.yarn_context / (turns * 2 * math.pi)) / (2 * math.log(parts.rotary_base))
            for turns in (32, 1)
        ]
        first, last = max(pair_that_turns[0], 0.0), min(pair_that_turns[1], head_size - 1.0)
        slowed = ((pairs - first) / max(last - first, 1e-3)).clamp(0, 1)
        speed = speed / parts.yarn_factor * slowed + speed * (1 - slowed)
        scale = 0.1 * math.log(parts.yarn_factor) + 1
    angles = positions[:, None] * speed
    return angles.cos() * scale, angles.sin() * scale


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (i, i + D/2) of x (B, H, T, D) by a rotary table."""
    cos, sin = table
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def causal_mask(T: int, S: int, window: int | None, device: torch.device) -> Tensor:
    """Which of S positions each of the last T of them sees: (T, S), True where it may look."""
    query = torch.arange(S - T, S, device=device)[:, None]
    key = torch.arange(S, device=device)
    seen = key <= query
    return seen if window is None else seen & (key > query - window)


def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None, sinks: Tensor | None, flex: bool) -> Tensor:
    """The last T positions look at all S: q (B, H, T, D), k and v (B, K, S, D) → (B, H, T, D).

    Each sees the `window` positions that end with itself (None: all); `sinks` (H,) are logits that join the softmax
    and are dropped after it. `flex` allows FlexAttention, which skips what a window hides and keeps no (T, S) map; it
    is used for windows and sinks on CUDA, from a length on at which that counts. The other paths compute the same.
    """
    T, S = q.size(2), k.size(2)
    q, k = q.to(v.dtype), k.to(v.dtype)  # autocast may leave what was normalised in fp32
    if window is not None and window >= S:
        window = None
    if flex and q.device.type == "cuda" and T == S >= FLEX_FROM and (window or sinks is not None):
        return flex_attend(q, k, v, window, sinks)
    if T == 1 and window is not None:  # one position sees the end of the line, whole
        k, v, window = k[:, :, -window:], v[:, :, -window:], None
    if k.size(1) < q.size(1):
        k, v = (x.repeat_interleave(q.size(1) // k.size(1), dim=1) for x in (k, v))
    mask = None if window is None or T == 1 else causal_mask(T, S, window, q.device)
    if sinks is None:
        return kernels.attend(q, k, v, mask)
    scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)  # (B, H, T, S)
    if T > 1:
        scores = scores.masked_fill(~causal_mask(T, S, window, q.device), float("-inf"))
    column = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(scores.size(0), -1, T, 1)
    weights = torch.cat([scores, column], dim=-1).softmax(-1)[..., :-1]
    return weights.to(v.dtype) @ v


def flex_attend(q: Tensor, k: Tensor, v: Tensor, window: int | None, sinks: Tensor | None) -> Tensor:
    """`attend` for T = S through FlexAttention (Dong et al., arXiv 2412.05496), compiled.

    A sink only adds to the sum under the softmax: the result without it, times sum / (sum + exp(sink)).
    """
    from torch.nn.attention.flex_attention import AuxRequest

    mask = _block_mask(q.size(2), window, q.device)
    wanted = AuxRequest(lse=True)  # the logarithm of that sum, (B, H, T)
    y, aux = _flex(q, k, v, block_mask=mask, enable_gqa=k.size(1) < q.size(1), return_aux=wanted)
    if sinks is not None:
        y = y * torch.sigmoid(aux.lse - sinks.view(1, -1, 1))[..., None].to(y.dtype)
    return y


def _flex(*inputs: Any, **options: Any) -> Any:
    """FlexAttention: as it is inside a compiled model or on a CPU, else compiled on its own."""
    from torch.nn.attention.flex_attention import flex_attention

    if torch.compiler.is_compiling() or inputs[0].device.type == "cpu":
        return flex_attention(*inputs, **options)
    return _compiled_flex()(*inputs, **options)


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _block_mask(T: int, window: int | None, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = key <= query
        return seen if window is None else seen & (key > query - window)

    return create_block_mask(sees, None, None, T, T, device=str(device))
