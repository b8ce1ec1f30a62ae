"""llm.c's `.bin` file of a GPT-2, written and read: llm.c starts from our weights, and we from llm.c's.

The format: 256 little-endian int32 (magic 20240326; version 3 for fp32, 5 for bf16; block_size, vocab_size, n_layer,
n_head, n_embd, rows of the token embedding; zeros). Then every tensor follows as a Linear layer holds it, (out, in):
both embeddings, each of the twelve tensors of a block for all layers in turn, the last LayerNorm. llm.c's CPU program
reads version 3; its GPU program reads the version that it was compiled for, by default bf16.
Source: llm.c, `write_model` in train_gpt2.py and `gpt2_build_from_checkpoint` in train_gpt2.c.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gpt2.formats.build import build_from_tensors
from gpt2.model import GPT, GPTConfig
from gpt2.modern.model import Modern
from gpt2.modern.parts import Parts
from gpt2.system.errors import UserError
from gpt2.system.files import write_atomically

MAGIC, HEADER_INTS = 20240326, 256
PADDING = 128  # llm.c rounds the rows of the token embedding up to a multiple of this
VERSIONS = {"fp32": 3, "bf16": 5}
SIZES = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
TABLE = "transformer.wte.weight"


def tensor_shapes(config: GPTConfig, rows: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor in the order of the file, whose token embedding has `rows` rows."""
    C = config.n_embd
    block: dict[str, tuple[int, ...]] = {
        "ln_1.weight": (C,),
        "ln_1.bias": (C,),
        "attn.c_attn.weight": (3 * C, C),
        "attn.c_attn.bias": (3 * C,),
        "attn.c_proj.weight": (C, C),
        "attn.c_proj.bias": (C,),
        "ln_2.weight": (C,),
        "ln_2.bias": (C,),
        "mlp.c_fc.weight": (4 * C, C),
        "mlp.c_fc.bias": (4 * C,),
        "mlp.c_proj.weight": (C, 4 * C),
        "mlp.c_proj.bias": (C,),
    }
    yield TABLE, (rows, C)
    yield "transformer.wpe.weight", (config.block_size, C)
    for name, shape in block.items():
        for layer in range(config.n_layer):
            yield f"transformer.h.{layer}.{name}", shape
    yield "transformer.ln_f.weight", (C,)
    yield "transformer.ln_f.bias", (C,)


def write_model(model: GPT | Modern, path: str | Path, dtype: Literal["fp32", "bf16"] = "fp32") -> None:
    """Write `model` to `path`, whole or not at all; the padding rows of its token embedding become zeros.

    Raises UserError for a model that isn't GPT-2 as published, and OSError, e.g. on a full disk.
    """
    if not isinstance(model, GPT):
        others = [
            f"{name} {value}" for name, value in vars(model.config.parts).items() if value != getattr(Parts(), name)
        ]
        raise UserError(
            f"llm.c's format holds GPT-2 as published, not a model with {', '.join(others) or 'parts'}; "
            "give a run of a GPT-2"
        )
    config, state = model.config, model.state_dict()
    rows = -(-config.vocab_size // PADDING) * PADDING
    state[TABLE] = F.pad(state[TABLE][: config.vocab_size], (0, 0, 0, rows - config.vocab_size))
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:8] = MAGIC, VERSIONS[dtype], *(getattr(config, name) for name in SIZES), rows

    def write(file: BinaryIO) -> None:
        """The header, then the tensors in their order, one at a time."""
        file.write(header.data)
        for name, shape in tensor_shapes(config, rows):
            assert state[name].shape == shape, (name, state[name].shape, shape)
            file.write(_to_numpy(state[name], dtype).data)

    write_atomically(path, write)


def read_config(path: Path) -> GPTConfig:
    """The configuration of the model in `path`. Raises UserError as `read_model`."""
    if not path.is_file():
        raise UserError(f"no file {path}; gpt2 convert RUN {path} writes one from a run of this trainer")
    with open(path, "rb") as file:
        return _read_header(file, path)[0]


def read_model(path: Path) -> GPT | Modern:
    """The model in `path`, its weights in fp32. Raises UserError where the file is missing, damaged, something else."""
    read_config(path)
    with open(path, "rb") as file:
        config, rows, dtype = _read_header(file, path)
        expected = _file_bytes(config, rows, dtype)
        if expected != path.stat().st_size:
            raise UserError(
                f"{path} is damaged: its header promises {expected:,} bytes and it has {path.stat().st_size:,}; "
                "copy or write it again"
            )
        return build_from_tensors(
            config, {name: _from_file(file, shape, dtype) for name, shape in tensor_shapes(config, rows)}
        )


def _read_header(file: BinaryIO, path: Path) -> tuple[GPTConfig, int, str]:
    """Configuration, rows of the token embedding, and dtype. Raises UserError."""
    header = np.fromfile(file, "<i4", HEADER_INTS).tolist()
    if header[:1] != [MAGIC]:
        raise UserError(f"{path} is no checkpoint of llm.c: it starts with {header[:1]}, not with {MAGIC}")
    if len(header) < HEADER_INTS:
        raise UserError(f"{path} is damaged: it ends within its header; copy or write it again")
    dtypes = {version: dtype for dtype, version in VERSIONS.items()}
    if header[1] not in dtypes:
        raise UserError(f"{path} has version {header[1]} of llm.c's format; 3 (fp32) and 5 (bf16) can be read")
    try:
        config, rows = GPTConfig(**dict(zip(SIZES, header[2:7], strict=True))), header[7]
    except ValueError as error:
        raise UserError(f"the header of {path} is damaged: {error}; copy or write it again") from None
    if rows < config.vocab_size:
        raise UserError(f"the header of {path} is damaged: {rows} rows for a vocabulary of {config.vocab_size}")
    return config, rows, dtypes[header[1]]


def _file_bytes(config: GPTConfig, rows: int, dtype: str) -> int:
    C = config.n_embd
    numbers = (rows + config.block_size) * C + config.n_layer * (12 * C**2 + 13 * C) + 2 * C
    return HEADER_INTS * 4 + numbers * (4 if dtype == "fp32" else 2)


def _to_numpy(tensor: Tensor, dtype: str) -> np.ndarray:
    """The numbers of a tensor as the file has them. NumPy has no bf16, so those become 16-bit integers."""
    tensor = tensor.detach().cpu().contiguous()
    if dtype == "fp32":
        return tensor.float().numpy()
    return tensor.to(torch.bfloat16).view(torch.int16).numpy()


def _from_file(file: BinaryIO, shape: tuple[int, ...], dtype: str) -> Tensor:
    if dtype == "fp32":
        return torch.from_numpy(np.fromfile(file, "<f4", math.prod(shape))).view(shape)
    return torch.from_numpy(np.fromfile(file, "<i2", math.prod(shape))).view(torch.bfloat16).view(shape)
