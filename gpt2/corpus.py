"""Where text comes from: every source is a line of documents that is the same on every run.

Holds:    `Corpus` and one function a source: `stdlib`, `files`, `hub`.
Built in: notebook 10.
Imports:  gpt2.errors; datasets, huggingface_hub, pyarrow and fsspec only in the sources that need them.
"""

import glob
import hashlib
import itertools
import json
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.errors import UserError

PLAIN = (".txt", ".md", ".py")
STDLIB_LEAVES_OUT = {
    *("test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages"),  # not library text
    *("encodings", "pydoc_data", "_sysconfigdata", "entities.py", "turtledemo"),  # generated tables, demonstrations
}
NETWORK_TIMEOUT = 5.0  # s


@dataclass(frozen=True)
class Corpus:
    """A line of documents. `read(skip)` yields the texts after the first `skip`; `size` is all their bytes on disk.

    `size` is None for a stream whose length isn't known. `local` corpora are on this machine's disk.
    """

    read: Callable[[int], Iterator[str]]
    size: int | None
    local: bool


def stdlib(part: int = 0, parts: int = 1) -> Corpus:
    """The source text of the Python standard library beside this interpreter, without tests and generated tables."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [p for p in root.rglob("*.py") if not STDLIB_LEAVES_OUT & set(p.relative_to(root).parts)]
    return _local([p for p in paths if not p.name.startswith("_sysconfigdata")], root, "text", part, parts)


def files(patterns: tuple[str, ...], text_field: str = "text", part: int = 0, parts: int = 1) -> Corpus:
    """Local files by glob patterns: .txt .md .py (a document a file), .jsonl .json .parquet, each also .gz or .zst.

    A single plain file is cut in two at a line end after its first twentieth, so that some of it can be held out.
    Raises UserError where nothing matches or a kind of file can't be read.
    """
    if not patterns:
        raise UserError("--source files needs at least one pattern, for example: --files 'texts/**/*.txt'")
    paths = sorted({Path(p).absolute() for pattern in patterns for p in glob.glob(pattern, recursive=True)})
    paths = [p for p in paths if p.is_file()]
    if not paths:
        raise UserError(f"no file matches {' '.join(patterns)}; check the pattern, and quote it so the shell leaves it")
    for path in paths:
        if _kind(path) not in (*PLAIN, ".jsonl", ".json", ".parquet"):
            raise UserError(f"can't read {path}: give .txt .md .py .jsonl .json .parquet files, also as .gz or .zst")
    return _local(paths, Path(os.path.commonpath(paths)), text_field, part, parts)


def _local(paths: list[Path], root: Path, text_field: str, part: int, parts: int) -> Corpus:
    """Files in the order of their names' hashes: the same on every run, and no topic comes first."""
    paths = sorted(paths, key=lambda p: hashlib.sha256(p.relative_to(root).as_posix().encode()).digest())

    def read(skip: int) -> Iterator[str]:
        if len(paths) == 1 and _kind(paths[0]) in PLAIN:
            documents = iter(_cut(_plain(paths[0])))
        else:
            documents = itertools.chain.from_iterable(_documents(path, text_field) for path in paths)
        return itertools.islice(documents, part + skip * parts, None, parts)

    return Corpus(read, sum(path.stat().st_size for path in paths) // parts, local=True)


def _kind(path: Path) -> str:
    """`a.jsonl.gz` → `.jsonl`."""
    return (path.with_suffix("") if path.suffix in (".gz", ".zst") else path).suffix


def _open(path: Path) -> Any:
    import fsspec  # comes with datasets; reads .gz, and .zst where the package zstandard is installed

    return fsspec.open(str(path), "rb", compression="infer").open()


def _plain(path: Path) -> str:
    with _open(path) as file:
        return file.read().decode("utf-8", errors="replace")  # a bad byte becomes U+FFFD


def _cut(text: str) -> list[str]:
    end = text.find("\n", len(text) // 20) + 1
    return [text[:end], text[end:]] if 0 < end < len(text) else [text]


def _documents(path: Path, text_field: str) -> Iterator[str]:
    """The documents of one file, in order. Raises UserError where it can't be read or has no such field."""
    kind = _kind(path)
    try:
        if kind in PLAIN:
            yield _plain(path)
        elif kind == ".parquet":
            import pyarrow.parquet

            with _open(path) as file:
                for batch in pyarrow.parquet.ParquetFile(file).iter_batches(256, columns=[text_field]):
                    yield from (text or "" for text in batch.column(text_field).to_pylist())
        else:
            with _open(path) as file:
                records = _json_lines(file) if kind == ".jsonl" else json.loads(file.read().decode("utf-8", "replace"))
                for record in records if not isinstance(records, dict) else [records]:
                    yield record[text_field] or ""
    except (KeyError, TypeError):
        raise UserError(f"{path} has no field {text_field!r}; name the one that holds text with --text-field") from None
    except (OSError, ValueError, EOFError) as error:  # pyarrow's errors are ValueErrors
        raise UserError(f"can't read {path} ({error}); mend it or leave it out of --files") from None


def _json_lines(file: Any) -> Iterator[Any]:
    return (json.loads(line.decode("utf-8", "replace")) for line in file if line.strip())


def hub(
    path: str, name: str | None = None, split: str = "train", text_field: str = "text", part: int = 0, parts: int = 1
) -> Corpus:
    """A dataset of the Hugging Face hub (or a local dataset folder), streamed: nothing is stored first.

    Raises UserError within seconds where the hub can't be reached or has no such dataset.
    """
    local = Path(path).is_dir()
    if not local:
        check_hub(path)
    from datasets import load_dataset
    from datasets.distributed import split_dataset_by_node

    try:
        dataset = load_dataset(path, name, split=split, streaming=True)
    except Exception as error:  # a library of many formats and as many errors, all about these four words
        raise UserError(
            f"can't open dataset {path!r}, name {name!r}, split {split!r} ({str(error).splitlines()[0]}); "
            "check --hf-path, --hf-name and --split"
        ) from None
    columns = dataset.column_names
    if columns and text_field not in columns:
        raise UserError(f"dataset {path!r} has no field {text_field!r} but {columns}; name one with --text-field")
    splits = dataset.info.splits or {}
    size = splits[split].num_bytes if split in splits else None
    dataset = dataset.select_columns([text_field]) if columns else dataset
    mine = split_dataset_by_node(dataset, rank=part, world_size=parts) if parts > 1 else dataset
    return Corpus(
        lambda skip: (row[text_field] or "" for row in (mine.skip(skip) if skip else mine)),
        size // parts if size else None,
        local,
    )


def check_hub(repository: str) -> None:
    """Ask the hub for a dataset by name; UserError within seconds where it doesn't answer or doesn't know it."""
    from huggingface_hub import HfApi

    try:
        HfApi().dataset_info(repository, timeout=NETWORK_TIMEOUT)
    except Exception as error:  # offline, unknown, gated: no common base, and each means the same to the user
        raise UserError(
            f"can't reach dataset {repository!r} on the hub ({type(error).__name__}); connect to the internet, "
            "or use what is on this machine: --source stdlib, or --source files --files PATTERN"
        ) from None
