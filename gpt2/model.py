"""GPT-2 as published, and nothing else.

Holds:    the network, its initialisation, its key-value cache and its loss.
Built in: notebooks 02 (attention), 03 (the model), 04 (the cache), 05 (loss and initialisation).
Imports:  torch alone (and gpt2.published inside the two functions that read and write files).

Parameter names are those of Hugging Face's `GPT2LMHeadModel`, so the keys of a checkpoint read alike.
Precision, compilation and parallelism wrap this model from outside; see `gpt2/distributed.py`. Four small functions
(`linear`, `gelu`, `attend`, `linear_cross_entropy`) choose between equal formulas by the device: no wrapper can.

Shapes in comments: B sequences, T positions, C = n_embd channels, H heads of D = C / H channels, V tokens.
Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), and OpenAI's released code.
"""

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# depth → (n_embd, n_head), the family of descriptors dN; 12, 24, 36 and 48 are the four published sizes
DEPTHS = {
    6: (384, 6),
    12: (768, 12),
    24: (1024, 16),
    36: (1280, 20),
    48: (1600, 25),
    60: (1920, 30),
    72: (2880, 30),
    84: (3456, 36),
}
# n_embd → (n_layer, width of a head), the family of descriptors gpt3:cN (Brown et al., arXiv 2005.14165, table 2.1)
GPT3_WIDTHS = {
    384: (6, 64),
    768: (12, 64),
    1024: (24, 64),
    1536: (24, 96),
    2048: (24, 128),
    2560: (32, 80),
    4096: (32, 128),
    12288: (96, 128),
}
CHUNK_LOGITS = 2**28  # 1 GiB of fp32 logits
# the product that torch.compile itself uses on a CPU; None where torch is built without oneDNN
ONEDNN_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None

PUBLISHED = {"gpt2": "d12", "gpt2-medium": "d24", "gpt2-large": "d36", "gpt2-xl": "d48"}


