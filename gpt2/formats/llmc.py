"""llm.c's `.bin` file of a GPT-2, written and read: llm.c starts from our weights, and we from llm.c's.

The format: 256 little-endian int32 (magic 20240326; version 3 for fp32, 5 for bf16; block_size, vocab_size, n_layer,
n_head, n_embd, rows of the token embedding; zeros). Then every tensor follows as a Linear layer holds it, (out, in):
both embeddings, each of the twelve tensors of a block for all layers in turn, the last LayerNorm. llm.c's CPU program
reads version 3; its GPU program reads the version that it was compiled for, by default bf16.
Source: llm.c, `write_model` in train_gpt2.py and `gpt2_build_from_checkpoint` in train_gpt2.c.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gpt2.formats.build import build_empty, build_from_tensors, require_gpt2
from gpt2.model import GPT, GPTConfig
from gpt2.modern.model import Modern
from gpt2.system.errors import UserError
from gpt2.system.files import write_atomically

MAGIC, HEADER_INTS = 20240326, 256
PADDING = 128  # llm.c rounds the rows of the token embedding up to a multiple of this
VERSIONS = {"fp32": 3, "bf16": 5}
DTYPES = {3: torch.float32, 5: torch.bfloat16}  # version → precision of the weights
SIZES = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
TABLE = "transformer.wte.weight"


def write_model(model: GPT | Modern, path: str | Path, dtype: Literal["fp32", "bf16"] = "fp32") -> None:
    """Write `model` to `path`, whole or not at all; the padding rows of its token embedding become zeros.

    Raises UserError for a model that isn't GPT-2 as published, and OSError, e.g. on a full disk.
    """
    config, state = model.config, model.state_dict()
    require_gpt2(config, "llm.c's format holds")
    rows = -(-config.vocab_size // PADDING) * PADDING
    state[TABLE] = F.pad(state[TABLE][: config.vocab_size], (0, 0, 0, rows - config.vocab_size))
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:8] = MAGIC, VERSIONS[dtype], *(getattr(config, name) for name in SIZES), rows

    def write(file: BinaryIO) -> None:
        """The header, then the tensors in their order, one at a time."""
        file.write(header.data)
        for name, _ in _tensors_in_order(config, rows):
            tensor = state[name].to("cpu", DTYPES[VERSIONS[dtype]]).contiguous()
            file.write(tensor.view(torch.uint8).numpy().data)

    write_atomically(path, write)


def read_config(path: Path) -> GPTConfig:
    """The configuration of the model in `path`. Raises UserError as `read_model`."""
    return _read_header(path)[0]


def read_model(path: Path) -> GPT | Modern:
    """The model in `path`, its weights in fp32. Raises UserError where the file is missing, damaged, something else."""
    config, rows, dtype = _read_header(path)
    C = config.n_embd
    numbers = (rows + config.block_size) * C + config.n_layer * (12 * C**2 + 13 * C) + 2 * C
    expected, found = HEADER_INTS * 4 + numbers * dtype.itemsize, path.stat().st_size
    if expected != found:
        raise UserError(
            f"{path} is damaged: its header promises {expected:,} bytes and it has {found:,}; copy or write it again"
        )
    tensors: dict[str, Tensor] = {}
    with open(path, "rb") as file:
        file.seek(HEADER_INTS * 4)
        for name, shape in _tensors_in_order(config, rows):
            content = bytearray(file.read(shape.numel() * dtype.itemsize))
            tensors[name] = torch.frombuffer(content, dtype=dtype).view(shape)
    return build_from_tensors(config, tensors)


def _tensors_in_order(config: GPTConfig, rows: int) -> Iterator[tuple[str, torch.Size]]:
    """Name and shape of every tensor, in the order of a file whose token embedding has `rows` rows.

    That is the order of our modules, except that each tensor of a block comes for all layers in turn.
    """
    one_layer = build_empty(dataclasses.replace(config, n_layer=1)).state_dict()
    one_layer[TABLE] = one_layer[TABLE].new_empty(rows, config.n_embd)
    for name, tensor in one_layer.items():
        for layer in range(config.n_layer if ".h.0." in name else 1):
            yield name.replace(".h.0.", f".h.{layer}."), tensor.shape


def _read_header(path: Path) -> tuple[GPTConfig, int, torch.dtype]:
    """Configuration, rows of the token embedding, and precision of a file. Raises UserError as `read_model`."""
    if not path.is_file():
        raise UserError(f"no file {path}; gpt2 convert RUN {path} writes one from a run of this trainer")
    header = np.fromfile(path, "<i4", HEADER_INTS).tolist()
    if header[:1] != [MAGIC]:
        raise UserError(f"{path} is no checkpoint of llm.c: it starts with {header[:1]}, not with {MAGIC}")
    if len(header) < HEADER_INTS:
        raise UserError(f"{path} is damaged: it ends within its header; copy or write it again")
    version, sizes, rows = header[1], header[2:7], header[7]
    if version not in DTYPES:
        raise UserError(f"{path} has version {version} of llm.c's format; 3 (fp32) and 5 (bf16) can be read")
    try:
        config = GPTConfig(**dict(zip(SIZES, sizes, strict=True)))
    except ValueError as error:
        raise UserError(f"the header of {path} is damaged: {error}; copy or write it again") from None
    if rows < config.vocab_size:
        raise UserError(f"the header of {path} is damaged: {rows} rows for a vocabulary of {config.vocab_size}")
    return config, rows, DTYPES[version]
