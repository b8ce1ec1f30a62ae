"""The Hugging Face layout of a GPT-2 folder: `config.json` and `model.safetensors`, as OpenAI's weights are published.

Holds:    `read_folder`, `write_folder`, and below them `read_tensors`, `write_tensors`.
Built in: notebook 03.
Imports:  torch, safetensors, huggingface_hub (to download), gpt2.files.

The published weights keep the attention's and MLP's matrices as (in, out), the transpose of a Linear's (out, in).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from gpt2.files import write_whole

SIZES = {"block_size": "n_positions", **{name: name for name in ("vocab_size", "n_layer", "n_head", "n_embd")}}
ARCHITECTURE = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}
ON_THE_HUB = "openai-community/"  # where OpenAI's four models are


def read_folder(name: str | Path) -> tuple[dict[str, int], dict[str, Tensor]]:
    """A folder's (or the hub's) sizes under our names, and its weights in fp32, as Linear layers hold them.

    Raises FileNotFoundError where there is none, ValueError where it is no GPT-2 of this architecture.
    """
    folder = Path(name) if Path(name).is_dir() else _download(str(name))
    for file in ("config.json", "model.safetensors"):
        if not (folder / file).exists():
            raise FileNotFoundError(f"{folder} has no {file}; give a folder that save_pretrained wrote")
    config = json.loads((folder / "config.json").read_text())
    for key, value in ARCHITECTURE.items():
        if config.get(key, value) != value or key == "model_type" not in config:
            raise ValueError(f"{name} is another architecture: its {key} is {config.get(key)!r}, not {value!r}")
    tensors = {}
    for key, tensor in read_tensors(folder).items():
        if key.endswith((".attn.bias", ".attn.masked_bias")) or key == "lm_head.weight":
            continue  # masks that older folders carry, and the token table again
        name = "transformer." + key.removeprefix("transformer.")
        tensors[name] = (tensor.t() if _is_transposed(key) else tensor).contiguous().float()
    try:
        return {ours: config[theirs] for ours, theirs in SIZES.items()}, tensors
    except KeyError as error:
        raise ValueError(f"{folder}/config.json does not say {error}") from None


def write_folder(folder: str | Path, sizes: Mapping[str, int], state: Mapping[str, Tensor]) -> None:
    """Write sizes and weights (a state dict of Linear layers, the token table unpadded). Raises OSError."""
    end_of_text = sizes["vocab_size"] - 1
    config: dict[str, Any] = {
        **ARCHITECTURE,
        **{theirs: sizes[ours] for ours, theirs in SIZES.items()},
        "architectures": ["GPT2LMHeadModel"],
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
    }
    write_tensors(folder, config, {key: p.t() if _is_transposed(key) else p for key, p in state.items()})


def write_tensors(folder: str | Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write `config` and the tensors of `state` as they are. Raises OSError.

    Each file is written beside its place, synced and renamed, so an interrupted save harms no older one.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: p.detach().cpu().contiguous() for key, p in state.items()}
    write_whole(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    write_whole(folder / "config.json", json.dumps(config, indent=2).encode() + b"\n")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder. Raises FileNotFoundError."""
    return load_file(folder / "model.safetensors")


def _is_transposed(key: str) -> bool:
    return key.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        repository = name if "/" in name else ON_THE_HUB + name
        return Path(snapshot_download(repository, allow_patterns=["config.json", "model.safetensors"]))
    except Exception as error:  # the hub's errors have no common base: offline, unknown name, no permission
        raise FileNotFoundError(
            f"no model folder {name!r} here and none could be fetched from the hub ({type(error).__name__}); "
            "give a folder that save_pretrained wrote, or connect to the internet"
        ) from error
