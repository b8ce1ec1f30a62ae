"""From tokens to a folder of shards, with an index that says where to resume.

Built in notebook 10.
"""

import json
import math
from array import array
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tiktoken
from tqdm import tqdm

from gpt2.data.options import Options
from gpt2.data.pipeline import Piece
from gpt2.data.shards import open_shard, read_index, sha256_of, write_index, write_shard
from gpt2.data.tokenizer import token_bytes
from gpt2.system.errors import UserError


class Limit(NamedTuple):
    """Where a held-out split ends: at the first document after so many tokens, bytes of text, or documents."""

    tokens: float = math.inf
    bytes: float = math.inf
    documents: float = math.inf


NOT_IN_THE_DATA = ("out", "workers", "max_shards", "part")  # options in which runs into one folder may differ


class ShardWriter:
    """Fills one shard after another, and records each in the index.

    Part i of n writes shards i, i + n, … Shard 0 is `val`. If there is a `test` split, its shard has number 0 too.
    """

    def __init__(self, options: Options, folder: Path, encoding: tiktoken.Encoding):
        self.options, self.folder = options, folder
        self.limits = {"val": Limit()}  # where each held-out split ends, in the order in which part 0 writes them
        self.sizes = token_bytes(encoding)
        self.index = folder / ("index.json" if options.parts == 1 else f"index_{options.part}_of_{options.parts}.json")
        self.settings = json.loads(json.dumps({k: v for k, v in asdict(options).items() if k not in NOT_IN_THE_DATA}))
        self.records: list[dict[str, Any]] = []  # of the finished shards
        self.buffer, self.bytes = array("H"), 0  # the tokens of the next shard, and their bytes of text
        self.document, self.inside = 0, 0  # the position in the source: a document, and how many of its tokens
        self.to_skip = 0  # tokens of the first document that an earlier run has written

    @property
    def split(self) -> str:
        """The split of the next shard."""
        held_out = list(self.limits)
        return held_out[len(self.records)] if self.options.part == 0 and len(self.records) < len(held_out) else "train"

    @property
    def number(self) -> int:
        """The number of the next shard."""
        if self.split == "test":
            return 0
        return self.options.part + self.options.parts * sum(record["split"] != "test" for record in self.records)

    @property
    def full(self) -> bool:
        """Whether there are --max-shards train shards."""
        train = sum(record["split"] == "train" for record in self.records)
        return self.options.max_shards is not None and train >= self.options.max_shards

    def resume(self) -> bool:
        """Keep the whole shards of an earlier run, and continue where they end. Return whether that run had finished.

        Raises UserError if the folder was made with other settings.
        """
        defaults = json.loads(json.dumps(asdict(Options())))
        for path in self.folder.glob("index*.json"):  # of every part
            made_with = read_index(path).get("settings", {})
            made_with = made_with and defaults | made_with  # an option that did not exist then had its default
            for name, value in self.settings.items():
                if made_with.get(name) != value:
                    raise UserError(
                        f"{self.folder} holds shards made with {name} {made_with.get(name)}, not {value}; "
                        "name another folder with --out, or delete this one"
                    )
        if not self.index.exists():
            return False
        index = read_index(self.index)
        for record in index["shards"]:
            path = self.folder / record["name"]
            if not path.exists() or open_shard(path).tokens != record["tokens"]:
                return False
            self.records.append(record)
            self.document, self.to_skip = record["reached"]
        return index["complete"]

    def add(self, piece: Piece, tokens: np.ndarray) -> int:
        """Append the tokens of a piece, and write every shard that they fill. Return the appended bytes of text."""
        if piece.starts:
            self.document, self.inside = piece.document, 0
            limit = self.limits.get(self.split)
            reached = (len(self.buffer), self.bytes, self.document)
            if limit and self.buffer and any(value >= most for value, most in zip(reached, limit, strict=True)):
                self._close()
        skipped = min(self.to_skip, len(tokens))
        tokens, added = tokens[skipped:], 0
        self.to_skip -= skipped
        self.inside += skipped
        while len(tokens) and not self.full:
            room = len(tokens) if self.split in self.limits else self.options.shard_tokens - len(self.buffer)
            head, tokens = tokens[:room], tokens[room:]
            size = int(self.sizes[head].sum())
            self.buffer.frombytes(head.tobytes())
            self.inside += len(head)
            self.bytes += size
            added += size
            if self.split == "train" and len(head) == room:
                self._close()
        return added

    def finish(self) -> None:
        """Write the last, shorter shard. Raises UserError if there was no text, or none is left for training."""
        if self.split in self.limits and self.buffer:
            held_out = sum(record["tokens"] for record in self.records) + len(self.buffer)
            raise UserError(
                f"all {held_out:,} tokens of the source went to {' and '.join(self.limits)}; "
                "hold out less with --val-tokens, or give more text"
            )
        if self.buffer:
            self._close()
        if not self.records:
            raise UserError(f"the source {self.options.source} holds no text; nothing was written")
        self._write_index(complete=True)

    def _close(self) -> None:
        """Write the shard, then the index that names it. Raises OSError, e.g. on a full disk; whole shards stay."""
        split = self.split
        path = self.folder / f"{split}_{self.number:06d}.{self.options.format}"
        write_shard(path, np.frombuffer(self.buffer, dtype=np.uint16))
        record = {"name": path.name, "split": split, "tokens": len(self.buffer), "bytes": self.bytes}
        self.records.append({**record, "sha256": sha256_of(path), "reached": (self.document, self.inside)})
        tqdm.write(f"{path.name}: {len(self.buffer):,} tokens, {self.bytes / 1e6:.1f} MB of text")
        self._write_index(complete=False)
        self.buffer, self.bytes = array("H"), 0

    def _write_index(self, complete: bool) -> None:
        """Record what the folder holds, and how far each shard reached into the source."""
        vocab_size = self.options.vocab_size
        about = {"tokenizer": "gpt2", "vocab_size": vocab_size, "complete": complete, "settings": self.settings}
        write_index(self.index, {**about, "shards": self.records})
