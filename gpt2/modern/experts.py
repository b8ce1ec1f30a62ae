"""The non-linearities of the MLP, and many MLPs of which a router chooses a few for every token.

Built in notebook 16.

Shapes in comments: N tokens, k experts a token, E experts, F the width inside an expert.
"""

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2.kernels import gelu, linear
from gpt2.model import Linear
from gpt2.modern.parts import Parts

SILU_MAGNITUDE = 0.596  # root mean square of silu(x) for x ~ Normal(0, 1) (arXiv 2312.02696, eq. 81)
ALIGN = 64, 8  # rows of an expert begin at multiples of the first, or of the second where there are few
CLAMP = 7.0  # gpt-oss: what is multiplied stays in the range of 16-bit products


def is_gated(kind: str) -> bool:
    """Whether this non-linearity takes a gate beside its input, so that its input is twice as wide as its output."""
    return kind.startswith("swiglu")


def activate(kind: str, x: Tensor) -> Tensor:
    """The activation function `Parts.mlp`: (…, F) → (…, F), or gates and inputs (…, 2 F) → (…, F)."""
    if kind == "gelu":
        return gelu(x)
    if kind == "relu2":
        return F.relu(x).square()
    if kind == "mp-silu":
        return F.silu(x) / SILU_MAGNITUDE
    gate, up = x.chunk(2, dim=-1)
    if kind == "swiglu":
        return F.silu(gate) * up
    gate, up = gate.clamp(max=CLAMP), up.clamp(-CLAMP, CLAMP)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


def unit_rows(weight: Tensor) -> Tensor:
    """Rows (…, in) scaled to length 1, so that an input of unit magnitude gives an output of unit magnitude."""
    size = weight.size(-1)
    return F.rms_norm(weight, (size,), eps=1e-8) / math.sqrt(size)


class ExpertLinear(nn.Module):
    """A linear map for every expert."""

    def __init__(self, experts: int, inside: int, outside: int, bias: bool, normalised: bool):
        super().__init__()
        self.normalised = normalised
        self.weight = nn.Parameter(torch.empty(experts, outside, inside))
        self.bias = nn.Parameter(torch.empty(experts, outside)) if bias else None

    def forward(self, x: Tensor, expert: Tensor, ends: Tensor) -> Tensor:
        """Rows (M, in), in the order of their experts (M, E; one-hot), which end at `ends` (E,) → (M, out)."""
        weight = unit_rows(self.weight) if self.normalised else self.weight
        y = grouped_linear(x, weight, ends)
        return y if self.bias is None else y + linear(expert.to(y.dtype), self.bias.t())


