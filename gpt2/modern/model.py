"""GPT-2's skeleton with exchangeable parts: every choice of `gpt2.modern.parts.Parts`, alone or together.

With GPT-2's choice of every part it computes exactly what `gpt2.model.GPT` does, under the same parameter names.
Shapes in comments: as in `gpt2.model`, with H query heads, K heads of keys and values, and D = the width of a head.
Built in notebooks 15 and 16.
"""

import contextlib
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask

from gpt2.kernels import linear, linear_cross_entropy, no_autocast
from gpt2.model import GPTConfig, KVCache, Linear
from gpt2.modern.attention import attend, block_masks, rotary_table, rotate
from gpt2.modern.experts import Experts, activate, is_gated, unit_rows
from gpt2.modern.parts import Parts

Table = tuple[Tensor, Tensor]  # cosine and sine of every rotary angle
EPS = 1e-5  # of an RMSNorm with a weight, as in LLaMA and gpt-oss


@dataclass(frozen=True)
class ModernConfig(GPTConfig):
    """The sizes of a GPT-2, and the choice of every part. Raises ValueError if they do not go together."""

    parts: Parts = field(default_factory=Parts)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "parts" and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.parts.head_size is None and self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}; give a head_size")
        self.parts.check(self.n_head, self.n_embd)

    @property
    def head_size(self) -> int:
        """Width D of a head."""
        return self.parts.head_size or self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """Number K of heads of keys and values."""
        return self.parts.kv_heads or self.n_head

    @property
    def mlp_width(self) -> int:
        """Width inside the MLP, or inside one expert."""
        return self.parts.mlp_width or 4 * self.n_embd

    def window(self, layer: int) -> int | None:
        """How many positions this layer sees, the current one included; None: all up to it."""
        window = self.parts.windows[layer % len(self.parts.windows)]
        return None if window == "full" else window


class NormalisedLinear(Linear):
    """A linear layer whose rows have length 1 in use: an input of unit magnitude gives an output of unit magnitude.

    Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (arXiv 2312.02696), eq. 47.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return linear(x, unit_rows(self.weight), self.bias)


def make_linear(parts: Parts, inside: int, outside: int) -> Linear:
    """The kind of linear layer that `parts` asks for."""
    return (NormalisedLinear if parts.normalised_weights else Linear)(inside, outside, bias=parts.bias)


def make_norm(config: ModernConfig) -> nn.Module:
    """The norm over the residual stream that `config` asks for."""
    if config.parts.norm == "layer":
        return nn.LayerNorm(config.n_embd)
    if config.parts.norm == "rms":
        return nn.RMSNorm(config.n_embd, eps=EPS)
    return nn.RMSNorm(config.n_embd, elementwise_affine=False)  # eps as in `rms_norm`


def rms_norm(x: Tensor) -> Tensor:
    """x (…, C) scaled to mean square 1 over C. PyTorch adds 1.2e-7 to it; older versions added 7.8e-3 to bf16."""
    return F.rms_norm(x, (x.size(-1),))


class Attention(nn.Module):
    """Causal self-attention, with the choices of shared key and value heads, sliding windows, sinks and QK-norm."""

    def __init__(self, config: ModernConfig, layer: int):
        super().__init__()
        parts = config.parts
        self.layer, self.window = layer, config.window(layer)
        self.heads, self.head_size = (config.n_head, config.kv_heads, config.kv_heads), config.head_size  # of q, k, v
        inside = config.n_head * config.head_size
        self.c_attn = make_linear(parts, config.n_embd, sum(self.heads) * config.head_size)
        self.c_proj = make_linear(parts, inside, config.n_embd)
        self.sinks = nn.Parameter(torch.zeros(config.n_head)) if parts.sinks else None
        self.qk_norm = parts.qk_norm
        self.unit_output = parts.residual == "magnitude"  # a mean of values has a smaller magnitude than a value

    def forward(
        self, x: Tensor, table: Table | None = None, mask: BlockMask | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """(B, T, C) → (B, T, C). `table` is the rotary table of these positions, `mask` selects FlexAttention."""
        B, T, _ = x.shape
        qkv = self.c_attn(x).view(B, T, -1, self.head_size)  # (B, T, H + 2 K, D)
        q, k, v = qkv.split(self.heads, dim=2)
        if self.qk_norm:
            q, k = rms_norm(q), rms_norm(k)
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H or K, T, D)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        y = attend(q, k, v, self.window, self.sinks, mask)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, -1)
        return self.c_proj(rms_norm(y) if self.unit_output else y)


class MLP(nn.Module):
    """Two linear layers with an activation function between them."""

    def __init__(self, config: ModernConfig):
        super().__init__()
        self.kind, width = config.parts.mlp, config.mlp_width
        self.c_fc = make_linear(config.parts, config.n_embd, width * (2 if is_gated(self.kind) else 1))
        self.c_proj = make_linear(config.parts, width, config.n_embd)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, C) → (B, T, C), and a load-balancing loss of 0, to be interchangeable with `Experts`."""
        return self.second_half(self.c_fc(x)), x.new_zeros(())

    def second_half(self, h: Tensor) -> Tensor:
        """What `--system.recompute gelu` computes again in backward, whatever the activation function."""
        return self.c_proj(activate(self.kind, h))


