"""The activation functions of the MLP, and mixtures of experts: many MLPs, a few of which a router chooses per token.

Built in notebook 15.

Shapes in comments: N = B · T tokens, k experts per token, E experts, F the width inside an expert, M rows of copies.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2.kernels import autocast_enabled, gelu, linear, no_autocast
from gpt2.model import Linear
from gpt2.modern.parts import Parts

SILU_MAGNITUDE = 0.596  # root mean square of silu(x) for x ~ Normal(0, 1) (arXiv 2312.02696, eq. 81)
ALIGN = 64, 8  # an expert's rows begin at multiples of the first; of the second if there are few rows
CLAMP = 7.0  # gpt-oss: keeps the factors of the product within the range of 16-bit numbers


def is_gated(kind: str) -> bool:
    """Whether this activation function takes a gate beside its input: its input is then twice as wide as its output."""
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
    """One linear layer per expert."""

    def __init__(self, parts: Parts, inside: int, outside: int):
        super().__init__()
        self.normalised = parts.normalised_weights
        self.weight = nn.Parameter(torch.empty(parts.experts, outside, inside))
        self.bias = nn.Parameter(torch.empty(parts.experts, outside)) if parts.bias else None

    def forward(self, x: Tensor, expert: Tensor, ends: Tensor) -> Tensor:
        """Rows (M, in), grouped by expert (M, E; one-hot), whose groups end at `ends` (E,) → (M, out)."""
        y = grouped_linear(x, unit_rows(self.weight) if self.normalised else self.weight, ends)
        return y if self.bias is None else y + linear(expert.to(y.dtype), self.bias.t())


class Experts(nn.Module):
    """A mixture of experts: each token goes to the k experts to which the router gives the largest logits.

    Shazeer et al. (arXiv 1701.06538). As in Mixtral and gpt-oss, the weights are a softmax over the chosen logits.
    """

    def __init__(self, n_embd: int, width: int, parts: Parts):
        super().__init__()
        self.kind, self.k, self.experts = parts.mlp, parts.experts_per_token, parts.experts
        self.normalised = parts.normalised_weights
        self.router = Linear(n_embd, parts.experts, bias=parts.bias)
        self.c_fc = ExpertLinear(parts, n_embd, width * (2 if is_gated(self.kind) else 1))
        self.c_proj = ExpertLinear(parts, width, n_embd)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, C) → (B, T, C), and the load-balancing loss."""
        B, T, C = x.shape
        scores = self.route(x)  # (B, T, E)
        logits, chosen = scores.topk(self.k, dim=-1)  # (B, T, k)
        weights = logits.softmax(-1).view(B * T, self.k, 1)
        row, expert, ends = dispatch(chosen.flatten(), self.experts)
        copies = _autocast(x).reshape(B * T, 1, C).expand(-1, self.k, -1).reshape(-1, C)  # (N · k, C)
        y = copies.new_zeros(len(expert), C).index_copy(0, row, copies)  # (M, C)
        y = activate(self.kind, self.c_fc(y, expert, ends))  # (M, F)
        y = self.c_proj(y, expert, ends)  # (M, C)
        y = y.index_select(0, row).view(-1, self.k, C)  # in the order of the tokens again
        return (y * weights.to(y.dtype)).sum(1).view(B, T, C), self.load_balancing_loss(scores, chosen)

    def route(self, x: Tensor) -> Tensor:
        """The router's logits (B, T, E), in fp32: rounded logits would send some tokens to other experts."""
        with no_autocast(x.device):
            weight, bias = self.router.weight, self.router.bias
            weight = unit_rows(weight) if self.normalised else weight
            return linear(x.float(), weight.float(), bias.float() if bias is not None else None)

    def load_balancing_loss(self, scores: Tensor, chosen: Tensor) -> Tensor:
        """E · Σ over experts of (fraction of tokens) · (mean probability), averaged over sequences.

        It is 1 if all experts are used equally, and at most E / k. Fedus et al., "Switch Transformers" (arXiv
        2101.03961), eq. 4. As in DeepSeek-V3 (arXiv 2412.19437), every sequence has its own loss, so that the gradient
        does not depend on the micro-batch size.
        """
        fraction = F.one_hot(chosen, self.experts).float().mean((1, 2))  # (B, E)
        probability = scores.softmax(-1).mean(1)  # (B, E)
        return self.experts * (fraction * probability).sum(-1).mean()


