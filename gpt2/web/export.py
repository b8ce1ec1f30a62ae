"""A model for the browser: `model.json` says what it is, `weights.bin` holds its weights.

    model.json     the sizes, the tokens, and for every tensor its dtype, its shape and its offset in bytes
    weights.bin    little-endian: vectors and scales in fp32, then matrices (out, in), by default in int8

`pages/model.js` and `pages/tokenizer.js` read both. Notebooks 01 to 04 build what they compute. The page computes in
plain JavaScript: an ONNX runtime is a download of 14 MB, and returns no intermediate activations.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gpt2.data.tokenizer import get_encoding
from gpt2.formats.build import PADDED, require_gpt2
from gpt2.formats.load import encoding_of, from_pretrained, pretrained_config
from gpt2.formats.packed import PackedWeight
from gpt2.model import GPT
from gpt2.modern.model import Modern
from gpt2.system.errors import UserError
from gpt2.system.files import write_atomically
from gpt2.web.server import PAGES

# what the page consists of
SCRIPTS = (
    *("attention", "model", "panels", "playground", "reader"),
    *("sampling", "session", "tokenizer", "worker", "writer"),
)
FILES = ("playground.html", "page.css", "playground.css", *(f"{name}.js" for name in SCRIPTS))
FOLDERS = ("model", "compare")  # of the model, and of a second one beside it


@dataclass(frozen=True)
class WebModel:
    """A model as the page reads it: the content of `model.json`, and of `weights.bin`."""

    description: dict[str, Any]
    weights: bytes

    def files(self) -> dict[str, bytes]:
        """Name → content."""
        return {"model.json": json.dumps(self.description).encode(), "weights.bin": self.weights}


def export(run: str, weights: Literal["int8", "fp32"] = "int8") -> WebModel:
    """The model that `from_pretrained(run)` opens. Raises UserError for one that the page can't run."""
    require_gpt2(pretrained_config(run), "the page runs")  # before the weights, which may be large
    encoding_of(run)
    name = Path(run).name or Path(run).resolve().name
    return describe(from_pretrained(run), name, weights)


def describe(model: GPT | Modern, name: str, weights: Literal["int8", "fp32"] = "int8") -> WebModel:
    """A model with GPT-2's parts and a vocabulary of GPT-2's merges, as the page reads it.

    Raises UserError for weights that are not finite.
    """
    config = model.config
    tensors: dict[str, dict[str, Any]] = {}
    vectors, matrices = bytearray(), bytearray()
    for tensor_name, p in model.state_dict().items():
        tensor = p[: config.vocab_size] if tensor_name in PADDED else p
        if not tensor.isfinite().all():
            raise UserError(f"{name} has weights that are not finite, in {tensor_name}; give an earlier checkpoint")
        entry: dict[str, Any] = {"dtype": "fp32", "shape": list(tensor.shape), "offset": len(vectors)}
        if tensor.dim() == 2 and weights == "int8":
            packed = PackedWeight.pack(tensor)
            entry |= {"dtype": "int8", "scales": len(vectors), "offset": len(matrices)}
            vectors += _bytes(packed.scales.float())
            matrices += _bytes(packed.as_subclass(Tensor))
        else:
            vectors += _bytes(tensor.float())
        tensors[tensor_name] = entry
    for entry in tensors.values():
        entry["offset"] += len(vectors) if entry["dtype"] == "int8" else 0
    content = bytes(vectors + matrices)
    description = {
        "name": name,
        "weights": f"weights.bin?{hashlib.sha256(content).hexdigest()[:16]}",  # no older file from a browser's cache
        "parameters": model.num_params(),
        "config": {key: value for key, value in asdict(config).items() if key != "parts"},
        "tokens": list(_tokens(config.vocab_size)),
        "bytes": len(content),
        "tensors": tensors,
    }
    return WebModel(description, content)


def _bytes(tensor: Tensor) -> bytes:
    values = tensor.detach().cpu().contiguous().numpy()
    return values.astype(np.int8 if tensor.dtype == torch.int8 else "<f4").tobytes()


def _tokens(vocab_size: int) -> Iterator[str]:
    """The bytes of every token but the end of text, one character per byte."""
    encoding = get_encoding(vocab_size)
    for token in range(vocab_size - 1):
        yield encoding.decode_single_token_bytes(token).decode("latin-1")


def settings(models: int, lessons: str | None = None) -> dict[str, Any]:
    """The content of `playground.json`: where the page finds its models, and the lessons if there are any beside it."""
    return {"models": [f"{folder}/" for folder in FOLDERS[:models]], "lessons": lessons}


def write_playground(
    folder: Path, runs: list[str], weights: Literal["int8", "fp32"] = "int8", lessons: str | None = None
) -> None:
    """Write the page and its models (one, or two to compare) into a folder that any web server can serve.

    `lessons` is the address, relative to the page, of a folder with the lessons as pages. Raises UserError for a model
    that the page can't run, and OSError.
    """
    models = [export(run, weights) for run in runs]
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(PAGES / name, folder / name)
    write_atomically(folder / "playground.json", json.dumps(settings(len(models), lessons)).encode())
    for name, model in zip(FOLDERS, models, strict=False):
        (folder / name).mkdir(exist_ok=True)
        for file_name, content in model.files().items():
            write_atomically(folder / name / file_name, content)
