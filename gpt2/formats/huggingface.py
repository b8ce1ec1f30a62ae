"""Model folders in the Hugging Face layout: `config.json`, `model.safetensors`, and the tokenizer's files.

A GPT-2 has the layout of OpenAI's published weights, which `transformers` opens. Its matrices of attention and MLP are
stored as (in, out), the transpose of a Linear's (out, in). A model with other parts is stored as it is.
Built in notebook 03.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from gpt2.data.tokenizer import GPT2_VOCAB, MIN_VOCAB, huggingface_files
from gpt2.formats.build import OPENAI, PADDED, build_from_tensors, config_from_json
from gpt2.model import GPT, GPTConfig
from gpt2.modern.model import Modern, ModernConfig
from gpt2.system.errors import UserError
from gpt2.system.files import write_atomically

SIZES = {"block_size": "n_positions", **{name: name for name in ("vocab_size", "n_layer", "n_head", "n_embd")}}
ARCHITECTURE = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}
FILES = ["config.json", "model.safetensors", "merges.txt", "tokenizer.json"]  # of a model on the hub
WITH_PARTS = "gpt2-parts"  # the model_type of a model with other parts than GPT-2's


def read_config(folder: Path) -> GPTConfig:
    """The configuration of the model in a folder. Raises UserError where there is none, or another architecture."""
    for file in ("config.json", "model.safetensors"):
        if not (folder / file).exists():
            raise UserError(f"{folder} has no {file}; give a folder that save_pretrained wrote")
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") == WITH_PARTS:
        return config_from_json({key: value for key, value in config.items() if key != "model_type"})
    for key, value in ARCHITECTURE.items():
        if config.get(key, value) != value or key == "model_type" not in config:
            raise UserError(
                f"{folder} holds another architecture: its {key} is {config.get(key)!r}, not {value!r}; give a GPT-2"
            )
    try:
        return GPTConfig(**{ours: config[theirs] for ours, theirs in SIZES.items()})
    except KeyError as error:
        raise UserError(f"{folder}/config.json does not say {error}; give a folder of a GPT-2") from None


def read_model(folder: Path) -> GPT | Modern:
    """The model in a folder, with its weights in fp32. Raises UserError as `read_config`."""
    config = read_config(folder)
    tensors = load_file(folder / "model.safetensors")
    if not isinstance(config, ModernConfig):
        tensors = {
            "transformer." + name.removeprefix("transformer."): (p.t() if _is_transposed(name) else p).contiguous()
            for name, p in tensors.items()
            # not the masks of older folders, nor the second copy of the token embedding
            if not name.endswith((".attn.bias", ".attn.masked_bias")) and name != "lm_head.weight"
        }
    return build_from_tensors(config, tensors)


def save_pretrained(model: GPT | Modern, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write configuration and weights; `transformers` opens the folder of a GPT-2. Raises OSError.

    The weights keep their dtype, unless another is given. A vocabulary of GPT-2's first merges is written too. Each
    file appears whole or not at all, so an interrupted save harms no older one.
    """
    rows = model.config.vocab_size
    state = {name: p[:rows] if name in PADDED else p for name, p in model.state_dict().items()}
    config: dict[str, Any] = {"model_type": WITH_PARTS, **dataclasses.asdict(model.config)}
    if isinstance(model, GPT):
        config = _published_config(model.config)
        state = {name: p.t() if _is_transposed(name) else p for name, p in state.items()}
    tensors = {name: p.detach().to("cpu", dtype or p.dtype).contiguous() for name, p in state.items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    write_atomically(folder / "config.json", json.dumps(config, indent=2).encode() + b"\n")
    if MIN_VOCAB <= rows <= GPT2_VOCAB:
        for name, content in huggingface_files(rows).items():
            write_atomically(folder / name, content.encode())


def download(name: str) -> Path:
    """The local copy of a model of the hub: `gpt2`, or `owner/name`. Raises UserError where it can't be fetched."""
    from huggingface_hub import snapshot_download

    try:
        repository = f"openai-community/{name}" if name in OPENAI else name
        return Path(snapshot_download(repository, allow_patterns=FILES))
    except Exception as error:  # the hub's errors have no common base: offline, unknown name, no permission
        raise UserError(
            f"there is no model folder {name!r}, and the hub gave none ({type(error).__name__}); "
            "give a folder that save_pretrained wrote, or connect to the internet"
        ) from error


def read_merges(folder: Path) -> list[str] | None:
    """The merges of the tokenizer in a folder, `left right` each; None where it holds none."""
    if (folder / "merges.txt").is_file():
        lines = (folder / "merges.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if line and not line.startswith("#version")]
    try:  # what newer versions of transformers write instead
        merges = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    except (OSError, KeyError, TypeError, ValueError):
        return None
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _published_config(config: GPTConfig) -> dict[str, Any]:
    return {
        **ARCHITECTURE,
        **{theirs: getattr(config, ours) for ours, theirs in SIZES.items()},
        "architectures": ["GPT2LMHeadModel"],
        **dict.fromkeys(("bos_token_id", "eos_token_id"), config.vocab_size - 1),  # end of text
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
    }


def _is_transposed(name: str) -> bool:
    return name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