def dispatch(chosen: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """The expert of every copy of a token (N · k,) → the copy's row, every row's expert (M, E; one-hot), the ends (E,).

    The rows of an expert are contiguous, and begin at a multiple of 64, or of 8 if there are few. F.grouped_mm needs
    multiples of 8 for its gradient, and oneDNN compiles a kernel for every new size. Rows without a copy are zero.
    Those after the last copy belong to the last expert. M depends on N · k alone, so that shapes never change.
    """
    block = ALIGN[0] if len(chosen) >= 4 * ALIGN[0] * experts else ALIGN[1]
    M = -(-(len(chosen) + experts * (block - 1)) // block) * block  # enough rows for any choice
    expert = F.one_hot(chosen, experts)  # (N · k, E)
    ends = (-(-expert.sum(0) // block) * block).cumsum(0)
    begins = F.pad(ends[:-1], (1, 0))
    earlier = expert.cumsum(0) - 1  # copies before this one that have the same expert
    row = (expert * (begins + earlier)).sum(1)
    ends = torch.cat((ends[:-1], ends.new_full((1,), M)))
    return row, expert.new_zeros(M, experts).index_copy(0, row, expert), ends


def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply rows (M, in), of which group e ends at ends[e], by their group's weight (E, out, in)ᵀ → (M, out).

    In bf16 on CUDA, one kernel computes all groups (`F.grouped_mm`), if the widths permit. Otherwise each group is one
    product. torch.compile does not see into this loop, which on CUDA waits for the sizes of the groups.
    """
    x = _autocast(x)
    weight = weight.to(x.dtype)
    aligned = x.size(-1) % 8 == 0 and weight.size(-2) % 8 == 0  # rows of 16 bytes
    if x.device.type == "cuda" and x.dtype == torch.bfloat16 and aligned and hasattr(F, "grouped_mm"):
        return F.grouped_mm(x, weight.transpose(-2, -1), offs=ends.to(torch.int32))
    return _grouped_linear(x.contiguous(), weight.contiguous(), ends)


def _autocast(x: Tensor) -> Tensor:
    """x in the precision in which autocast computes products, if it is on."""
    return x.to(torch.get_autocast_dtype(x.device.type)) if autocast_enabled(x.device) else x


@torch.library.custom_op("gpt2::grouped_linear", mutates_args=())
def _grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    y, sizes = x.new_empty(x.size(0), weight.size(1)), _sizes(ends)
    for x_rows, matrix, y_rows in zip(x.split(sizes), weight, y.split(sizes), strict=True):
        torch.mm(x_rows, matrix.t(), out=y_rows)
    return y


@torch.library.custom_op("gpt2::grouped_linear_backward", mutates_args=())
def _grouped_linear_backward(x: Tensor, weight: Tensor, ends: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    dx, dweight, sizes = torch.empty_like(x), torch.empty_like(weight), _sizes(ends)
    rows = zip(x.split(sizes), dx.split(sizes), dy.split(sizes), strict=True)
    for (x_rows, dx_rows, dy_rows), matrix, dmatrix in zip(rows, weight, dweight, strict=True):
        torch.mm(dy_rows, matrix, out=dx_rows)
        torch.mm(dy_rows.t(), x_rows, out=dmatrix)
    return dx, dweight


def _sizes(ends: Tensor) -> list[int]:
    return ends.diff(prepend=ends.new_zeros(1)).tolist()


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_grouped_linear_backward(*ctx.saved_tensors, dy.contiguous()), None


# the shapes of the results, and the gradient, for torch.compile and autograd
_grouped_linear.register_fake(lambda x, weight, ends: x.new_empty(x.size(0), weight.size(1)))
_grouped_linear_backward.register_fake(lambda x, weight, ends, dy: (torch.empty_like(x), torch.empty_like(weight)))
_grouped_linear.register_autograd(_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))
