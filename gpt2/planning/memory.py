"""How much GPU memory a training step needs, and how many bytes a process sends, worked out before the run.

Built in notebooks 07 and 13.

Memory is what PyTorch's allocator holds at the peak of a step. In tests on a CPU, the estimate lies within a few
percent of the measured bytes for GPT-2, and within a quarter for other parts. Activations are those of eager
execution; a compiled model kept up to 5 % more or less.
"""

import functools
from dataclasses import dataclass

import torch

from gpt2.config.run import Optim
from gpt2.formats.build import build_empty
from gpt2.kernels import CHUNK_LOGITS
from gpt2.model import GPTConfig
from gpt2.modern.attention import FLEX_FROM
from gpt2.modern.experts import is_gated
from gpt2.modern.model import ModernConfig
from gpt2.optim.optimizer import make_optimizer
from gpt2.planning.flops import matrices, parameters, shapes, with_parts
from gpt2.system.errors import UserError

VALUE_BYTES = {"bf16": 2, "fp16": 2, "tf32": 4, "fp32": 4}  # of a factor in a matrix product
WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "bf16-master": 2, "bf16-cast": 2}  # of an embedding, so of the residual stream
# of a number of Muon's on its way, as `factor_dtype` chooses; in fp32 runs on a GPU with bf16 it is 2
MUON_BYTES = {"bf16": 2, "fp16": 4, "tf32": 2, "fp32": 4}
RECOMPUTE = ("none", "gelu", "mlp", "block")
SPARE_MEMORY = 0.1  # of a GPU: left free for CUDA, NCCL and the gaps of the allocator
# values that an activation function keeps, with its input and its result, in widths of the MLP
KEPT_WIDTHS = {"gelu": 2, "relu2": 2, "mp-silu": 2, "swiglu": 4, "swiglu-clamped": 7}


@dataclass(frozen=True)
class Setup:
    """How a model is trained, as far as memory and communication depend on it; see `gpt2.training.distributed`.

    `micro_steps`: micro-batches of one process per optimiser step (gradient accumulation).
    `fused`: attention keeps no T × T maps; see `is_fused`. `muon`: the optimiser of the matrices of the blocks.
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
        """The ZeRO stage in effect: a single process has no other to share with."""
        return self.zero if self.gpus > 1 else 0


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the peak of a training step, by part."""

    weights: float  # this process's share, and the gathered weights of others
    gradients: float  # in the precision of the weights
    optimizer: float  # Adam's two averages, Muon's one, and master weights
    copies: float  # of the matrices in 16 bits: autocast makes them in forward, autograd keeps them for backward
    activations: float  # what forward keeps for backward
    working: float  # the largest short-lived tensors: logits with their gradient, or the backward of one layer
    buffers: float  # gradients and weights on their way between processes

    @property
    def total(self) -> float:
        """The sum of the parts."""
        return sum(vars(self).values())


def memory(config: GPTConfig, setup: Setup) -> Memory:
    """Bytes on one GPU at the peak of a training step with gradient accumulation, by part.

    ZeRO stages 1 to 3 (Rajbhandari et al., arXiv 1910.02054) as FSDP2 implements them. Besides its share, a process
    holds all weights in stages 1 and 2, all gradients in stage 1, and in stage 3 the weights outside the layers and
    those of two layers (the next one is fetched ahead).
    """
    parts, stage, w = with_parts(config).parts, setup.stage, _bytes_per_weight(config, setup.weights)
    P, layer, outside = _sizes(config)
    share = P if stage == 0 else P / setup.gpus
    # DDP sends gradients in buckets, which are the gradients themselves, except for those accumulated before;
    # FSDP2 sends and receives flat copies of the current layer and of the next
    buckets = P if setup.gpus > 1 and setup.micro_steps > 1 else 0
    tokens = setup.micro_batch * config.block_size
    kept, recomputed, gradients = _layer_bytes(with_parts(config), setup)
    # outside the layers: the input of every norm and of the gain, and the input of the head
    norms = 1 + parts.norm_embedding + parts.normalised_weights + parts.gain
    ends = 4 * norms * config.n_embd + 8 + VALUE_BYTES[setup.precision] * config.n_embd
    # the gradient of a tied token embedding, computed in the head, waits for that of the embedding
    waiting = WEIGHT_BYTES[setup.weights] * parameters(config)["token embedding"] if parts.tied else 0
    return Memory(
        weights=w * (share + (0, P, P, outside + 2 * layer)[stage]),
        gradients=w * (P if stage == 1 else share),  # in stage 1, the shares replace the whole gradients
        optimizer=_optimizer_bytes(config, setup) * share / P,
        copies=_copied_bytes(config, setup),
        activations=tokens * (config.n_layer * kept + ends),
        working=max(_logits_bytes(config, setup), tokens * (recomputed + gradients)) + waiting,
        buffers=w * (buckets, 2 * layer, 4 * layer, 4 * layer)[stage],
    )