class Experts(nn.Module):
    """A mixture of experts: each token goes to the k experts to which the router gives the largest logits.

    Shazeer et al. (arXiv 1701.06538); the weights are a softmax over the chosen alone, as in Mixtral and gpt-oss.
    """

    def __init__(self, n_embd: int, width: int, parts: Parts):
        super().__init__()
        self.kind, self.k, self.experts = parts.mlp, parts.experts_per_token, parts.experts
        self.normalised = parts.normalised_weights
        shape = (parts.bias, self.normalised)
        self.router = Linear(n_embd, parts.experts, bias=parts.bias)
        self.c_fc = ExpertLinear(parts.experts, n_embd, width * (2 if is_gated(self.kind) else 1), *shape)
        self.c_proj = ExpertLinear(parts.experts, width, n_embd, *shape)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, C) → (B, T, C), and the load-balancing loss."""
        B, T, C = x.shape
        with torch.autocast(x.device.type, enabled=False):  # a rounded logit would send tokens elsewhere
            weight = unit_rows(self.router.weight) if self.normalised else self.router.weight
            scores = linear(x.float(), weight.float(), _float(self.router.bias))  # (B, T, E)
        logits, chosen = scores.topk(self.k, dim=-1)  # (B, T, k)
        weights = logits.softmax(-1).flatten(0, 1)  # (N, k)
        place, expert, ends = dispatch(chosen.flatten(), self.experts)
        copies = x.reshape(B * T, 1, C).expand(-1, self.k, -1).reshape(-1, C)  # (N · k, C)
        rows = copies.new_zeros(len(expert), C).index_copy(0, place, copies)  # (M, C)
        y = self.c_fc(rows, expert, ends)
        y = self.c_proj(activate(self.kind, y), expert, ends)  # (M, C)
        y = y.index_select(0, place).view(-1, self.k, C)  # back in the order of the tokens
        return (y * weights[..., None].to(y.dtype)).sum(1).view(B, T, C), self.load_balancing_loss(scores, chosen)

    def load_balancing_loss(self, scores: Tensor, chosen: Tensor) -> Tensor:
        """E · Σ (share of places) · (mean probability) over the experts, the mean over sequences.

        1 where all experts are used equally, up to E / k.

        Fedus et al., "Switch Transformers" (arXiv 2101.03961), eq. 4; for each sequence on its own (DeepSeek-V3, arXiv
        2412.19437), so that the gradient does not depend on the micro-batch.
        """
        share = F.one_hot(chosen, self.experts).float().mean((1, 2))  # (B, E)
        probability = scores.softmax(-1).mean(1)  # (B, E)
        return self.experts * (share * probability).sum(-1).mean()


def dispatch(chosen: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """The expert of every copy of a token (N · k,) → its row among M, the rows' experts (M, E; one-hot), the ends (E,).

    An expert's rows stand together, and begin at a multiple of 64 (8 if there are few): F.grouped_mm wants multiples of
    8 for its gradient, and oneDNN compiles a product anew for every size that it has not seen. The rows between are
    left zero; those after the last copy belong to the last expert.
    """
    block = ALIGN[0] if len(chosen) >= 4 * ALIGN[0] * experts else ALIGN[1]
    size = -(-(len(chosen) + experts * (block - 1)) // block) * block  # M: enough, however the tokens fall
    expert = F.one_hot(chosen, experts)  # (N · k, E)
    used = expert.sum(0)
    ends = ((used + block - 1) // block * block).cumsum(0)
    begins = F.pad(ends[:-1], (1, 0))
    before = expert.cumsum(0) - 1  # how many before this one have the same expert
    place = (expert * (before + begins)).sum(1)
    ends = torch.cat((ends[:-1], ends.new_full((1,), size)))
    return place, expert.new_zeros(size, experts).index_copy(0, place, expert), ends


def _float(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float()


def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows (M, in), group e of which ends at ends[e], each times its own weight (E, out, in)ᵀ → (M, out).

    One kernel for all groups (`F.grouped_mm`) in bf16 on CUDA, for widths that it can take; elsewhere a product a
    group, hidden from the compiler, which on CUDA has to wait for the sizes of the groups.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    aligned = x.size(-1) % 8 == 0 and weight.size(-2) % 8 == 0  # rows of 16 bytes
    if x.device.type == "cuda" and x.dtype == torch.bfloat16 and aligned and hasattr(F, "grouped_mm"):
        return F.grouped_mm(x, weight.transpose(-2, -1), offs=ends.to(torch.int32))
    return _grouped_linear(x.contiguous(), weight.contiguous(), ends)


def _groups(ends: Tensor) -> list[slice]:
    bounds = [0, *ends.tolist()]
    return [slice(begin, end) for begin, end in itertools.pairwise(bounds)]


@torch.library.custom_op("gpt2::grouped_linear", mutates_args=())
def _grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    y = x.new_empty(x.size(0), weight.size(1))
    for group, matrix in zip(_groups(ends), weight, strict=True):
        torch.mm(x[group], matrix.t(), out=y[group])
    return y


@_grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.size(0), weight.size(1))


@torch.library.custom_op("gpt2::grouped_linear_backward", mutates_args=())
def _grouped_linear_backward(x: Tensor, weight: Tensor, ends: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    dx, dweight = torch.empty_like(x), torch.empty_like(weight)
    for group, matrix, dmatrix in zip(_groups(ends), weight, dweight, strict=True):
        torch.mm(dy[group], matrix, out=dx[group])
        torch.mm(dy[group].t(), x[group], out=dmatrix)
    return dx, dweight


@_grouped_linear_backward.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_grouped_linear_backward(*ctx.saved_tensors, dy.contiguous()), None


_grouped_linear.register_autograd(_backward, setup_context=_keep)
