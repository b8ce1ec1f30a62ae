"""Where text comes from. Every source gives its documents in an order that is the same on every run.

Built in notebook 10.
"""

import contextlib
import glob
import gzip
import hashlib
import io
import itertools
import json
import lzma
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gpt2.data.shards import open_shard
from gpt2.system.errors import UserError

PLAIN, RECORDS = (".txt", ".md", ".py"), (".jsonl", ".json", ".parquet")
KINDS = (*PLAIN, *RECORDS)  # of files
STDLIB_LEAVES_OUT = {
    *("test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages"),  # not library text
    *("encodings", "pydoc_data", "msilib", "entities.py", "turtledemo"),  # generated tables, demonstrations
}
PRETOKENIZED, PRETOKENIZED_SHARDS = "kjj0/fineweb10B-gpt2", 103
STORIES = Path(__file__).parent / "stories.jsonl.xz"
STORIES_BYTES = 4_385_802  # of text
NETWORK_TIMEOUT = 5.0  # s


@dataclass(frozen=True)
class Corpus:
    """The documents of a source in a fixed order, or the share of them that one of several machines tokenises."""

    read: Callable[[int], Iterator[str]]  # read(n) yields the texts of all documents but the first n
    size: int | None  # bytes on disk, if known
    local: bool  # whether they are on this machine's disk
    held_out: tuple[int, ...] = ()  # the document numbers at which val and test end, if the source decides


def stdlib(part: int = 0, parts: int = 1) -> Corpus:
    """The source code of this Python's standard library, without tests and generated tables."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [p for p in root.rglob("*.py") if not STDLIB_LEAVES_OUT & set(p.relative_to(root).parts)]
    return _local([p for p in paths if not p.name.startswith("_sysconfigdata")], root, "text", part, parts)


def stories(part: int = 0, parts: int = 1) -> Corpus:
    """Twelve English novels that come with this package: one document per chapter, in an order that mixes the books."""
    size = STORIES_BYTES // parts
    return replace(_local([STORIES], STORIES.parent, "text", part, parts), size=size)


def files(patterns: tuple[str, ...], text_field: str = "text", part: int = 0, parts: int = 1) -> Corpus:
    """Local files: .txt .md .py (one document per file), .jsonl .json .parquet, also as .gz, .xz or .zst.

    A pattern is a glob pattern, or a folder, which stands for all such files in it and below it. A single plain file
    is split after its first twentieth, so that some of it can be held out.
    Raises UserError if no file matches or a file has another format.
    """
    if not patterns:
        raise UserError("--source files needs at least one pattern, for example: --files 'texts/**/*.txt'")
    paths = matching_files(patterns)
    for path in paths:
        if _kind(path) not in KINDS:
            raise UserError(f"can't read {path}: give {' '.join(KINDS)} files, also as .gz, .xz or .zst")
    return _local(paths, Path(os.path.commonpath(paths)), text_field, part, parts)


def matching_files(patterns: tuple[str, ...]) -> list[Path]:
    """The files that match, in the order of their names. Raises UserError if there are none."""
    found = {Path(p).absolute() for pattern in patterns for p in glob.glob(pattern, recursive=True)}
    below = {p for folder in found if folder.is_dir() for p in folder.rglob("*") if _kind(p) in KINDS}
    paths = sorted(path for path in found | below if path.is_file())
    if not paths:
        raise UserError(f"no file matches {' '.join(patterns)}; check the pattern, and quote it so the shell leaves it")
    return paths


def hash_order(name: str) -> bytes:
    """Sort key: an order that is the same on every machine, and independent of topics."""
    return hashlib.sha256(name.encode()).digest()


def _local(paths: list[Path], root: Path, text_field: str, part: int, parts: int) -> Corpus:
    """The documents of files, in the hash order of their names."""
    paths = sorted(paths, key=lambda path: hash_order(path.relative_to(root).as_posix()))

    def read(skip: int) -> Iterator[str]:
        documents = itertools.chain.from_iterable(_documents(path, text_field, len(paths) == 1) for path in paths)
        return itertools.islice(documents, part + skip * parts, None, parts)

    return Corpus(read, sum(path.stat().st_size for path in paths) // parts, local=True)


def _kind(path: Path) -> str:
    """`a.jsonl.gz` → `.jsonl`."""
    return (path.with_suffix("") if path.suffix in (".gz", ".xz", ".zst") else path).suffix


def _documents(path: Path, text_field: str, alone: bool) -> Iterator[str]:
    """The documents of one file, in order. Raises UserError if it can't be read or has no such field."""
    with _explained(str(path), "mend it or leave it out of --files"), _open(path) as file:
        if _kind(path) in PLAIN:
            content = file.read()
            for document in _split(content) if alone else [content]:
                yield document.decode("utf-8", errors="replace")  # an invalid byte becomes U+FFFD
        else:
            yield from (_text(record, text_field, path) for record in _records(file, _kind(path), text_field))


