"""Published weights of gpt-oss (arXiv 2508.10925): a Hugging Face folder whose experts may be stored in MXFP4.

Built in notebook 15.

MXFP4 stores 32 numbers in 17 bytes: 4 bits each, and the power of two by which all of them are multiplied.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt2.formats.build import build_from_tensors
from gpt2.formats.huggingface import REMEDY, read_json
from gpt2.model import GPT
from gpt2.modern.model import Modern, ModernConfig
from gpt2.modern.parts import Parts
from gpt2.system.errors import UserError

# the numbers of FP4, in the order of their bits: a sign, two bits of exponent, one of mantissa
FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
EXPONENT_OF_ONE = 127
# what `gpt2.modern` has as constants, with the values of gpt-oss
ARCHITECTURE = {"rms_norm_eps": 1e-5, "swiglu_limit": 7.0, "attention_bias": True}
YARN = {"rope_type": "yarn", "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}


def is_gpt_oss(folder: Path) -> bool:
    """Whether a folder's config.json is one of gpt-oss."""
    return read_json(folder).get("model_type") == "gpt_oss"


def read_config(folder: Path) -> ModernConfig:
    """The configuration of the model in a folder. Raises UserError where it is not gpt-oss's architecture."""
    config = read_json(folder)
    try:
        return _config(folder, config)
    except KeyError as error:
        raise UserError(f"{folder}/config.json does not say {error}; give a folder of gpt-oss") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{folder}/config.json describes no model ({error}); {REMEDY}") from None


def _config(folder: Path, config: dict[str, Any]) -> ModernConfig:
    layers = config["num_hidden_layers"]
    kinds = ["sliding_attention", "full_attention"]
    if config.get("layer_types", [kinds[i % 2] for i in range(layers)]) != [kinds[i % 2] for i in range(layers)]:
        raise UserError(f"{folder}/config.json has layer_types that do not alternate; give a folder of gpt-oss")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for found, expected in ((config, ARCHITECTURE), (rope, YARN)):
        for key, value in expected.items():
            if found.get(key, value) != value:
                raise UserError(f"{folder} has {key} {found[key]!r}, not gpt-oss's {value!r}; give a folder of gpt-oss")
    parts = Parts(
        norm="rms",
        position="rotary",
        rotary_base=float(rope.get("rope_theta") or config["rope_theta"]),
        yarn_factor=float(rope.get("factor", 1.0)),
        yarn_context=rope.get("original_max_position_embeddings", 4096),
        kv_heads=config["num_key_value_heads"],
        head_size=config["head_dim"],
        windows=(config["sliding_window"], "full"),
        sinks=True,
        mlp="swiglu-clamped",
        mlp_width=config["intermediate_size"],
        experts=config["num_local_experts"],
        experts_per_token=config["num_experts_per_tok"],
        tied=False,
    )
    return ModernConfig(
        block_size=config["max_position_embeddings"],
        vocab_size=config["vocab_size"],
        n_layer=layers,
        n_head=config["num_attention_heads"],
        n_embd=config["hidden_size"],
        parts=parts,
    )


def read_model(folder: Path) -> GPT | Modern:
    """The model in a folder, in the precision in which it is stored, MXFP4 as bf16. Raises UserError.

    The 20b takes 42 GB, the 120b 234 GB.
    """
    config, where = read_config(folder), {}
    try:
        for file in sorted(folder.glob("*.safetensors")):
            tensors = safe_open(file, "pt")
            where.update(dict.fromkeys(tensors.keys(), tensors))
        weights = _renamed(config, lambda name: where[name].get_tensor(name), where)
        return build_from_tensors(config, weights, dtype=None)
    except SafetensorError as error:
        raise UserError(f"{folder} holds a damaged file ({error}); fetch it again") from None
    except KeyError as error:
        raise UserError(f"{folder} has no tensor {error}; fetch the missing files of the model") from None
    except RuntimeError:  # a tensor has another shape
        raise UserError(f"{folder} holds other tensors than its config.json describes; {REMEDY}") from None


def _renamed(config: ModernConfig, get: Callable[[str], Tensor], names: dict[str, Any]) -> dict[str, Tensor]:
    """All weights under our names. Theirs interleaves each gate with its input, in the rows of an expert's matrix."""
    ours = {
        "transformer.wte.weight": get("model.embed_tokens.weight"),
        "transformer.ln_f.weight": get("model.norm.weight"),
        "lm_head.weight": get("lm_head.weight"),
    }

    def expert(name: str) -> Tensor:
        """An expert's matrices (E, out, in), which theirs stores as MXFP4, or as (E, in, out)."""
        if f"{name}_blocks" in names:
            return from_mxfp4(get(f"{name}_blocks"), get(f"{name}_scales"))
        return get(name).transpose(1, 2)

    for i in range(config.n_layer):
        theirs, block = f"model.layers.{i}.", f"transformer.h.{i}."
        experts = f"{theirs}mlp.experts."
        gate_up, bias = expert(f"{experts}gate_up_proj"), get(f"{experts}gate_up_proj_bias")
        ours |= {
            f"{block}ln_1.weight": get(f"{theirs}input_layernorm.weight"),
            f"{block}ln_2.weight": get(f"{theirs}post_attention_layernorm.weight"),
            f"{block}attn.sinks": get(f"{theirs}self_attn.sinks"),
            f"{block}mlp.c_fc.weight": torch.cat([gate_up[:, ::2], gate_up[:, 1::2]], dim=1),
            f"{block}mlp.c_fc.bias": torch.cat([bias[:, ::2], bias[:, 1::2]], dim=1),
            f"{block}mlp.c_proj.weight": expert(f"{experts}down_proj"),
            f"{block}mlp.c_proj.bias": get(f"{experts}down_proj_bias"),
        }
        for kind in ("weight", "bias"):
            qkv = [get(f"{theirs}self_attn.{x}_proj.{kind}") for x in "qkv"]
            ours |= {
                f"{block}attn.c_attn.{kind}": torch.cat(qkv),
                f"{block}attn.c_proj.{kind}": get(f"{theirs}self_attn.o_proj.{kind}"),
                f"{block}mlp.router.{kind}": get(f"{theirs}mlp.router.{kind}"),
            }
    return ours


def from_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """MXFP4 as bf16: blocks (…, rows, G, 16) and scales (…, rows, G), both uint8 → (…, rows, 32 G).

    A byte holds two numbers, the first in its lower half.
    """
    halves = torch.stack([blocks & 15, blocks >> 4], dim=-1).flatten(-2)  # (…, rows, G, 32)
    exponents = scales.to(torch.int32)[..., None] - EXPONENT_OF_ONE
    return torch.ldexp(FP4.to(torch.bfloat16)[halves.to(torch.int32)], exponents).flatten(-2)
