"""A model, GPT-2 as published or with other parts: from sizes, from a folder, from a file of llm.c, from the hub.

Holds:    `make_config`, `build`, `read_config`, `from_pretrained`.
Built in: notebooks 03 and 13.
Imports:  torch, gpt2.llmc, gpt2.model, gpt2.modern, gpt2.parts, gpt2.published, gpt2.run.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from gpt2.llmc import read_llmc
from gpt2.model import GPT, GPTConfig
from gpt2.modern import MODEL_TYPE, Modern, ModernConfig
from gpt2.parts import Parts
from gpt2.published import read_tensors
from gpt2.run import Model


def build(config: GPTConfig) -> GPT | Modern:
    """The model of a configuration, with random weights."""
    return Modern(config) if isinstance(config, ModernConfig) else GPT(config)


def make_config(model: Model, parts: Parts) -> GPTConfig:
    """The configuration of a run: GPT-2's own where every part is GPT-2's. ValueError where it can't be built."""
    sizes = {k: v for k, v in dataclasses.asdict(model).items() if k != "init" and v is not None}
    if parts == Parts():
        return GPTConfig.from_descriptor(model.init, **sizes)
    return ModernConfig.from_descriptor(model.init, parts=parts, **sizes)  # type: ignore[arg-type]


def read_config(values: dict[str, Any]) -> GPTConfig:
    """The configuration whose fields were written as JSON. Raises TypeError or ValueError where it is none."""
    if "parts" not in values:
        return GPTConfig(**values)
    parts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values["parts"].items()}
    return ModernConfig(**{**values, "parts": Parts(**parts)})


def from_pretrained(name: str) -> GPT | Modern:
    """A model from a folder (ours, or in the Hugging Face layout), a .bin of llm.c, or the hub by name.

    Raises FileNotFoundError where there is none, ValueError where it holds another architecture.
    """
    if name.endswith(".bin"):
        return read_llmc(Path(name))
    config_file = Path(name, "config.json")
    values = json.loads(config_file.read_text()) if config_file.exists() else {}
    if values.pop("model_type", None) != MODEL_TYPE:
        return GPT.from_pretrained(name)
    config = read_config(values)
    with torch.device("meta"):
        model = build(config)
    tensors = read_tensors(Path(name))
    for table in ("transformer.wte.weight", "lm_head.weight"):
        if table in tensors:
            tensors[table] = F.pad(tensors[table], (0, 0, 0, config.padded_vocab_size - tensors[table].size(0)))
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return model.requires_grad_(True)
