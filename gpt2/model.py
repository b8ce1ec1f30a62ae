"""GPT-2 as published: the network, its initialisation, its loss, and its key-value cache.

Parameters have the names of Hugging Face's `GPT2LMHeadModel`, whose matrices are stored transposed. Precision,
compilation and parallelism wrap this model from outside.

Shapes in comments: B sequences, T positions, C = n_embd channels, H heads of D = C / H channels, V tokens.
Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), and OpenAI's released code.
Built in notebooks 02 (attention), 03 (the model), 04 (the cache) and 05 (loss and initialisation).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpt2 import kernels


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT-2; the defaults are those of the smallest, 124M. Raises ValueError for impossible ones."""

    block_size: int = 1024  # the longest sequence: rows of the position embedding
    vocab_size: int = 50257
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}")

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the token embedding: `vocab_size` rounded up to 64 (50,257 → 50,304), which multiplies faster."""
        return -(-self.vocab_size // 64) * 64


class KVCache:
    """The keys and values of the positions seen so far, for a batch of sequences of equal length.

    `k` and `v` hold one tensor of `shape` (B, H, length, D) per layer; the first `position` positions are filled.
    """

    def __init__(self, layers: int, shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype):
        self.k = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.v = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.position = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new (B, H, T, D) keys and values of one layer; return all up to and including them."""
        end = self.position + k.size(2)
        self.k[layer][:, :, self.position : end] = k
        self.v[layer][:, :, self.position : end] = v
        return self.k[layer][:, :, :end], self.v[layer][:, :, :end]


class Linear(nn.Linear):
    """`nn.Linear`, with the product computed by `kernels.linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return kernels.linear(x, self.weight, self.bias)


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which position t sees positions 0 … t."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)  # q, k and v of all heads in one product
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        B, T, C = x.shape
        heads = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, H, S, D), S = cached + new positions
        y = kernels.attend(q, k, v)  # (B, H, T, D)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """Two linear layers, four times as wide inside, with the tanh form of GELU between them."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        return self.second_half(self.c_fc(x))

    def second_half(self, h: Tensor) -> Tensor:
        """(B, T, 4 C) → (B, T, C), from the GELU on: what `--system.recompute gelu` computes again in backward."""
        return self.c_proj(kernels.gelu(h))


class Block(nn.Module):
    """One layer: attention, then MLP. Each reads a normalised copy of the residual stream and adds its output to it."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """The parts of the network under their published names: token and position embeddings, blocks, last LayerNorm."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)


class GPT(nn.Module):
    """The GPT-2 language model. The output head is the token embedding again, so it has no parameters of its own."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.init_weights()

    def init_weights(self) -> None:
        """Normal(0, 0.02) weights and zero biases; projections into the residual stream smaller by sqrt(2 · n_layer).

        2 · n_layer projections are added to the residual stream, so this keeps its variance near that of one.
        """
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.dim() >= 2:
                residual = name.endswith("c_proj.weight")
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02)

    def num_params(self) -> int:
        """Parameters of the published model: the padding rows of the token embedding do not count."""
        padding = (self.config.padded_vocab_size - self.config.vocab_size) * self.config.n_embd
        return sum(p.numel() for p in self.parameters()) - padding

    def new_cache(self, batch: int, length: int | None = None) -> KVCache:
        """An empty key-value cache for `batch` sequences of up to `length` (default: block_size) positions."""
        config, weight = self.config, self.transformer.wte.weight
        shape = (batch, config.n_head, length or config.block_size, config.n_embd // config.n_head)
        return KVCache(config.n_layer, shape, weight.device, weight.dtype)

    def forward(self, idx: Tensor, targets: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Tokens (B, T) → logits (B, T, V); with targets (B, T) → the mean loss in nats per token.

        Targets of -100 do not count. With a cache, `idx` continues it. Raises ValueError if T exceeds block_size.
        """
        x = self.hidden(idx, cache)
        return self.logits(x) if targets is None else self.loss(x, targets)

    def hidden(self, idx: Tensor, cache: KVCache | None = None) -> Tensor:
        """Tokens (B, T) → the final residual stream (B, T, C), normalised."""
        start = 0 if cache is None else cache.position
        end = start + idx.size(1)
        if end > self.config.block_size:
            raise ValueError(f"{end} positions are more than block_size {self.config.block_size}")
        positions = torch.arange(start, end, device=idx.device)
        x = self.transformer.wte(idx) + self.transformer.wpe(positions)  # (B, T, C) + (T, C)
        for block in self.transformer.h:
            x = block(x, cache)
        if cache is not None:
            cache.position = end
        return self.transformer.ln_f(x)

    def logits(self, x: Tensor) -> Tensor:
        """Final residual stream (…, C) → logits (…, V), without the padding rows."""
        return kernels.linear(x, self.transformer.wte.weight)[..., : self.config.vocab_size]

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        """Final residual stream (B, T, C) and targets (B, T) → the mean loss in nats per token."""
        weight = self.transformer.wte.weight
        return kernels.linear_cross_entropy(x.flatten(0, 1), weight, targets.flatten(), self.config.vocab_size)
