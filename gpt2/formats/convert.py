"""`gpt2 convert`: a trained model as a Hugging Face folder, or as a file for llm.c."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from gpt2.formats import llmc
from gpt2.formats.huggingface import save_pretrained
from gpt2.formats.load import from_pretrained
from gpt2.system.errors import UserError

OTHER_FILES = (".pt", ".pth", ".safetensors", ".gguf", ".onnx")


@dataclass(frozen=True)
class Options:
    """Write a model as a Hugging Face folder, or as a .bin file for llm.c."""

    run: Annotated[str, tyro.conf.Positional]
    """Run folder, Hugging Face folder, .bin file of llm.c, or a published name such as gpt2."""
    out: Annotated[Path, tyro.conf.Positional]
    """The folder to write; or the file, if it ends in .bin, by which llm.c and this trainer recognise it."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """bf16 takes half the room; llm.c's CPU program reads fp32, its GPU program bf16."""


def main(options: Options) -> None:
    """Convert, and say what was written. Raises UserError for a model or a file that can't be."""
    if options.out.suffix in OTHER_FILES:
        raise UserError(f"{options.out} is no format of this command; name a folder, or a file that ends in .bin")
    model = from_pretrained(options.run)
    try:
        if options.out.suffix == ".bin":
            llmc.write_model(model, options.out, options.dtype)
        else:
            save_pretrained(model, options.out, torch.bfloat16 if options.dtype == "bf16" else torch.float32)
    except OSError as error:
        raise UserError(f"can't write {options.out} ({error.strerror}); name another place, or make room") from None
    print(f"{options.out}: {model.num_params():,} parameters in {options.dtype}")
