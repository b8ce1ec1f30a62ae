"""Token shards on disk, in the two formats of the field: write, check, map.

Built in notebooks 06 and 10.

`.npy`  a one-dimensional uint16 array, as build-nanogpt writes.
`.bin`  256 little-endian int32 (magic 20240520, version 1, token count, zeros), then uint16: llm.c, modded-nanogpt.
"""

import glob
import hashlib
import json
import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.system.errors import UserError
from gpt2.system.files import write_atomically

BIN_MAGIC, BIN_VERSION, BIN_HEADER_INTS = 20240520, 1, 256
TOKEN = np.dtype("<u2")


@dataclass(frozen=True)
class Shard:
    """One file of tokens: where it is, where its tokens start (bytes), and how many there are."""

    path: Path
    offset: int
    tokens: int

    def map(self) -> np.ndarray:
        """All tokens (N,) uint16, mapped into memory.

        Copy what you need and let the map go: as long as it lives, the pages of what was read stay resident.
        """
        return np.memmap(self.path, dtype=TOKEN, mode="r", offset=self.offset, shape=(self.tokens,))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) as a fresh uint16 array."""
        return np.array(self.map()[start:stop])


def write_shard(path: str | Path, tokens: np.ndarray) -> None:
    """Write uint16 tokens (N,) as `.npy` or `.bin`, whole or not at all. Raises OSError, e.g. on a full disk."""
    tokens = np.ascontiguousarray(tokens, dtype=TOKEN)
    if Path(path).suffix == ".npy":
        head = BytesIO()
        np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(tokens))
        header = head.getbuffer()
    else:
        ints = np.zeros(BIN_HEADER_INTS, dtype="<i4")
        ints[:3] = BIN_MAGIC, BIN_VERSION, len(tokens)
        header = ints.data
    # np.save would report a disk that fills up halfway without its errno, so both formats are written from here
    write_atomically(path, lambda file: (file.write(header), file.write(tokens.data)))


def open_shard(path: str | Path) -> Shard:
    """Read a shard's header and check the file's length against it. Raises UserError for any damage."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            offset, tokens = (_npy_header if path.suffix == ".npy" else _bin_header)(file)
        size = path.stat().st_size
    except Exception as error:  # a damaged .npy header ends in numpy, ast or tokenize: no common base
        raise UserError(f"{path} is no token shard ({error}); make it again with fineweb.py") from None
    if size != offset + tokens * TOKEN.itemsize:
        kept = max(0, size - offset) // TOKEN.itemsize
        raise UserError(
            f"{path} is damaged: its header promises {tokens:,} tokens and the file holds {kept:,}; "
            "delete it and run fineweb.py again"
        )
    return Shard(path, offset, tokens)


def _npy_header(file: Any) -> tuple[int, int]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype != TOKEN or len(shape) != 1:
        raise ValueError(f"it holds {dtype} of shape {shape}, not one line of uint16")
    return file.tell(), shape[0]


def _bin_header(file: Any) -> tuple[int, int]:
    header = np.frombuffer(file.read(BIN_HEADER_INTS * 4), dtype="<i4")
    if len(header) < BIN_HEADER_INTS or header[0] != BIN_MAGIC:
        raise ValueError(f"it starts with {header[:1].tolist()}, not with the magic number {BIN_MAGIC}")
    if header[1] != BIN_VERSION:
        raise ValueError(f"its format is version {header[1]}, not {BIN_VERSION}")
    return file.tell(), int(header[2])


def find_shards(where: str | Path, split: str, vocab_size: int | None = None) -> list[Shard]:
    """Open the shards of `split` (`train` or `val`) in a folder, or all that match a glob pattern, in name order.

    In a folder a shard's split is the part `train` or `val` of its name. With `vocab_size`, shards that were made
    with another vocabulary are refused: by the index where there is one, else by the tokens at their start.
    Raises UserError where there is no shard, a damaged one, or one of another vocabulary.
    """
    folder = Path(where)
    if folder.is_dir():
        named = re.compile(rf"(^|[_-]){split}([_.-]|$)")
        paths = sorted(p for p in folder.iterdir() if p.suffix in (".npy", ".bin") and named.search(p.stem))
    else:
        paths = sorted(Path(p) for p in glob.glob(str(where)))
    if not paths:
        raise UserError(
            f"no {split} shards in {str(where)!r}; make some with: python fineweb.py --source stdlib --out {where}"
        )
    if vocab_size is not None:
        for parent in {path.parent for path in paths}:
            _check_index(parent, vocab_size)
    shards = [open_shard(path) for path in paths]
    for shard in shards:
        largest = int(shard.read(0, min(shard.tokens, 2**20)).max(initial=0)) if vocab_size is not None else 0
        if vocab_size is not None and largest >= vocab_size:
            raise UserError(
                f"{shard.path} holds token {largest}, but the model's vocabulary has {vocab_size}; "
                "give --model.vocab-size of the tokenizer that made the shards"
            )
    return shards


def _check_index(folder: Path, vocab_size: int) -> None:
    for path in folder.glob("index*.json"):
        made_with = read_index(path).get("vocab_size")
        if made_with not in (None, vocab_size):
            raise UserError(
                f"the shards in {folder} were made with a vocabulary of {made_with}, the model's is {vocab_size}; "
                f"give --model.vocab-size {made_with}, or make others with fineweb.py --vocab-size {vocab_size}"
            )


def write_index(path: Path, index: dict[str, Any]) -> None:
    """Write the JSON index of a folder of shards: tokenizer, vocabulary size, and a record a shard."""
    write_atomically(path, json.dumps(index, indent=1).encode() + b"\n")


def read_index(path: Path) -> dict[str, Any]:
    """Read what `write_index` wrote. Raises UserError where it is something else."""
    try:
        index = json.loads(path.read_text())
        if not isinstance(index, dict) or "shards" not in index:
            raise ValueError("it names no shards")
        return index
    except ValueError as error:
        raise UserError(f"{path} is not a shard index ({error}); delete it and run fineweb.py again") from None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
        return digest.hexdigest()
