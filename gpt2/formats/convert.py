"""`gpt2 convert`: a trained model in the format of another program."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from gpt2.data.tokenizer import GPT2_VOCAB, MIN_VOCAB
from gpt2.formats import huggingface, llmc, to_gguf, to_onnx
from gpt2.formats.load import encoding_of, from_pretrained, pretrained_config
from gpt2.model import GPT
from gpt2.modern.model import Modern
from gpt2.system.errors import UserError

Dtype = Literal["fp32", "bf16"]
Writer = Callable[[GPT | Modern, Path, Dtype], None]


def _write_folder(model: GPT | Modern, out: Path, dtype: Dtype) -> None:
    huggingface.save_pretrained(model, out, torch.bfloat16 if dtype == "bf16" else torch.float32)


def _write_onnx(model: GPT | Modern, out: Path, dtype: Dtype) -> None:
    if dtype == "bf16":
        raise UserError("ONNX is written in fp32, since few runtimes compute in bf16; leave --dtype out")
    to_onnx.write_model(model, out)


# format → how the name of its file ends ("" for a folder), and what writes it
FORMATS: dict[str, tuple[str, Writer]] = {
    "huggingface": ("", _write_folder),
    "llmc": (".bin", llmc.write_model),
    "onnx": (".onnx", _write_onnx),
    "gguf": (".gguf", to_gguf.write_model),
}
OTHER_FILES = (".pt", ".pth", ".safetensors")


@dataclass(frozen=True)
class Options:
    """Write a model for other programs: transformers, llm.c, onnxruntime or llama.cpp."""

    run: Annotated[str, tyro.conf.Positional]
    """Run folder, Hugging Face folder, .bin file of llm.c, or a published name such as gpt2."""
    out: Annotated[Path, tyro.conf.Positional]
    """The file or folder to write. Its end says which format: .bin, .onnx, .gguf; all else is a folder."""
    to: Literal["huggingface", "llmc", "onnx", "gguf"] | None = None
    """huggingface: a folder that transformers opens. llmc: llm.c's .bin. onnx: for onnxruntime. gguf: for llama.cpp
    [what the end of OUT says]."""
    dtype: Dtype = "fp32"
    """bf16 takes half the room; llm.c's CPU program reads fp32, its GPU program bf16. ONNX is always fp32."""
    overwrite: bool = False
    """Replace OUT if it exists."""


def main(options: Options) -> None:
    """Convert, and say what was written. Raises UserError for a model or a file that can't be."""
    name = choose_format(options)
    _require_free(options.run, options.out)
    if not options.overwrite and _is_taken(options.out):
        raise UserError(f"{options.out} exists; name another place, or add --overwrite")
    size = pretrained_config(options.run).vocab_size
    if name == "gguf" or (name == "huggingface" and MIN_VOCAB <= size <= GPT2_VOCAB):
        encoding_of(options.run)  # GPT-2's tokenizer is written too, so it must be the model's
    model = from_pretrained(options.run)
    try:
        FORMATS[name][1](model, options.out, options.dtype)
    except OSError as error:
        raise UserError(f"can't write {options.out} ({error.strerror}); name another place, or make room") from None
    print(f"{options.out}: {model.num_params():,} parameters in {options.dtype}")


def choose_format(options: Options) -> str:
    """The format that `--to` names, or the end of the file. Raises UserError where they contradict each other."""
    out = options.out
    if out.suffix in OTHER_FILES:
        raise UserError(f"{out} is no format of this command; name a folder, or a file that ends in .bin, .onnx, .gguf")
    by_end = next((name for name, (end, _) in FORMATS.items() if end and end == out.suffix), "huggingface")
    name = options.to or by_end
    end = FORMATS[name][0]
    if name != by_end and end:
        raise UserError(f"{out} does not end in {end}, as a file for {name} does; name one that does")
    if name != by_end:
        raise UserError(f"{out} ends like a file for {by_end}; name a folder, or leave --to {name} out")
    return name


def _require_free(run: str, out: Path) -> None:
    """Raise UserError where the new files would damage a run folder, or replace the model that is read."""
    if (out / "log.txt").exists():
        raise UserError(f"{out} is a run folder; name another place")
    if out.name == "model" and all((out.parent / name).exists() for name in ("config.json", "log.txt")):
        raise UserError(f"{out} is the model of a run; name another place")
    if Path(run).exists() and out.resolve().is_relative_to(Path(run).resolve()):
        raise UserError(f"{out} is part of {run}, which is read; name another place")


def _is_taken(out: Path) -> bool:
    """Whether a file stands there, or a folder that is not empty."""
    return any(out.iterdir()) if out.is_dir() else out.exists()