class Block(nn.Module):
    """One layer: attention, then MLP or experts. Each reads a normalised copy of the residual stream."""

    def __init__(self, config: ModernConfig, layer: int):
        super().__init__()
        parts = config.parts
        self.ln_1 = make_norm(config)
        self.attn = Attention(config, layer)
        self.ln_2 = make_norm(config)
        self.mlp = Experts(config.n_embd, config.mlp_width, parts) if parts.experts else MLP(config)
        self.mix = parts.residual_mix if parts.residual == "magnitude" else None

    def forward(
        self, x: Tensor, table: Table | None = None, mask: BlockMask | None = None, cache: KVCache | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, T, C) → (B, T, C), and the load-balancing loss."""
        if self.mix is not None:
            x = rms_norm(x)
        x = self.add(x, self.attn(self.ln_1(x), table, mask, cache))
        y, balance = self.mlp(self.ln_2(x))
        return self.add(x, y), balance

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + y, or their weighted sum, which has unit magnitude if x and y have (arXiv 2312.02696, eq. 88)."""
        if self.mix is None:
            return x + y
        t = self.mix
        return ((1 - t) * x + t * y) / math.sqrt((1 - t) ** 2 + t**2)


class Transformer(nn.Module):
    """The parts of the network under GPT-2's names; the position embedding exists only if positions are learned."""

    def __init__(self, config: ModernConfig):
        super().__init__()
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        if config.parts.position == "learned":
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = make_norm(config)