def _sizes(config: GPTConfig) -> tuple[int, int, int]:
    """Parameters of the model, of one layer, and of all that lies outside the layers."""
    P = sum(parameters(config).values())
    layer = sum(shape.numel() for name, shape in shapes(config).items() if name.startswith("transformer.h.0."))
    return P, layer, P - config.n_layer * layer


def check_recompute(config: GPTConfig, recompute: str) -> None:
    """Raise UserError for a level of recomputation that these parts do not have."""
    if recompute == "gelu" and with_parts(config).parts.experts:
        raise UserError("recompute gelu does not go with experts; give mlp or block")


def _bytes_per_weight(config: GPTConfig, weights: str) -> float:
    """Bytes of a stored weight, the mean over the model."""
    if weights != "bf16-cast":
        return WEIGHT_BYTES[weights]
    rest = ("wte.weight", "wpe.weight", "sinks", "gain")
    linear = [shape for name, shape in shapes(config).items() if not name.endswith(rest) and ".ln_" not in name]
    return 2 + 2 * sum(shape.numel() for shape in linear) / sum(parameters(config).values())


def _layer_bytes(config: ModernConfig, setup: Setup) -> tuple[int, int, int]:
    """Bytes of one layer per token: kept for backward, recomputed in backward, and gradients within backward."""
    parts, a, C = config.parts, VALUE_BYTES[setup.precision], config.n_embd
    stream = WEIGHT_BYTES[setup.weights] * C  # the residual stream
    norm = stream + 8  # its input, mean and deviation; its output counts as the input of the next part
    maps = 0 if setup.fused else a * config.n_head * config.block_size  # T × T attention weights of every head
    attention = norm + _attention_bytes(config, setup) + maps
    chosen = parts.experts_per_token if parts.experts else 1
    width = chosen * config.mlp_width
    # each expert copies the token, and its output is kept until it is weighted
    copies = 2 * chosen * C if parts.experts else 0
    mlp = a * (C + KEPT_WIDTHS[parts.mlp] * width + copies)
    whole = attention + norm + mlp
    activation = 0 if parts.experts else a * width * (KEPT_WIDTHS[parts.mlp] - (2 if is_gated(parts.mlp) else 1))
    kept, recomputed = {
        "none": (whole, 0),
        "gelu": (whole - activation, activation),
        "mlp": (attention + norm + stream, mlp),  # the MLP's input is kept, in the precision of the stream
        "block": (stream, whole - stream),
    }[setup.recompute]
    gradients = a * width * (2 if is_gated(parts.mlp) else 1) + stream + 2 * maps  # of the widest layer, stream, maps
    return kept, recomputed, gradients


def _attention_bytes(config: ModernConfig, setup: Setup) -> int:
    """Bytes that attention keeps per token, without its norm and the T × T maps."""
    parts, a, C = config.parts, VALUE_BYTES[setup.precision], config.n_embd
    queries, keys = config.n_head * config.head_size, config.kv_heads * config.head_size
    cast = 4 if a == 2 else 0  # a norm keeps an fp32 copy of a 16-bit input
    kept = a * (C + 2 * queries + 2 * keys)  # the input; queries, keys and values; the output
    if parts.qk_norm or parts.position == "rotary":
        kept += a * (queries + keys)  # a second time, normalised or rotated
    if parts.qk_norm:
        kept += cast * (queries + keys)
    if keys < queries:
        kept += a * 2 * queries  # keys and values, repeated for the heads that share them
    if parts.residual == "magnitude":
        kept += (a + cast) * queries + 4 * C  # the norms of the output and of the block's input
    if setup.fused:
        kept += 4 * config.n_head  # one number per row, from which backward recomputes the maps
    return kept


def _optimizer_bytes(config: GPTConfig, setup: Setup) -> float:
    """Adam's two averages, or Muon's one for the matrices of the blocks; and master weights."""
    P = sum(parameters(config).values())
    blocks = sum(size for name, size in matrices(config).items() if name.startswith("transformer.h."))
    muon = blocks if setup.muon else 0
    mine = muon / setup.gpus if setup.stage == 0 else muon  # Muon updates each matrix in one process only
    master = 4 * P if setup.weights == "bf16-master" else 0
    matrix = 2 if setup.weights == "bf16" else 4
    mean = 4 if setup.weights == "bf16-master" else _bytes_per_weight(config, setup.weights)
    return 2 * (mean * P - matrix * muon) + matrix * mine + master