def _open(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path)
    if path.suffix == ".xz":
        return lzma.open(path)
    if path.suffix == ".zst":
        import pyarrow  # a dependency of datasets; unlike the package zstandard it notices a truncated file

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _split(content: bytes) -> list[bytes]:
    """The first twentieth, up to the end of a line, else to a space, else to a whole character; and the rest."""
    twentieth = len(content) // 20
    end = content.find(b"\n", twentieth, -1) + 1 or content.find(b" ", twentieth, -1) + 1 or twentieth
    while 0 < end < len(content) and content[end] & 0xC0 == 0x80:  # inside a UTF-8 character
        end += 1
    return [content[:end], content[end:]]


def _records(file: Any, kind: str, text_field: str) -> Iterator[Any]:
    """The rows of a Parquet file, or the values of a JSON file."""
    if kind == ".parquet":
        import pyarrow.parquet

        table = pyarrow.parquet.ParquetFile(file)
        columns = [text_field] if text_field in table.schema_arrow.names else None
        for batch in table.iter_batches(256, columns=columns):
            yield from batch.to_pylist()
    elif kind == ".jsonl":
        yield from (json.loads(line.decode("utf-8", "replace")) for line in file if line.strip())
    else:
        values = json.loads(file.read().decode("utf-8", "replace"))
        yield from values if isinstance(values, list) else [values]


def _text(record: Any, text_field: str, source: Path | str) -> str:
    """The text in a field of a record; null is an empty document. Raises UserError if the field holds no text."""
    fields = record if isinstance(record, dict) else {}
    text = fields.get(text_field, 0)
    if text is None or isinstance(text, str):
        return text or ""
    raise UserError(
        f"{source} has no text in a field {text_field!r}; its fields are {', '.join(fields) or 'none'}: "
        "name the one that holds text with --text-field"
    )


@contextlib.contextmanager
def _explained(source: str, advice: str) -> Iterator[None]:
    """Turn any error of reading into a UserError: the libraries' errors have no common base."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"can't read {source} ({first_line}); {advice}") from error


def hub(
    path: str, name: str | None = None, split: str = "train", text_field: str = "text", part: int = 0, parts: int = 1
) -> Corpus:
    """A dataset on the Hugging Face hub, or a local dataset folder. It is streamed: nothing is stored on disk.

    Raises UserError within seconds if the hub can't be reached or has no such dataset.
    """
    local = Path(path).is_dir()
    if not local:
        check_reachable(path)
    from datasets import load_dataset
    from datasets.distributed import split_dataset_by_node

    with _explained(f"dataset {path!r}, name {name!r}, split {split!r}", "check --hf-path, --hf-name and --split"):
        dataset = load_dataset(path, name, split=split, streaming=True)
    splits = dataset.info.splits or {}
    size = splits[split].num_bytes if split in splits else None
    if text_field in (dataset.column_names or ()):
        dataset = dataset.select_columns([text_field])
    share = split_dataset_by_node(dataset, rank=part, world_size=parts) if parts > 1 else dataset

    def read(skip: int) -> Iterator[str]:
        advice = "run the same command again, it goes on after the last whole shard"
        with _explained(f"dataset {path!r} to its end", advice):
            # not share.skip(): datasets skips before it divides the documents, so the shares would change
            yield from (_text(row, text_field, path) for row in itertools.islice(share, skip, None))

    return Corpus(read, size // parts if size else None, local)


def download_pretokenized(
    folder: Path, repository: str | None = None, train_shards: int | None = None, part: int = 0, parts: int = 1
) -> None:
    """Download shards of FineWeb-10B from the hub, .bin files of GPT-2 tokens: val, and by default all 103 of train.

    A download that was interrupted is resumed, and whole files are kept. Raises UserError if the hub can't be reached.
    """
    from huggingface_hub import hf_hub_download

    repository = repository or PRETOKENIZED
    check_reachable(repository)
    names = [f"fineweb_train_{i:06d}.bin" for i in range(1, 1 + (train_shards or PRETOKENIZED_SHARDS))]
    names = ["fineweb_val_000000.bin", *names][part::parts]
    for name in tqdm(names, unit="shard", desc=str(folder), disable=None):
        hf_hub_download(repository, name, repo_type="dataset", local_dir=folder)
        open_shard(folder / name)
    print(f"{folder}: {len(names)} shards from {repository}")


def check_reachable(repository: str) -> None:
    """Raise UserError within seconds if the hub doesn't answer or has no dataset of this name."""
    from huggingface_hub import HfApi

    try:
        HfApi().dataset_info(repository, timeout=NETWORK_TIMEOUT)
    except Exception as error:  # offline, unknown, gated: no common base, and the advice is the same
        raise UserError(
            f"can't reach dataset {repository!r} on the hub ({type(error).__name__}); connect to the internet, "
            "or use what is on this machine: --source stories, or --source files --files PATTERN"
        ) from None
