"""GGUF, the format of llama.cpp: a GPT-2 and its tokenizer in one file, written by the package `gguf`.

Matrices are stored as a Linear layer holds them, (out, in). The output head is not stored, because llama.cpp takes the
token embedding where a file has none. Vectors and position embeddings are always fp32, as llama.cpp expects.
Source: llama.cpp, `conversion/gpt2.py` and `src/models/gpt2.cpp`.
"""

import json
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch

from gpt2.data.tokenizer import GPT2_VOCAB, MIN_VOCAB, huggingface_files
from gpt2.formats.build import PADDED, require_gpt2
from gpt2.model import GPT, GPTConfig
from gpt2.modern.model import Modern
from gpt2.system.errors import UserError
from gpt2.system.files import write_atomically

LAYER_NORM_EPS = 1e-5  # of nn.LayerNorm
POSITIONS = "transformer.wpe.weight"


def write_model(model: GPT | Modern, path: str | Path, dtype: Literal["fp32", "bf16"] = "fp32") -> None:
    """Write `model` and its tokenizer to `path`, whole or not at all; `dtype` is the precision of the matrices.

    Raises UserError for a model that isn't GPT-2 as published, for a vocabulary without a tokenizer, and where the
    package is missing. Raises OSError, e.g. on a full disk.
    """
    require_gpt2(model.config, "GGUF's gpt2 is")
    if not MIN_VOCAB < model.config.vocab_size <= GPT2_VOCAB:  # llama.cpp opens no tokenizer without merges
        raise UserError(
            f"a GGUF file holds the tokenizer, and llama.cpp has none for a vocabulary of {model.config.vocab_size}; "
            f"give a model whose vocabulary has {MIN_VOCAB + 1} to {GPT2_VOCAB} tokens"
        )
    gguf = _package()

    def write(file: Any) -> None:
        """Through the package, which opens files by name."""
        writer = gguf.GGUFWriter(file.name, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.GPT2])
        _add_config(gguf, writer, model.config, dtype)
        _add_tokenizer(gguf, writer, model.config.vocab_size)
        _add_tensors(gguf, writer, model, dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    write_atomically(path, write)


def _package() -> ModuleType:
    """The package `gguf`, imported where it is needed. Raises UserError where it is missing."""
    try:
        import gguf
    except ImportError:
        raise UserError("GGUF files need the package gguf, which is not installed; run: pip install gguf") from None
    module: ModuleType = gguf
    return module


def _add_config(gguf: ModuleType, writer: Any, config: GPTConfig, dtype: str) -> None:
    """The sizes of the model, and which precision most of its weights have."""
    writer.add_name(f"GPT-2, {config.n_layer} layers, {config.n_embd} wide")
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(LAYER_NORM_EPS)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if dtype == "bf16" else gguf.LlamaFileType.ALL_F32)


def _add_tokenizer(gguf: ModuleType, writer: Any, vocab_size: int) -> None:
    """The tokens as GPT-2's files spell them, and the merges; `<|endoftext|>`, the last token, is not text."""
    files = huggingface_files(vocab_size)
    tokens, end_of_text = list(json.loads(files["vocab.json"])), vocab_size - 1
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * end_of_text + [gguf.TokenType.CONTROL])
    writer.add_token_merges(files["merges.txt"].splitlines()[1:])  # the first line is a version
    writer.add_bos_token_id(end_of_text)
    writer.add_eos_token_id(end_of_text)
    writer.add_add_bos_token(False)


def _add_tensors(gguf: ModuleType, writer: Any, model: GPT | Modern, dtype: str) -> None:
    """Every weight under llama.cpp's name for it, without the padding rows of the token embedding."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, model.config.n_layer)
    for name, tensor in model.state_dict().items():
        rows = tensor[: model.config.vocab_size] if name in PADDED else tensor
        values = rows.detach().to("cpu", torch.float32).contiguous().numpy()
        small = values.ndim == 1 or name == POSITIONS
        kind = gguf.GGMLQuantizationType.BF16 if dtype == "bf16" and not small else gguf.GGMLQuantizationType.F32
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(theirs, gguf.quantize(values, kind), raw_dtype=kind)
