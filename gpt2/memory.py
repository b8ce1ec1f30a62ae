"""What a training step takes of a GPU's memory, and sends to the others, worked out beforehand.

Holds:    `Setup`, `memory`, `activation_bytes`, `largest_micro_batch`, `bytes_sent`.
Built in: notebook 07.
Imports:  gpt2.flops, gpt2.model (for its sizes).

Memory is what PyTorch's allocator holds at the peak of a step: in tests it lies within a few percent of what was
measured on a CPU. Activations are those of eager execution; a compiled model kept up to 5 % more or less.
"""

from dataclasses import dataclass, replace

from gpt2.flops import matrix_parameters, parameters
from gpt2.model import CHUNK_LOGITS, GPTConfig

VALUE_BYTES = {"bf16": 2, "fp16": 2, "tf32": 4, "fp32": 4}  # of a factor in a matrix product
RECOMPUTE = ("none", "mlp", "block")


@dataclass(frozen=True)
class Setup:
    """How a model is trained, as far as memory and communication depend on it; see `gpt2.distributed`.

    `micro_steps`: micro-batches of one process in an optimiser step (gradient accumulation).
    `fused`: attention that doesn't keep T × T maps, as on every GPU and, for T > 512, on a CPU.
    """

    gpus: int = 1
    zero: int = 0
    recompute: str = "none"
    micro_batch: int = 1
    micro_steps: int = 1
    precision: str = "bf16"
    compiled: bool = False
    fused: bool = True

    @property
    def stage(self) -> int:
        """The ZeRO stage in effect: one process has nobody to divide with."""
        return self.zero if self.gpus > 1 else 0


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the peak of a training step, by part."""

    weights: float  # fp32: this process's share, and what is gathered of the others'
    gradients: float  # fp32
    optimizer: float  # Adam's two averages, fp32
    copies: float  # of the matrices in 16 bits: autocast makes them in forward, autograd keeps them for backward
    activations: float  # what forward keeps for backward
    working: float  # the largest thing that exists for a moment: logits with their gradient, or one layer's backward
    buffers: float  # gradients and weights on their way between processes

    @property
    def total(self) -> float:
        """The sum of the parts."""
        return sum(vars(self).values())


def _layer_bytes(config: GPTConfig, setup: Setup) -> tuple[int, int, int]:
    """What one layer keeps for backward, what of it is recomputed, and what its backward needs beside, a token."""
    C, a = config.n_embd, VALUE_BYTES[setup.precision]
    maps = 0 if setup.fused else a * config.n_head * config.block_size
    sums = 4 * config.n_head if setup.fused else 0  # fused attention keeps a number a row, to compute the map again
    # the fp32 residual stream into the norm with its mean and deviation; norm's output, q, k, v, attention's output
    attention = (4 * C + 8) + (C + 3 * C + C) * a + maps + sums
    # the same into the second norm; the norm's output, the wide layer before and after GELU
    mlp, inside = 4 * C + 8, (C + 4 * C + 4 * C) * a
    beside = 4 * C * a + 4 * C + 2 * maps  # gradients of the widest layer, of the residual stream, of the maps
    if setup.recompute == "none":
        return attention + mlp + inside, 0, beside
    if setup.recompute == "mlp":  # the part's input, in fp32, stays
        return attention + mlp + 4 * C, inside, beside
    return 4 * C, attention + mlp + inside - 4 * C, beside


def memory(config: GPTConfig, setup: Setup) -> Memory:
    """Bytes on one GPU at the peak of a training step of AdamW with gradient accumulation, by part.

    ZeRO stages 1 to 3 (Rajbhandari et al., arXiv 1910.02054) as FSDP2 does them. What a process holds beside its
    share: 1, 2: whole weights; 1: whole gradients; 3: the tables, and two layers (one is fetched ahead).
    """
    n, stage, a = setup.gpus, setup.stage, VALUE_BYTES[setup.precision]
    parts = parameters(config)
    P = sum(parts.values())
    layer = (parts["attention"] + parts["MLP"]) // config.n_layer + 4 * config.n_embd
    tables = P - config.n_layer * layer
    tokens = setup.micro_batch * config.block_size
    gathered = {0: 0, 1: P, 2: P, 3: tables + 2 * layer}[stage]
    share = P if stage == 0 else P / n
    # DDP's buckets are the gradients, except for those accumulated before the micro-step that sends them;
    # FSDP2 sends and receives flat copies of the layer at work and of the next
    buckets = P if n > 1 and setup.micro_steps > 1 else 0
    kept, again, beside = _layer_bytes(config, setup)
    last_norm = (4 + a) * config.n_embd + 8
    working = max(_logits_bytes(config, setup), tokens * (again + beside))
    return Memory(
        weights=4 * (share + gathered),
        gradients=4 * (P if stage == 1 else share),  # in stage 1, shares come when whole ones go
        optimizer=8 * share,
        copies=2 * matrix_parameters(config) if a == 2 else 0,
        activations=tokens * (config.n_layer * kept + last_norm),
        working=working + 4 * parts["token table"],  # its gradient as head waits for its gradient as table
        buffers=4 * {0: buckets, 1: 2 * layer, 2: 4 * layer, 3: 4 * layer}[stage],
    )


def _logits_bytes(config: GPTConfig, setup: Setup) -> int:
    """Logits and their gradient: three times in fp32 for at most CHUNK_LOGITS, or two times where all is compiled."""
    tokens = setup.micro_batch * config.block_size
    if setup.compiled and setup.stage == 0:  # FSDP2 compiles the layers only
        return 2 * VALUE_BYTES[setup.precision] * tokens * config.padded_vocab_size
    return 12 * config.vocab_size * min(tokens, max(1, CHUNK_LOGITS // config.padded_vocab_size))


def activation_bytes(config: GPTConfig, recompute: str = "none") -> int:
    """Bytes that one sequence takes in forward and backward, in fp32, eager, on a CPU: an upper estimate."""
    setup = Setup(recompute=recompute, precision="fp32", fused=config.block_size > 512)
    parts = memory(config, setup)
    return int(parts.activations + parts.working)


def largest_micro_batch(config: GPTConfig, setup: Setup, sequences: int, budget: float) -> int:
    """The largest power of two that divides a process's `sequences` a step and takes at most `budget` bytes, or 0."""
    sizes = [2**i for i in range(sequences.bit_length()) if sequences % 2**i == 0]
    setups = {size: replace(setup, micro_batch=size, micro_steps=sequences // size) for size in sizes}
    return max((size for size in sizes if memory(config, setups[size]).total <= budget), default=0)


def bytes_sent(config: GPTConfig, setup: Setup) -> float:
    """Bytes that one process sends (and receives) in an optimiser step, in rings, everything in fp32.

    A gather, or the sum of which each gets its share, moves (n − 1)/n of the whole; an all-reduce is both. 0: one
    all-reduce of gradients. 1: one sum, one gather. 2: a sum every micro-step, one gather. 3: a sum every micro-step,
    and a gather for forward and another for backward, the tables' staying over both.
    """
    parts = parameters(config)
    P, G = sum(parts.values()), setup.micro_steps
    tables = parts["token table"] + parts["position table"] + 2 * config.n_embd
    whole = {0: 2 * P, 1: 2 * P, 2: P * (1 + G), 3: (3 * P - tables) * G}[setup.stage]
    return 4 * whole * (setup.gpus - 1) / setup.gpus
