"""What a model costs: its parameters and its floating-point operations.

Built in notebooks 07, 15 and 17.
"""

import functools

import torch

from gpt2.config.run import Run
from gpt2.formats.build import build_empty
from gpt2.model import GPTConfig
from gpt2.modern.model import ModernConfig

# a piece of a parameter's name → the part that the parameter belongs to; the first that matches
PART_OF = {
    "wte": "token embedding",
    "wpe": "position embedding",
    "attn": "attention",
    "router": "router",
    "mlp": "MLP",
    "ln_": "norms",
    "lm_head": "head",
    "gain": "gain",
}


@functools.cache
def with_parts(config: GPTConfig) -> ModernConfig:
    """The configuration with every part named. The parts of a plain GPTConfig are GPT-2's."""
    return ModernConfig(**vars(config))


@functools.cache
def shapes(config: GPTConfig) -> dict[str, torch.Size]:
    """The shape of every parameter, by name. No memory is allocated."""
    return {name: p.shape for name, p in build_empty(config).named_parameters()}


def parameters(config: GPTConfig) -> dict[str, int]:
    """Parameters by part, with biases and with the padding rows of the token embedding and of an untied head."""
    counts = dict.fromkeys(PART_OF.values(), 0)
    for name, shape in shapes(config).items():
        counts[next(part for word, part in PART_OF.items() if word in name)] += shape.numel()
    return {part: count for part, count in counts.items() if count}


def published_parameters(config: GPTConfig) -> int:
    """Parameters as publications count them: without the padding rows."""
    padding = (config.padded_vocab_size - config.vocab_size) * config.n_embd
    return sum(parameters(config).values()) - padding * (1 if with_parts(config).parts.tied else 2)


def matrices(config: GPTConfig) -> dict[str, int]:
    """Parameters of every matrix that takes part in a product, by name. A tied token embedding counts as the head."""
    embeddings = ("wpe.weight",) if with_parts(config).parts.tied else ("wpe.weight", "wte.weight")
    return {
        name: shape.numel()
        for name, shape in shapes(config).items()
        if len(shape) > 1 and not name.endswith((*embeddings, "bias"))
    }


def active_matrices(config: GPTConfig) -> dict[str, int]:
    """As `matrices`, with only the parameters of the experts that the router chooses for a token."""
    parts = with_parts(config).parts
    of_experts = {name for name, shape in shapes(config).items() if len(shape) == 3}
    return {
        name: size * parts.experts_per_token // parts.experts if name in of_experts else size
        for name, size in matrices(config).items()
    }


def matrix_parameters(config: GPTConfig) -> int:
    """Parameters that every token is multiplied by: those of the blocks and of the head."""
    return sum(active_matrices(config).values())


def attention_products(config: GPTConfig) -> int:
    """Multiplications of queries with keys per token, all layers: H D min(w, T) in a layer that sees w positions.

    Attention weights times values are as many again. A full layer counts as T, though the average position sees half
    of the sequence: the PaLM count.
    """
    whole, T = with_parts(config), config.block_size
    return whole.n_head * whole.head_size * sum(min(whole.window(i) or T, T) for i in range(config.n_layer))


def flops_per_token(config: GPTConfig) -> float:
    """Training FLOPs per token, forward and backward: 6 N + 12 L d T, the PaLM count (arXiv 2204.02311, appendix B).

    d is the width of all heads together, and T the positions that a layer sees: see `attention_products`.
    """
    return 6 * matrix_parameters(config) + 12 * attention_products(config)


def recompute_flops_per_token(config: GPTConfig, recompute: str) -> float:
    """FLOPs per token that backward computes a second time. An activation function alone takes none that count.

    The last product of a recomputed part is not repeated, because backward does not need its result. With experts it
    is, because the gradient of the router's weights needs it.
    """
    sizes = active_matrices(config)
    if not with_parts(config).parts.experts:
        sizes = {name: size for name, size in sizes.items() if not name.endswith("mlp.c_proj.weight")}
    mlp = 2 * sum(size for name, size in sizes.items() if ".mlp." in name)
    attention = 2 * sum(size for name, size in sizes.items() if ".attn." in name) + 4 * attention_products(config)
    return {"none": 0, "gelu": 0, "mlp": mlp, "block": attention + mlp}[recompute]


def run_flops(run: Run, config: GPTConfig) -> float:
    """Floating-point operations of a whole run."""
    return flops_per_token(config) * run.data.batch_tokens * run.schedule.steps
