"""Token shards on disk, in the two formats of the field: write, check, map.

Built in notebooks 06 and 10.

`.npy`  a one-dimensional uint16 array, as build-nanogpt writes.
`.bin`  256 little-endian int32 (magic 20240520, version 1, token count, zeros), then uint16: llm.c, modded-nanogpt.
"""

import glob
import hashlib
import json
import re
from collections.abc import Sequence
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
    """A file of tokens: its path, the byte at which the tokens start, and their number."""

    path: Path
    offset: int
    tokens: int

    def map(self) -> np.ndarray:
        """All tokens (N,) uint16, mapped into memory.

        Copy what you need and drop the map: while it exists, the pages that were read stay in memory.
        """
        return np.memmap(self.path, dtype=TOKEN, mode="r", offset=self.offset, shape=(self.tokens,))

    def read(self, start: int, stop: int) -> np.ndarray:
        """A copy of tokens [start, stop), uint16."""
        return np.array(self.map()[start:stop])


def write_shard(path: str | Path, tokens: np.ndarray) -> None:
    """Write uint16 tokens (N,) as `.npy` or `.bin`, whole or not at all. Raises OSError, e.g. on a full disk."""
    tokens = np.ascontiguousarray(tokens, dtype=TOKEN)
    header = BytesIO()
    if Path(path).suffix == ".npy":
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(tokens))
    else:
        ints = np.zeros(BIN_HEADER_INTS, dtype="<i4")
        ints[:3] = BIN_MAGIC, BIN_VERSION, len(tokens)
        header.write(ints.data)
    # np.save is not used: when the disk fills up, its error has no errno
    write_atomically(path, lambda file: (file.write(header.getbuffer()), file.write(tokens.data)))


def open_shard(path: str | Path) -> Shard:
    """Read a shard's header and check the file's length against it. Raises UserError for any damage."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            tokens = (_npy_header if path.suffix == ".npy" else _bin_header)(file)
            offset = file.tell()
        size = path.stat().st_size
    except Exception as error:  # a damaged .npy header raises errors of numpy, ast or tokenize: no common base
        raise UserError(f"{path} is not a token shard ({error}); make it again with fineweb.py") from None
    if size != offset + tokens * TOKEN.itemsize:
        raise UserError(
            f"{path} is damaged: its header promises {tokens:,} tokens and the file holds "
            f"{max(0, size - offset) // TOKEN.itemsize:,}; delete it and run fineweb.py again"
        )
    return Shard(path, offset, tokens)


def _npy_header(file: Any) -> int:
    """The number of tokens that the header promises. Raises ValueError for any other kind of array."""
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)  # version 2 is for headers of more than 64 kB
    if dtype != TOKEN or len(shape) != 1:
        raise ValueError(f"it holds {dtype} of shape {shape}, not a one-dimensional uint16 array")
    return shape[0]


def _bin_header(file: Any) -> int:
    """The number of tokens that the header promises. Raises ValueError for another format."""
    header = np.frombuffer(file.read(BIN_HEADER_INTS * 4), dtype="<i4")
    if len(header) < BIN_HEADER_INTS or header[0] != BIN_MAGIC:
        raise ValueError(f"it starts with {header[:1].tolist()}, not with the magic number {BIN_MAGIC}")
    if header[1] != BIN_VERSION:
        raise ValueError(f"its format is version {header[1]}, not {BIN_VERSION}")
    return int(header[2])


def find_shards(where: str | Path, split: str, vocab_size: int | None = None) -> list[Shard]:
    """The shards of `split` (train, val or test) in a folder, or that match a glob pattern, in the order of names.

    The file name of a shard contains its split. A file that a pattern matches and whose name contains none belongs to
    any split. With `vocab_size`, shards of another vocabulary are refused.
    Raises UserError if no shard is found, one is damaged, or one has another vocabulary.
    """
    folder = Path(where)
    if folder.is_dir():
        paths = [p for p in folder.iterdir() if p.suffix in (".npy", ".bin") and split in _splits_in(p.stem)]
    else:
        paths = [Path(p) for p in glob.glob(str(where)) if split in (_splits_in(Path(p).stem) or {split})]
    if not paths:
        extra = f" --vocab-size {vocab_size}" if vocab_size else ""
        extra += " --test" if split == "test" else ""
        pattern = glob.has_magic(str(where))
        command = f"python fineweb.py --source stories{extra} --out {folder.parent if pattern else folder}"
        flag = "; or name them with --data.val-shards" if pattern and split == "val" else ""
        raise UserError(f"no {split} shards in {str(where)!r}; make some with: {command}{flag}")
    shards = [open_shard(path) for path in sorted(paths)]
    if vocab_size is not None:
        _check_vocabulary(shards, vocab_size)
    return shards


def _splits_in(name: str) -> set[str]:
    """The splits that a file name contains as words: `fineweb_train_000001` → {"train"}."""
    return {"train", "val", "test"} & set(re.split("[_.-]", name))


def _check_vocabulary(shards: Sequence[Shard], vocab_size: int) -> None:
    """Raise UserError if an index beside the shards, or the first million tokens of one, show another vocabulary."""
    for index in sorted({index for shard in shards for index in shard.path.parent.glob("index*.json")}):
        made_with = read_index(index).get("vocab_size")
        if made_with not in (None, vocab_size):
            raise UserError(
                f"the shards in {index.parent} were made with a vocabulary of {made_with}, the model's is {vocab_size}"
                f"; give --model.vocab-size {made_with}, or make others with fineweb.py --vocab-size {vocab_size}"
            )
    for shard in shards:
        largest = int(shard.read(0, 2**20).max(initial=0))
        if largest >= vocab_size:
            raise UserError(
                f"{shard.path} holds token {largest}, but the model's vocabulary has {vocab_size}; "
                "give --model.vocab-size of the tokenizer that made the shards"
            )


def write_index(path: Path, index: dict[str, Any]) -> None:
    """Write the JSON index of a folder of shards: tokenizer, vocabulary size, and one record per shard."""
    write_atomically(path, json.dumps(index, indent=1).encode() + b"\n")


def read_index(path: Path) -> dict[str, Any]:
    """Read what `write_index` wrote. Raises UserError for anything else."""
    try:
        index = json.loads(path.read_text())
        if not isinstance(index, dict) or "shards" not in index:
            raise ValueError("it names no shards")
        return index
    except ValueError as error:
        raise UserError(f"{path} is not a shard index ({error}); delete it and run fineweb.py again") from None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