def _copied_bytes(config: GPTConfig, setup: Setup) -> int:
    """Copies of the matrices but the router's: in 16 bits if they are stored in 32, or with normalised rows."""
    a = VALUE_BYTES[setup.precision]
    sizes = {name: size for name, size in matrices(config).items() if "router" not in name}
    if setup.weights == "bf16-cast":  # all but the token embedding
        sizes.pop("transformer.wte.weight", None)
        return a * sum(sizes.values())
    copied = with_parts(config).parts.normalised_weights or a < WEIGHT_BYTES[setup.weights]
    return a * sum(sizes.values()) if copied else 0


def _logits_bytes(config: GPTConfig, setup: Setup) -> int:
    """Logits and their gradient: at most CHUNK_LOGITS three times in fp32, or all, with the gradient in their place."""
    tokens = setup.micro_batch * config.block_size
    if setup.compiled:
        value = 4 if with_parts(config).parts.fp32_logits else VALUE_BYTES[setup.precision]
        return value * tokens * config.padded_vocab_size
    return 12 * config.vocab_size * min(tokens, max(1, CHUNK_LOGITS // config.padded_vocab_size))


def is_fused(config: GPTConfig, device: torch.device, flex: bool = True) -> bool:
    """Whether attention on this device keeps no T × T maps.

    True on a GPU, with sinks only if FlexAttention runs there; on a CPU, for long sequences without sinks.
    """
    if with_parts(config).parts.sinks:
        return flex and device.type == "cuda" and config.block_size >= FLEX_FROM
    return device.type != "cpu" or config.block_size > 512


def activation_bytes(config: GPTConfig, recompute: str = "none") -> int:
    """Bytes of one sequence in forward and backward, in fp32, eager, on a CPU: an upper estimate."""
    setup = Setup(recompute=recompute, precision="fp32", fused=is_fused(config, torch.device("cpu")))
    needed = memory(config, setup)
    return int(needed.activations + needed.working)


def bytes_sent(config: GPTConfig, setup: Setup) -> float:
    """Bytes that one process sends (and receives) per optimiser step, in rings, in the precision of the weights.

    An all-gather or a reduce-scatter moves (n − 1)/n of the whole, an all-reduce twice as much. Stage 0: one
    all-reduce of gradients. 1: one reduce-scatter, one all-gather. 2: a reduce-scatter per micro-step, one all-gather.
    3: a reduce-scatter and two all-gathers per micro-step, one of them without the weights outside the layers.
    Muon's updates are added; the norms of the gradients, 4 bytes per tensor, are left out.
    """
    n, stage, micro_steps = setup.gpus, setup.stage, setup.micro_steps
    # FSDP2 divides the rows of every tensor, and pads all shares to the size of the largest
    unit = n if stage else 1
    sizes = {name: -(-s[0] // unit) * unit * s[1:].numel() for name, s in shapes(config).items()}
    P = sum(sizes.values())
    outside = sum(size for name, size in sizes.items() if not name.startswith("transformer.h."))
    whole = (2 * P, 2 * P, P * (1 + micro_steps), (3 * P - outside) * micro_steps)[stage]
    sent = _bytes_per_weight(config, setup.weights) * whole * (n - 1) / n
    return sent + muon_bytes_sent(config, setup)


def muon_bytes_sent(config: GPTConfig, setup: Setup) -> float:
    """Bytes of `bytes_sent` that Muon sends, after the backward of the step."""
    if not setup.muon:
        return 0.0
    return MUON_BYTES[setup.precision] * _muon_numbers(config, setup.gpus, setup.stage > 0)


@functools.cache
def _muon_numbers(config: GPTConfig, gpus: int, sharded: bool) -> int:
    """Numbers of Muon's gradients and updates that the busiest process sends per optimiser step; see `muon_updates`.

    Whole matrices: one all-gather, to which every process contributes as many numbers as the owner of most. Sharded:
    every process sends its shards to their owners, and every owner sends the others their shards of the update.
    """
    matrices = make_optimizer(build_empty(config), Optim(kind="muon"), world_size=gpus).matrices.values()
    owned, sent = [0] * gpus, [0] * gpus
    for matrix in matrices:
        owned[matrix.owner] += matrix.weight.numel()
        for rank, shard in enumerate(matrix.shard_sizes(gpus)):
            sent[rank] += matrix.weight.numel() - shard if rank == matrix.owner else shard
    return max(sent) if sharded else (gpus - 1) * max(owned)