@dataclass(frozen=True)
class GPTConfig:
    """The size of a GPT-2. `vocab_size` is the tokenizer's; the model pads it inside."""

    block_size: int = 1024  # the longest sequence: rows of the position table
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
        """Rows of the token table: `vocab_size` rounded up to 64, which matrix units like (50,257 → 50,304)."""
        return -(-self.vocab_size // 64) * 64

    @classmethod
    def from_descriptor(cls, descriptor: str, **overrides: int) -> "GPTConfig":
        """`d12`, `gpt2-xl` or `gpt3:c768` → that configuration with `overrides` applied.

        Raises ValueError for an unknown name. GPT-3's models read 2048 positions.
        """
        known = {f"d{depth}": cls(n_layer=depth, n_embd=C, n_head=heads) for depth, (C, heads) in DEPTHS.items()}
        known |= {name: known[depth] for name, depth in PUBLISHED.items()}
        known |= {
            f"gpt3:c{C}": cls(block_size=2048, n_layer=depth, n_embd=C, n_head=C // size)
            for C, (depth, size) in GPT3_WIDTHS.items()
        }
        if descriptor not in known:
            raise ValueError(f"unknown model {descriptor!r}; known: {', '.join(known)}")
        return replace(known[descriptor], **overrides)


class KVCache:
    """Keys and values of the positions seen so far, for one batch of sequences of equal length.

    `k` and `v` hold one tensor of `shape` (B, H, length, D) a layer; `position` counts the filled positions.
    """

    def __init__(self, layers: int, shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype):
        self.k = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.v = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.length = shape[2]
        self.position = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new (B, H, T, D) keys and values of one layer; return all up to and including them."""
        end = self.position + k.size(2)
        self.k[layer][:, :, self.position : end] = k
        self.v[layer][:, :, self.position : end] = v
        return self.k[layer][:, :, :end], self.v[layer][:, :, :end]

    def select(self, rows: Tensor, length: int) -> "KVCache":
        """A copy of the sequences `rows` (N,), as often as they are named, with room for `length` positions in all."""
        chosen = copy.copy(self)
        chosen.length, room = length, (0, 0, 0, length - self.position)
        chosen.k = [F.pad(k[rows, :, : self.position], room) for k in self.k]
        chosen.v = [F.pad(v[rows, :, : self.position], room) for v in self.v]
        return chosen


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (…, in) @ weight (out, in)ᵀ + bias (out,), as `F.linear`; through oneDNN for fp32 without gradients on a CPU.

    There `F.linear` calls MKL, which leaves all cores but one idle while it multiplies a single row, and sampling is
    nothing else: two cores took 35 ms for one token's products at 124M, and 18 ms this way.
    """
    plain = torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype != torch.float32
    if plain or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or ONEDNN_LINEAR is None:
        return F.linear(x, weight, bias)
    return ONEDNN_LINEAR(x, weight, bias, "none", [], "")


def gelu(x: Tensor) -> Tensor:
    """The tanh form of GELU, as published: x/2 · (1 + tanh(z)) with z = sqrt(2/π) · (x + 0.044715 x³).

    It is written as x · sigmoid(2z), the same function, where a compiler makes CPU code of it: 2.5 × faster there.
    """
    if x.device.type == "cpu" and torch.compiler.is_compiling():
        return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
    return F.gelu(x, approximate="tanh")


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Scaled dot-product attention: queries (B, H, T, D), keys and values (B, H, S, D) → (B, H, T, D).

    `mask` (T, S) is True where a query may look; `causal` stands for the lower triangle. Fused by torch, but for
    short sequences trained on a CPU, where the plain formula took half the time at T 256 and an eighth at T 64.
    """
    T, S = q.size(2), k.size(2)
    if q.device.type != "cpu" or not q.requires_grad or T > 512:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    if causal:
        mask = torch.ones(T, S, dtype=torch.bool).tril()
    scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)  # (B, H, T, S)
    if mask is not None:
        scores = scores + torch.zeros(T, S, dtype=q.dtype).masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ v


class Linear(nn.Linear):
    """`nn.Linear`, its product computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        return linear(x, self.weight, self.bias)


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
        if cache is None or cache.position == 0:
            mask, causal = None, True
        else:  # T new positions after `position` old ones: the mask's diagonal is shifted; one position sees all
            mask, causal = None, False
            if T > 1:
                mask = torch.ones(T, cache.position + T, dtype=torch.bool, device=x.device).tril(cache.position)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        y = attend(q, k, v, mask, causal)  # (B, H, T, D)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """Two linear maps around the tanh form of GELU, four times as wide inside."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        return self.c_proj(gelu(self.c_fc(x)))


class Block(nn.Module):
    """One layer: attention, then MLP, each reading a normalised copy of the residual stream and adding to it."""

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
    """The parts of the network under their published names: token and position tables, blocks, last norm."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)


class GPT(nn.Module):
    """The GPT-2 language model. The output head is the token table again, so it has no parameters of its own."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.init_weights()

    def init_weights(self) -> None:
        """Normal(0, 0.02), biases zero; projections into the residual stream smaller by sqrt(2 · n_layer).

        2 · n_layer of them add up in the residual stream, so this keeps its variance near one layer's.
        """
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.dim() >= 2:
                residual = name.endswith("c_proj.weight")
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * self.config.n_layer) if residual else 0.02)

    def num_params(self) -> int:
        """Parameters of the published model: the padding rows of the token table are not counted."""
        padding = (self.config.padded_vocab_size - self.config.vocab_size) * self.config.n_embd
        return sum(p.numel() for p in self.parameters()) - padding

    def new_cache(self, batch: int, length: int | None = None) -> KVCache:
        """An empty key-value cache for `batch` sequences of up to `length` (default: block_size) positions."""
        config, weight = self.config, self.transformer.wte.weight
        shape = (batch, config.n_head, length or config.block_size, config.n_embd // config.n_head)
        return KVCache(config.n_layer, shape, weight.device, weight.dtype)

    def hidden(self, idx: Tensor, cache: KVCache | None = None) -> Tensor:
        """Tokens (B, T) → final, normalised residual stream (B, T, C). With a cache, `idx` continues it."""
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
        return linear(x, self.transformer.wte.weight)[..., : self.config.vocab_size]

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, cache: KVCache | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Tokens (B, T) → (logits (B, T, V), None); with targets (B, T) → (None, mean loss in nats per token).

        The loss does not need all logits at once (see `linear_cross_entropy`), so there are none to return beside it.
        Targets of -100 are left out of the mean. ValueError if T is more than block_size.
        """
        x = self.hidden(idx, cache)
        if targets is None:
            return self.logits(x), None
        weight = self.transformer.wte.weight
        return None, linear_cross_entropy(x.flatten(0, 1), weight, targets.flatten(), self.config.vocab_size)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "GPT":
        """A model from a folder in the Hugging Face layout, or from the hub by name (`gpt2`, `gpt2-xl`, …).

        Raises FileNotFoundError where neither can be had, ValueError where the folder holds another architecture.
        """
        from gpt2.published import read_folder

        sizes, tensors = read_folder(name)
        with torch.device("meta"):
            model = cls(GPTConfig(**sizes))
        table = "transformer.wte.weight"
        padding = model.config.padded_vocab_size - tensors[table].size(0)
        tensors[table] = F.pad(tensors[table], (0, 0, 0, padding))
        model.load_state_dict(tensors, assign=True)
        return model.requires_grad_(True)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `model.safetensors` and `config.json`; `transformers` opens the folder unchanged. Raises OSError."""
        from gpt2.published import write_folder

        state = self.state_dict()
        state["transformer.wte.weight"] = state["transformer.wte.weight"][: self.config.vocab_size]
        write_folder(folder, vars(self.config), state)


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """Mean cross-entropy in nats of targets (N,) under the logits x (N, C) @ weight (rows, C)ᵀ.

    Rows past `vocab_size` are padding and get no probability. Targets of -100 do not count.
    Where the logits are small, or a compiler fuses the plain formula, that is what runs. Otherwise only a chunk of
    them exists at a time: by `F.linear_cross_entropy` (torch 2.13) for fp32 on CUDA, else by `chunked_cross_entropy`.
    Torch's function is not used in bf16, where it returns the loss rounded to bf16 (10.81 for 10.97), nor on CPU,
    where it took 3.5 × the plain formula's time at 1,024 × 50,304 logits (torch 2.13).
    """
    if x.size(0) * weight.size(0) <= CHUNK_LOGITS or torch.compiler.is_compiling():
        return F.cross_entropy(F.linear(x, weight)[:, :vocab_size].float(), targets)
    autocast = torch.is_autocast_enabled(x.device.type)
    if hasattr(F, "linear_cross_entropy") and x.device.type == "cuda" and x.dtype == torch.float32 and not autocast:
        padding = torch.zeros(weight.size(0), device=x.device)
        padding[vocab_size:] = float("-inf")
        options = nn.LinearCrossEntropyOptions()
        return F.linear_cross_entropy(x, weight, targets, linear_bias=padding, options=options)
    return chunked_cross_entropy(x, weight, targets, vocab_size)


def chunked_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, chunk_logits: int = CHUNK_LOGITS
) -> Tensor:
    """As `linear_cross_entropy`, holding at most `chunk_logits` logits at a time: backward computes them again."""

    def loss_sum(x: Tensor, targets: Tensor) -> Tensor:
        logits = F.linear(x, weight)[:, :vocab_size].float()
        return F.cross_entropy(logits, targets, reduction="sum")

    rows = max(1, chunk_logits // weight.size(0))
    chunks = zip(x.split(rows), targets.split(rows), strict=True)
    total = torch.stack(
        [checkpoint(loss_sum, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    ).sum()
    return total / (targets != -100).sum()


if __name__ == "__main__":  # python -m gpt2.model
    from gpt2.smoke_test import run_smoke_test

    run_smoke_test()
