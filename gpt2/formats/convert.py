"""`gpt2 convert`: a trained model as a file for llm.c."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gpt2.formats import llmc
from gpt2.formats.load import from_pretrained
from gpt2.system.errors import UserError


@dataclass(frozen=True)
class Options:
    """Write a model as a .bin file for llm.c."""

    run: Annotated[str, tyro.conf.Positional]
    """Run folder, Hugging Face folder, .bin file of llm.c, or a published name such as gpt2."""
    out: Annotated[Path, tyro.conf.Positional]
    """The file to write; llm.c and this trainer recognise it by the ending .bin."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """fp32 for llm.c's CPU program, bf16 for its GPU program."""


def main(options: Options) -> None:
    """Convert, and say what was written. Raises UserError for a model or a file that can't be."""
    if options.out.suffix != ".bin":
        raise UserError(f"{options.out} does not end in .bin, by which llm.c knows a checkpoint; name it so")
    model = from_pretrained(options.run)
    try:
        llmc.write_model(model, options.out, options.dtype)
    except OSError as error:
        raise UserError(f"can't write {options.out} ({error.strerror}); name another file, or make room") from None
    print(f"{options.out}: {model.num_params():,} parameters in {options.dtype}")
