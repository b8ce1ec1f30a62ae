"""A model from a name, from sizes, or from tensors: `d12` → configuration → GPT-2, or a model with other parts.

Built in notebook 03.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gpt2.config.presets import GPT_OSS
from gpt2.config.run import Model
from gpt2.model import GPT, GPTConfig
from gpt2.modern.model import Modern, ModernConfig
from gpt2.modern.parts import Parts
from gpt2.system.errors import UserError

# depth → n_embd: the names dN. 12, 24, 36 and 48 are the four published sizes. Heads are 64 wide, from d72 on 96
DEPTHS = {6: 384, 12: 768, 24: 1024, 36: 1280, 48: 1600, 60: 1920, 72: 2880, 84: 3456}
# n_embd → (n_layer, width of a head): the names gpt3:cN (Brown et al., arXiv 2005.14165, table 2.1)
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
# name → (n_layer, experts): the models of gpt-oss (arXiv 2508.10925), with the T that YaRN stretches 32 times
GPT_OSS_SIZES = {"gpt-oss-20b": (24, 32), "gpt-oss-120b": (36, 128)}
GPT_OSS_PARTS = replace(GPT_OSS, yarn_factor=32.0, kv_heads=8, head_size=64, mlp_width=2880, experts_per_token=4)
OPENAI = {"gpt2": "d12", "gpt2-medium": "d24", "gpt2-large": "d36", "gpt2-xl": "d48"}  # published, with weights
TRAINING_PARTS = ("init", "balance", "fp32_logits")  # they change how a model is trained, not what it computes
PADDED = ("transformer.wte.weight", "lm_head.weight")  # tensors with one row per token of the vocabulary


def named_config(name: str, **overrides: int) -> GPTConfig:
    """The sizes that `d12`, `gpt2-xl`, `gpt3:c768` or `gpt-oss-20b` stand for, with `overrides` applied.

    Raises ValueError for an unknown name. GPT-3's models have 2,048 positions.
    """
    known: dict[str, GPTConfig] = {
        f"d{depth}": GPTConfig(n_layer=depth, n_embd=C, n_head=C // (96 if depth >= 72 else 64))
        for depth, C in DEPTHS.items()
    }
    known |= {published: known[depth] for published, depth in OPENAI.items()}
    known |= {
        f"gpt3:c{C}": GPTConfig(block_size=2048, n_layer=depth, n_embd=C, n_head=C // width)
        for C, (depth, width) in GPT3_WIDTHS.items()
    }
    known |= {
        name: ModernConfig(4096, 201_088, depth, 64, 2880, replace(GPT_OSS_PARTS, experts=experts))
        for name, (depth, experts) in GPT_OSS_SIZES.items()
    }
    if name not in known:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(known)}")
    return replace(known[name], **overrides)


def make_config(model: Model, parts: Parts) -> GPTConfig:
    """The configuration of a run's model: a GPTConfig where every part is GPT-2's. Raises ValueError."""
    sizes = {k: v for k, v in asdict(model).items() if k != "init" and v is not None}
    if parts == Parts():
        return named_config(model.init, **sizes)
    if (own := getattr(named_config(model.init), "parts", None)) and own != parts:
        raise ValueError(f"{model.init} has its own parts; leave --parts out")
    # not named_config(…, **sizes): a GPTConfig would refuse a width that n_head does not divide; Parts has head_size
    return ModernConfig(**{**vars(named_config(model.init)), **sizes, "parts": parts})


def require_gpt2(config: GPTConfig, what: str) -> None:
    """Raise UserError for a model that computes otherwise than GPT-2, with its parts; `what` holds or runs GPT-2."""
    ours, published = vars(getattr(config, "parts", Parts())), vars(Parts())
    others = [f"{name} {ours[name]}" for name in ours if name not in TRAINING_PARTS and ours[name] != published[name]]
    if others:
        raise UserError(f"{what} GPT-2 as published, not a model with {', '.join(others)}; give a run of a GPT-2")


def config_from_json(values: dict[str, Any]) -> GPTConfig:
    """The configuration whose fields were written as JSON. Raises TypeError or ValueError for anything else."""
    if "parts" not in values:
        return GPTConfig(**values)
    parts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["parts"].items()}
    return ModernConfig(**{**values, "parts": Parts(**parts)})


def build(config: GPTConfig) -> GPT | Modern:
    """The model of a configuration, with random weights."""
    return Modern(config) if isinstance(config, ModernConfig) else GPT(config)


def build_empty(config: GPTConfig) -> GPT | Modern:
    """The model of a configuration without values: its parameters are on the device `meta`, and take no memory."""
    with torch.device("meta"), _NoInit():
        return build(config)


class _NoInit(TorchFunctionMode):
    """Leaves parameters as they are. On meta, `normal_` would import the compiler, which takes most of a second."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def build_from_tensors(
    config: GPTConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = torch.float32
) -> GPT | Modern:
    """The model of a configuration, with these weights, whatever padding rows embedding and head have.

    They are cast to `dtype`; None keeps theirs.
    """
    weights = {name: tensor.to(dtype or tensor.dtype) for name, tensor in tensors.items()}
    for name in PADDED:
        if name in weights:
            rows = weights[name][: config.vocab_size]
            weights[name] = F.pad(rows, (0, 0, 0, config.padded_vocab_size - config.vocab_size))
    model = build_empty(config)
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(True)


def trained_config(model: Model, config: GPTConfig) -> GPTConfig:
    """The configuration with the block size of training, which may be smaller than the model's."""
    return replace(config, block_size=model.block_size or config.block_size)
