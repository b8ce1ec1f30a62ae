"""What a training step takes of a GPU's memory, and sends to the others, worked out beforehand.

Built in notebook 07.

Memory is what PyTorch's allocator holds at the peak of a step: in tests it lies within a few percent of what was
measured on a CPU for GPT-2, and within a quarter for other parts. Activations are those of eager execution; a compiled
model kept up to 5 % more or less.
"""

from dataclasses import dataclass, replace

import torch

from gpt2.kernels import CHUNK_LOGITS
from gpt2.model import GPTConfig
from gpt2.modern.attention import FLEX_FROM
from gpt2.modern.experts import is_gated
from gpt2.modern.model import ModernConfig
from gpt2.planning.flops import matrices, parameters, shapes, with_parts

VALUE_BYTES = {"bf16": 2, "fp16": 2, "tf32": 4, "fp32": 4}  # of a factor in a matrix product
WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "bf16-master": 2}
RECOMPUTE = ("none", "mlp", "block")
# values that the non-linearity of an MLP keeps, its input and result included, in widths of the MLP
KEPT_WIDTHS = {"gelu": 2, "relu2": 2, "mp-silu": 2, "swiglu": 4, "swiglu-clamped": 7}


@dataclass(frozen=True)
class Setup:
    """How a model is trained, as far as memory and communication depend on it; see `gpt2.training.distributed`.

    `micro_steps`: micro-batches of one process in an optimiser step (gradient accumulation).
    `fused`: attention that doesn't keep T × T maps; see `is_fused`. `muon`: the optimiser of the blocks' matrices.
    """

    gpus: int = 1
    zero: int = 0
    recompute: str = "none"
    micro_batch: int = 1
    micro_steps: int = 1
    precision: str = "bf16"
    compiled: bool = False
    fused: bool = True
    weights: str = "fp32"
    muon: bool = False

    @property
    def stage(self) -> int:
        """The ZeRO stage in effect: one process has nobody to divide with."""
        return self.zero if self.gpus > 1 else 0


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the peak of a training step, by part."""

    weights: float  # this process's share, and what is gathered of the others'
    gradients: float  # as weights are stored
    optimizer: float  # Adam's two averages, Muon's one, and master weights
    copies: float  # of the matrices in 16 bits: autocast makes them in forward, autograd keeps them for backward
    activations: float  # what forward keeps for backward
    working: float  # the largest thing that exists for a moment: logits with their gradient, or one layer's backward
    buffers: float  # gradients and weights on their way between processes

    @property
    def total(self) -> float:
        """The sum of the parts."""
        return sum(vars(self).values())


def _layer_bytes(config: ModernConfig, setup: Setup) -> tuple[int, int, int]:
    """What one layer keeps for backward, what of it is recomputed, and what its backward needs beside, a token."""
    C, a, parts = config.n_embd, VALUE_BYTES[setup.precision], config.parts
    stream = WEIGHT_BYTES[setup.weights]  # bytes of a value of the residual stream
    # the residual stream into the norm with its mean and deviation; the norm's output
    norm = stream * C + 8
    chosen = parts.experts_per_token if parts.experts else 1
    width = config.mlp_width * chosen
    # gates and inputs lie side by side; each expert gets a copy of the token, and its output waits for its weight
    inside = (C + KEPT_WIDTHS[parts.mlp] * width + (2 * chosen * C if parts.experts else 0)) * a
    attention, maps = norm + _attention_bytes(config, setup), _map_bytes(config, setup)
    # gradients of the widest layer, of the residual stream, of the maps
    beside = width * (2 if is_gated(parts.mlp) else 1) * a + stream * C + 2 * maps
    if setup.recompute == "none":
        return attention + norm + inside, 0, beside
    if setup.recompute == "mlp":  # the part's input stays, in the precision of the stream
        return attention + norm + stream * C, inside, beside
    return stream * C, attention + norm + inside - stream * C, beside


def _attention_bytes(config: ModernConfig, setup: Setup) -> int:
    """What attention keeps a token, after its norm, and the stream's norm before the block."""
    C, a, parts = config.n_embd, VALUE_BYTES[setup.precision], config.parts
    queries, keys = config.n_head * config.head_size, config.kv_heads * config.head_size
    values = C + (queries + 2 * keys) + queries  # its input; q, k, v of one product; its output
    cast = 4 if a == 2 else 0  # what is normalised in fp32 is copied for it
    more = 0
    if parts.qk_norm or parts.position == "rotary":  # q and k once more
        values += queries + keys
    if parts.qk_norm:
        more += cast * (queries + keys)
    if keys < queries:  # keys and values, copied for the heads that share them
        values += 2 * queries
    if parts.residual == "magnitude":
        values += queries
        more += cast * queries + 4 * C
    sums = 4 * config.n_head if setup.fused else 0  # fused attention keeps a number a row, to compute the map again
    return values * a + more + sums + _map_bytes(config, setup)


def _map_bytes(config: ModernConfig, setup: Setup) -> int:
    """The T × T maps of all heads, a token."""
    return 0 if setup.fused else VALUE_BYTES[setup.precision] * config.n_head * config.block_size


def _end_bytes(config: ModernConfig, setup: Setup) -> int:
    """What is kept outside the layers, a token: around the last norm, the embedding's norm, the gain."""
    parts, C = config.parts, config.n_embd
    norms = 1 + parts.norm_embedding + parts.normalised_weights
    return (4 * C * (norms + parts.gain) + 8) + VALUE_BYTES[setup.precision] * C