class Modern(nn.Module):
    """A decoder of chosen parts, with the interface of `gpt2.model.GPT`."""

    def __init__(self, config: ModernConfig):
        super().__init__()
        self.config, self.flex = config, True  # whether FlexAttention may be used
        self.transformer = Transformer(config)
        self.lm_head = None if config.parts.tied else Linear(config.n_embd, config.padded_vocab_size, bias=False)
        self.gain = nn.Parameter(torch.zeros(1)) if config.parts.gain else None
        self.init_weights()

    def init_weights(self) -> None:
        """The initialisation that `parts.init` names. Biases, sinks and gain are zero, weights of norms one."""
        kind, residual_std = self.config.parts.init, 0.02 / math.sqrt(2 * self.config.n_layer)
        residual = "mlp.c_proj.weight" if kind == "languini" else "c_proj.weight"
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.dim() < 2:
                continue
            elif kind != "zero":
                nn.init.normal_(p, std=residual_std if name.endswith(residual) else 0.02)
            elif name.endswith(("c_proj.weight", "lm_head.weight")):
                nn.init.zeros_(p)
            elif "wte" in name or "wpe" in name:  # as in modded-nanogpt, which keeps PyTorch's defaults
                nn.init.normal_(p)
            else:
                nn.init.uniform_(p, -1 / math.sqrt(p.size(-1)), 1 / math.sqrt(p.size(-1)))
        if self.config.parts.normalised_weights:
            normalise_rows(self)

    def num_params(self) -> int:
        """Parameters, without the padding rows of the token embedding and of an untied head."""
        padding = (self.config.padded_vocab_size - self.config.vocab_size) * self.config.n_embd
        return sum(p.numel() for p in self.parameters()) - padding * (1 if self.config.parts.tied else 2)

    def new_cache(self, batch: int, length: int | None = None) -> KVCache:
        """An empty key-value cache for `batch` sequences of up to `length` (default: block_size) positions."""
        config, weight = self.config, self.transformer.wte.weight
        shape = (batch, config.kv_heads, length or config.block_size, config.head_size)
        return KVCache(config.n_layer, shape, weight.device, weight.dtype)

    def forward(self, idx: Tensor, targets: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """As `GPT.forward`. The load-balancing loss adds nothing to the loss, but its gradient to the gradient."""
        x, balance = self.hidden_and_balance(idx, cache)
        if targets is None:
            return self.logits(x)
        loss = self.loss(x, targets)
        if self.config.parts.experts:  # a term that is zero, but whose gradient is not
            loss = loss + self.config.parts.balance * (balance - balance.detach())
        return loss

    def hidden(self, idx: Tensor, cache: KVCache | None = None) -> Tensor:
        """Tokens (B, T) → the final residual stream (B, T, C), normalised. With a cache, `idx` continues it."""
        return self.hidden_and_balance(idx, cache)[0]

    def hidden_and_balance(self, idx: Tensor, cache: KVCache | None = None) -> tuple[Tensor, Tensor]:
        """`hidden`, and the load-balancing loss, averaged over layers."""
        config, parts = self.config, self.config.parts
        start = 0 if cache is None else cache.position
        end = start + idx.size(1)
        if end > config.block_size:
            raise ValueError(f"{end} positions are more than block_size {config.block_size}")
        positions = torch.arange(start, end, device=idx.device)
        x = self.transformer.wte(idx)  # (B, T, C)
        if parts.normalised_weights:
            x = rms_norm(x)
        if parts.scale_embedding:
            x = x * math.sqrt(config.n_embd)
        if parts.position == "learned":
            x = x + self.transformer.wpe(positions)
        if parts.norm_embedding:
            x = rms_norm(x)
        table = rotary_table(parts, config.head_size, positions) if parts.position == "rotary" else None
        windows = [config.window(layer) for layer in range(config.n_layer)]
        masks = block_masks(set(windows), parts.sinks, end - start, end, idx.device) if self.flex else {}
        balance = x.new_zeros(())
        for window, block in zip(windows, self.transformer.h, strict=True):
            x, layer_balance = block(x, table, masks.get(window), cache)
            balance = balance + layer_balance / config.n_layer
        if cache is not None:
            cache.position = end
        return self.transformer.ln_f(x), balance

    def logits(self, x: Tensor) -> Tensor:
        """Final residual stream (…, C) → logits (…, V), without the padding rows."""
        return self.output_head(x)

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        """Final residual stream (B, T, C) and targets (B, T) → the mean loss in nats per token."""
        return self.output_head(x, targets)

    def output_head(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        """`logits`; with targets (…), their mean cross-entropy instead."""
        parts, vocab_size = self.config.parts, self.config.vocab_size
        weight = self.transformer.wte.weight if self.lm_head is None else self.lm_head.weight
        if parts.normalised_weights:
            weight = unit_rows(weight)
        if self.gain is not None:
            x = x * self.gain
        with no_autocast(x.device) if parts.fp32_logits else contextlib.nullcontext():
            if parts.fp32_logits:
                x, weight = x.float(), weight.float()
            if targets is None:
                return linear(x, weight)[..., :vocab_size]
            return linear_cross_entropy(x.flatten(0, -2), weight, targets.flatten(), vocab_size)


@torch.no_grad()
def normalise_rows(model: nn.Module) -> None:
    """Give every row of every matrix the mean square 1, as at initialisation and after every step (EDM2)."""
    for p in model.parameters():
        if p.dim() >= 2:
            mean_square = p.square().mean(-1, keepdim=True)
            p.mul_(mean_square.clamp(min=1e-12).rsqrt())  # padding rows of an embedding may be zero, and stay zero
