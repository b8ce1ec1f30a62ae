"""`gpt2 check`: compare every shard of a folder with the index that describes it."""

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
    """Print that all is well. Raises UserError without an index, and with one sentence per shard that differs."""
    if not list(options.folder.glob("index*.json")):
        raise UserError(f"{options.folder} has no index; name one folder of shards, such as data/stdlib")
    if problems := check_folder(options.folder):
        raise UserError("; ".join(problems))
    print(f"{options.folder}: every shard is as its index describes")


def check_folder(folder: Path) -> list[str]:
    """Compare every shard with its record in the folder's indexes; return one sentence per shard that differs."""
    problems = []
    for index in sorted(folder.glob("index*.json")):
        for record in read_index(index)["shards"]:
            path = folder / record["name"]
            try:
                if open_shard(path).tokens != record["tokens"] or sha256_of(path) != record["sha256"]:
                    problems.append(
                        f"{path} differs from its record in {index.name}; delete it and run fineweb.py again"
                    )
            except UserError as error:
                problems.append(str(error))
    return problems
