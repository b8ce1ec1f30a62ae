"""llm.c's `.bin` checkpoint of a GPT-2, written and read: llm.c starts from our weights, and we from llm.c's.

Holds:    `write_llmc`, `read_llmc`, and `python -m gpt2.llmc RUN OUT.bin --dtype bf16`.
Built in: notebook 13.
Imports:  numpy, torch, tyro, gpt2.errors, gpt2.files, gpt2.model, gpt2.parts (and gpt2.generate, as a command).

The format: 256 little-endian int32 (magic 20240326; version 3 for fp32, 5 for bf16; block_size, vocab_size, n_layer,
n_head, n_embd, rows of the token table; zeros), then every tensor as a Linear layer holds it, (out, in): both tables,
each of the twelve tensors of a block for all layers in turn, the last norm. llm.c's CPU program reads version 3; on a
GPU it reads the version that it was compiled for, bf16 unless told otherwise.
Source: llm.c, `write_model` in train_gpt2.py and `gpt2_build_from_checkpoint` in train_gpt2.c.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2.errors import UserError, run_command
from gpt2.files import write_whole
from gpt2.model import GPT, GPTConfig
from gpt2.parts import Parts

MAGIC, HEADER_INTS = 20240326, 256
PADDING = 128  # llm.c rounds the rows of the token table up to a multiple of this
VERSIONS = {"fp32": 3, "bf16": 5}
SIZES = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")


def tensors_of(config: GPTConfig, rows: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor in the order of the file, whose token table has `rows` rows."""
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
    yield "transformer.wte.weight", (rows, C)
    yield "transformer.wpe.weight", (config.block_size, C)
    for name, shape in block.items():
        for layer in range(config.n_layer):
            yield f"transformer.h.{layer}.{name}", shape
    yield "transformer.ln_f.weight", (C,)
    yield "transformer.ln_f.bias", (C,)


def write_llmc(model: nn.Module, path: str | Path, dtype: Literal["fp32", "bf16"] = "fp32") -> None:
    """Write `model` to `path`, whole or not at all, a tensor at a time; the padding rows of its token table as zeros.

    Raises ValueError for a model that isn't GPT-2 as published, OSError, e.g. on a full disk.
    """
    if not isinstance(model, GPT):
        parts = getattr(model.config, "parts", Parts())
        others = [f"{name} {value}" for name, value in vars(parts).items() if value != getattr(Parts(), name)]
        raise ValueError(f"llm.c's format holds GPT-2 as published, not a model with {', '.join(others) or 'parts'}")
    config, state = model.config, model.state_dict()
    rows = -(-config.vocab_size // PADDING) * PADDING
    header = np.zeros(HEADER_INTS, dtype="<i4")
    header[:8] = MAGIC, VERSIONS[dtype], *(getattr(config, name) for name in SIZES), rows

    def write(file: BinaryIO) -> None:
        """The header, then the tensors in their order."""
        file.write(header.data)
        for name, shape in tensors_of(config, rows):
            tensor = state[name]
            if name == "transformer.wte.weight":
                tensor = F.pad(tensor[: config.vocab_size], (0, 0, 0, rows - config.vocab_size))
            assert tensor.shape == shape, (name, tensor.shape, shape)
            file.write(_to_numpy(tensor, dtype).data)

    write_whole(path, write)


def read_llmc(path: str | Path) -> GPT:
    """The model in `path`, its weights in fp32.

    Raises FileNotFoundError where there is no file, ValueError where it is damaged or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; python -m gpt2.llmc RUN {path} writes one from a run of this trainer")
    with open(path, "rb") as file:
        config, rows, dtype = _read_header(file, path)
        promised = _file_bytes(config, rows, dtype)
        if promised != path.stat().st_size:
            raise ValueError(
                f"{path} is damaged: its header promises {promised:,} bytes and it has {path.stat().st_size:,}; "
                "copy or write it again"
            )
        tensors = {name: _from_file(file, shape, dtype) for name, shape in tensors_of(config, rows)}
    table = tensors["transformer.wte.weight"][: config.vocab_size]
    tensors["transformer.wte.weight"] = F.pad(table, (0, 0, 0, config.padded_vocab_size - config.vocab_size))
    with torch.device("meta"):
        model = GPT(config)
    model.load_state_dict(tensors, assign=True)
    return model.requires_grad_(True)


def _read_header(file: BinaryIO, path: Path) -> tuple[GPTConfig, int, str]:
    header = np.fromfile(file, "<i4", HEADER_INTS).tolist()
    if header[:1] != [MAGIC]:
        raise ValueError(f"{path} is no checkpoint of llm.c: it starts with {header[:1]}, not with {MAGIC}")
    if len(header) < HEADER_INTS:
        raise ValueError(f"{path} is damaged: it ends within its header; copy or write it again")
    dtypes = {version: dtype for dtype, version in VERSIONS.items()}
    if header[1] not in dtypes:
        raise ValueError(f"{path} has version {header[1]} of llm.c's format; 3 (fp32) and 5 (bf16) can be read")
    try:
        config, rows = GPTConfig(**dict(zip(SIZES, header[2:7], strict=True))), header[7]
    except ValueError as error:
        raise ValueError(f"the header of {path} is damaged: {error}") from None
    if rows < config.vocab_size:
        raise ValueError(f"the header of {path} is damaged: {rows} rows for a vocabulary of {config.vocab_size}")
    return config, rows, dtypes[header[1]]


def _file_bytes(config: GPTConfig, rows: int, dtype: str) -> int:
    C = config.n_embd
    numbers = (rows + config.block_size) * C + config.n_layer * (12 * C**2 + 13 * C) + 2 * C
    return HEADER_INTS * 4 + numbers * (4 if dtype == "fp32" else 2)


def _to_numpy(tensor: Tensor, dtype: str) -> np.ndarray:
    """The tensor's numbers as the file has them; numpy has no bf16, so those as 16-bit integers."""
    tensor = tensor.detach().cpu().contiguous()
    if dtype == "fp32":
        return tensor.float().numpy()
    return tensor.to(torch.bfloat16).view(torch.int16).numpy()


def _from_file(file: BinaryIO, shape: tuple[int, ...], dtype: str) -> Tensor:
    if dtype == "fp32":
        return torch.from_numpy(np.fromfile(file, "<f4", math.prod(shape))).view(shape)
    return torch.from_numpy(np.fromfile(file, "<i2", math.prod(shape))).view(torch.bfloat16).float().view(shape)


@dataclass(frozen=True)
class Options:
    """Write a model as llm.c's checkpoint."""

    run: Annotated[str, tyro.conf.Positional]
    """Run folder, Hugging Face folder, .bin of llm.c, or a published name such as gpt2."""
    out: Annotated[Path, tyro.conf.Positional]
    """The file to write; llm.c and this trainer know it by the ending .bin."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """fp32 for llm.c's CPU program, bf16 for its GPU program."""


def main() -> None:
    """`python -m gpt2.llmc`: see `Options`."""
    from gpt2.generate import load

    options = tyro.cli(Options, prog="python -m gpt2.llmc")
    if options.out.suffix != ".bin":
        raise UserError(f"{options.out} does not end in .bin, by which llm.c knows a checkpoint; name it so")
    model = load(options.run)
    try:
        write_llmc(model, options.out, options.dtype)
    except ValueError as error:
        raise UserError(f"{options.run}: {error}") from None
    except OSError as error:
        raise UserError(f"can't write {options.out} ({error.strerror}); name another file, or make room") from None
    print(f"{options.out}: {model.num_params():,} parameters in {options.dtype}")


if __name__ == "__main__":
    run_command(main)
