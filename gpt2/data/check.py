"""`gpt2 check`: every shard of a folder compared with the index that describes it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gpt2.data.shards import open_shard, read_index, sha256_of
from gpt2.system.errors import UserError


@dataclass(frozen=True)
class Options:
    """Compare every shard of a folder with its index."""

    folder: Annotated[Path, tyro.conf.Positional]
    """A folder that fineweb.py filled."""


def main(options: Options) -> None:
    """Print that all is well. Raises UserError with a sentence for each shard that differs, or without an index."""
    if not list(options.folder.glob("index*.json")):
        raise UserError(f"{options.folder} has no index; name one folder of shards, such as data/stdlib")
    if wrong := check_folder(options.folder):
        raise UserError("; ".join(wrong))
    print(f"{options.folder}: every shard is as its index describes")


def check_folder(folder: Path) -> list[str]:
    """Compare every shard that an index of `folder` names with its record; return a sentence for each that differs."""
    wrong = []
    for index in sorted(folder.glob("index*.json")):
        for record in read_index(index)["shards"]:
            path = folder / record["name"]
            try:
                tokens = open_shard(path).tokens
            except UserError as error:
                wrong.append(str(error))
                continue
            if tokens != record["tokens"] or sha256_of(path) != record["sha256"]:
                wrong.append(f"{path} is not the file that its index describes; delete both and run fineweb.py again")
    return wrong
