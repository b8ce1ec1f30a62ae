"""What a model costs: parameters and floating-point operations; and the speed they are measured against.

Built in notebook 07.
"""

import functools

import torch

from gpt2.config.run import Run
from gpt2.formats.build import build
from gpt2.model import GPTConfig
from gpt2.modern.model import ModernConfig

# what a parameter's name contains → the part it belongs to; the first that fits
PART_OF = {
    "wte": "token table",
    "wpe": "position table",
    "attn": "attention",
    "router": "router",
    "mlp": "MLP",
    "ln_": "norms",
    "lm_head": "head",
    "gain": "gain",
}


def with_parts(config: GPTConfig) -> ModernConfig:
    """The configuration with every part named: GPT-2's own where it names none."""
    return config if isinstance(config, ModernConfig) else ModernConfig(**vars(config))


@functools.cache
def shapes(config: GPTConfig) -> dict[str, torch.Size]:
    """The shape of every parameter, by name: of a model that is built without memory."""
    with torch.device("meta"):
        return {name: p.shape for name, p in build(config).named_parameters()}


def parameters(config: GPTConfig) -> dict[str, int]:
    """Parameters by part, biases and the padding rows of the token table and of an untied head included."""
    counts = dict.fromkeys(PART_OF.values(), 0)
    for name, shape in shapes(config).items():
        counts[next(part for word, part in PART_OF.items() if word in name)] += shape.numel()
    return {part: count for part, count in counts.items() if count}


def published_parameters(config: GPTConfig) -> int:
    """Parameters as publications count them: without the padding rows of the token table and of an untied head."""
    padding = (config.padded_vocab_size - config.vocab_size) * config.n_embd
    return sum(parameters(config).values()) - padding * (1 if with_parts(config).parts.tied else 2)


def matrices(config: GPTConfig) -> dict[str, int]:
    """Parameters of every matrix that tokens are multiplied by, by name; a tied token table is one, as the head."""
    tables = ("wpe.weight",) if with_parts(config).parts.tied else ("wpe.weight", "wte.weight")
    return {
        name: shape.numel()
        for name, shape in shapes(config).items()
        if len(shape) > 1 and not name.endswith((*tables, "bias"))
    }


def active_matrices(config: GPTConfig) -> dict[str, int]:
    """The same, of experts only those that work on a token."""
    parts = with_parts(config).parts
    many = {name for name, shape in shapes(config).items() if len(shape) == 3}
    chosen, experts = parts.experts_per_token, parts.experts
    return {name: n * chosen // experts if name in many else n for name, n in matrices(config).items()}


def matrix_parameters(config: GPTConfig) -> int:
    """Parameters that multiply every token: blocks and head (the token table counts once, as the head)."""
    return sum(active_matrices(config).values())


def attention_products(config: GPTConfig) -> int:
    """Multiplications a token of queries with keys, all layers: H D min(w, T) in a layer that sees w positions.

    The same again with values. A full layer counts as T, though the mean position sees half of them: the PaLM count.
    """
    whole, T = with_parts(config), config.block_size
    return whole.n_head * whole.head_size * sum(min(whole.window(i) or T, T) for i in range(config.n_layer))


def flops_per_token(config: GPTConfig) -> float:
    """Training FLOPs a token, forward and backward: 6 N + 12 L d T, the PaLM count (arXiv 2204.02311, appendix B).

    d is the width of all heads together, T what a layer sees at most: see `attention_products`.
    """
    return 6 * matrix_parameters(config) + 12 * attention_products(config)


def recompute_flops_per_token(config: GPTConfig, recompute: str) -> float:
    """FLOPs a token done twice. The last product of a recomputed part isn't: backward doesn't need its result.

    That of experts is: the gradient of the router's weights needs it.
    """
    experts = with_parts(config).parts.experts
    active = {n: size for n, size in active_matrices(config).items() if experts or not n.endswith("mlp.c_proj.weight")}
    mlp = 2 * sum(size for name, size in active.items() if ".mlp." in name)
    attention = 2 * sum(size for name, size in active.items() if ".attn." in name) + 4 * attention_products(config)
    return {"none": 0, "mlp": mlp, "block": attention + mlp}[recompute]


def run_flops(run: Run, config: GPTConfig) -> float:
    """Floating-point operations of a whole run."""
    return flops_per_token(config) * run.data.batch_tokens * run.schedule.steps
