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
from safetensors import SafetensorError
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
WEIGHTS = "model.safetensors"
SMALL_FILES = ["config.json", "merges.txt", "tokenizer.json"]  # of a model on the hub, beside its weights
REMEDY = "write or fetch this folder again"
WITH_PARTS = "gpt2-parts"  # the model_type of a model with other parts than GPT-2's


def read_json(folder: Path) -> dict[str, Any]:
    """The content of the file config.json in a folder. Raises UserError where it is missing or damaged."""
    _require_file(folder, "config.json")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/config.json can't be read ({error}); {REMEDY}") from None
    if not isinstance(config, dict):
        raise UserError(f"{folder}/config.json is not a JSON object; {REMEDY}")
    return config


def read_config(folder: Path) -> GPTConfig:
    """The configuration of the model in a folder. Raises UserError where there is none, or another architecture."""
    values = read_json(folder)
    if values.get("model_type") == WITH_PARTS:
        del values["model_type"]
    else:
        values = _published_sizes(folder, values)
    try:
        config = config_from_json(values)
        if wrong := [name for name in SIZES if type(getattr(config, name)) is not int]:
            raise ValueError(f"{wrong[0]} is {getattr(config, wrong[0])!r}, not a whole number")
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{folder}/config.json describes no model ({error}); {REMEDY}") from None
    return config


def _published_sizes(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The sizes of a GPT-2 under our names. Raises UserError for another architecture."""
    for key, value in ARCHITECTURE.items():
        if config.get(key, value) != value or key == "model_type" not in config:
            raise UserError(
                f"{folder} holds another architecture: its {key} is {config.get(key)!r}, not {value!r}; give a GPT-2"
            )
    try:
        return {ours: config[theirs] for ours, theirs in SIZES.items()}
    except KeyError as error:
        raise UserError(f"{folder}/config.json does not say {error}; give a folder of a GPT-2") from None


def read_model(folder: Path) -> GPT | Modern:
    """The model in a folder, with its weights in fp32. Raises UserError as `read_config`, and for damaged weights."""
    _require_file(folder, WEIGHTS)
    config = read_config(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
        if not isinstance(config, ModernConfig):
            tensors = {
                "transformer." + name.removeprefix("transformer."): (p.t() if _is_transposed(name) else p).contiguous()
                for name, p in tensors.items()
                # not the masks of older folders, nor the second copy of the token embedding
                if not name.endswith((".attn.bias", ".attn.masked_bias")) and name != "lm_head.weight"
            }
        return build_from_tensors(config, tensors)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}/{WEIGHTS} can't be read ({error}); {REMEDY}") from None
    except RuntimeError:  # a tensor is missing, or has another shape
        raise UserError(f"{folder}/{WEIGHTS} holds another model than config.json describes; {REMEDY}") from None


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
    write_atomically(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_atomically(folder / "config.json", json.dumps(config, indent=2).encode() + b"\n")
    if MIN_VOCAB <= rows <= GPT2_VOCAB:
        for name, content in huggingface_files(rows).items():
            write_atomically(folder / name, content.encode())


def download(name: str, weights: bool) -> Path:
    """The local copy of a model of the hub: `gpt2`, or `owner/name`. Raises UserError where it can't be fetched.

    Without `weights`, only configuration and tokenizer are fetched.
    """
    from huggingface_hub import snapshot_download

    try:
        repository = f"openai-community/{name}" if name in OPENAI else name
        return Path(snapshot_download(repository, allow_patterns=[*SMALL_FILES, *[WEIGHTS] * weights]))
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


def _require_file(folder: Path, file: str) -> None:
    if not (folder / file).exists():
        raise UserError(f"{folder} has no {file}; give a folder that save_pretrained wrote")


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