def memory(config: GPTConfig, setup: Setup) -> Memory:
    """Bytes on one GPU at the peak of a training step of AdamW with gradient accumulation, by part.

    ZeRO stages 1 to 3 (Rajbhandari et al., arXiv 1910.02054) as FSDP2 does them. What a process holds beside its
    share: 1, 2: whole weights; 1: whole gradients; 3: the tables, and two layers (one is fetched ahead).
    """
    n, stage, w = setup.gpus, setup.stage, WEIGHT_BYTES[setup.weights]
    whole = with_parts(config)
    P, layer, tables = _sizes(config)
    tokens = setup.micro_batch * config.block_size
    gathered = {0: 0, 1: P, 2: P, 3: tables + 2 * layer}[stage]
    share = P if stage == 0 else P / n
    # DDP's buckets are the gradients, except for those accumulated before the micro-step that sends them;
    # FSDP2 sends and receives flat copies of the layer at work and of the next
    buckets = P if n > 1 and setup.micro_steps > 1 else 0
    kept, again, beside = _layer_bytes(whole, setup)
    working = max(_logits_bytes(config, setup), tokens * (again + beside))
    # a tied table's gradient as head waits for its gradient as table
    waiting = w * parameters(config)["token table"] if whole.parts.tied else 0
    return Memory(
        weights=w * (share + gathered),
        gradients=w * (P if stage == 1 else share),  # in stage 1, shares come when whole ones go
        optimizer=_state_bytes(config, setup) * share / P,
        copies=_copied_bytes(whole, setup),
        activations=tokens * (config.n_layer * kept + _end_bytes(whole, setup)),
        working=working + waiting,
        buffers=w * {0: buckets, 1: 2 * layer, 2: 4 * layer, 3: 4 * layer}[stage],
    )


def _sizes(config: GPTConfig) -> tuple[int, int, int]:
    """Parameters of the model, of one layer, and of what lies outside the layers."""
    P = sum(parameters(config).values())
    layer = sum(shape.numel() for name, shape in shapes(config).items() if name.startswith("transformer.h.0."))
    return P, layer, P - config.n_layer * layer


def _state_bytes(config: GPTConfig, setup: Setup) -> float:
    """What the optimiser keeps: Adam's two averages, or Muon's one for the matrices of the blocks; master weights."""
    P = sum(parameters(config).values())
    once = sum(n for name, n in matrices(config).items() if name.startswith("transformer.h.")) if setup.muon else 0
    owned = once / setup.gpus if setup.stage == 0 else once  # the work on a matrix is one process's
    master = 4 * P if setup.weights == "bf16-master" else 0
    return (2 if setup.weights == "bf16" else 4) * (2 * (P - once) + owned) + master


def _copied_bytes(config: ModernConfig, setup: Setup) -> int:
    """The matrices in 16 bits, where they are stored in 32; or, in the precision of products, with normalised rows."""
    a = VALUE_BYTES[setup.precision]
    router = parameters(config).get("router", 0)  # stays in fp32
    copied = config.parts.normalised_weights or a < WEIGHT_BYTES[setup.weights]
    return a * (sum(matrices(config).values()) - router) if copied else 0


def _logits_bytes(config: GPTConfig, setup: Setup) -> int:
    """Logits and their gradient: three times in fp32 for at most CHUNK_LOGITS, or two times where all is compiled."""
    tokens = setup.micro_batch * config.block_size
    if setup.compiled and setup.stage == 0:  # FSDP2 compiles the layers only
        return 2 * VALUE_BYTES[setup.precision] * tokens * config.padded_vocab_size
    return 12 * config.vocab_size * min(tokens, max(1, CHUNK_LOGITS // config.padded_vocab_size))


def is_fused(config: GPTConfig, device: torch.device, flex: bool = True) -> bool:
    """Whether attention keeps no T × T maps there: on a GPU, with sinks where it has FlexAttention; on a CPU, of long
    sequences without sinks."""
    if with_parts(config).parts.sinks:
        return flex and device.type == "cuda" and config.block_size >= FLEX_FROM
    return device.type != "cpu" or config.block_size > 512


def activation_bytes(config: GPTConfig, recompute: str = "none") -> int:
    """Bytes that one sequence takes in forward and backward, in fp32, eager, on a CPU: an upper estimate."""
    setup = Setup(recompute=recompute, precision="fp32", fused=is_fused(config, torch.device("cpu")))
    parts = memory(config, setup)
    return int(parts.activations + parts.working)


def largest_micro_batch(config: GPTConfig, setup: Setup, sequences: int, budget: float) -> int:
    """The largest power of two that divides a process's `sequences` a step and takes at most `budget` bytes, or 0."""
    sizes = [2**i for i in range(sequences.bit_length()) if sequences % 2**i == 0]
    setups = {size: replace(setup, micro_batch=size, micro_steps=sequences // size) for size in sizes}
    return max((size for size in sizes if memory(config, setups[size]).total <= budget), default=0)


def bytes_sent(config: GPTConfig, setup: Setup) -> float:
    """Bytes that one process sends (and receives) in an optimiser step, in rings, all as weights are stored.

    A gather, or the sum of which each gets its share, moves (n − 1)/n of the whole; an all-reduce is both. 0: one
    all-reduce of gradients. 1: one sum, one gather. 2: a sum every micro-step, one gather. 3: a sum every micro-step,
    and a gather for forward and another for backward, the tables' staying over both.
    """
    (P, _, tables), G = _sizes(config), setup.micro_steps
    whole = {0: 2 * P, 1: 2 * P, 2: P * (1 + G), 3: (3 * P - tables) * G}[setup.stage]
    return WEIGHT_BYTES[setup.weights] * whole * (setup.gpus - 1) / setup.gpus


SPARE_MEMORY = 0.1  # of a device, left free by `choose_micro_batch`
