"""Where text comes from: every source is a line of documents that is the same on every run.

Built in notebook 10.
"""

import glob
import gzip
import hashlib
import io
import itertools
import json
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.system.errors import UserError

PLAIN = (".txt", ".md", ".py")
STDLIB_LEAVES_OUT = {
    *("test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages"),  # not library text
    *("encodings", "pydoc_data", "msilib", "entities.py", "turtledemo"),  # generated tables, demonstrations
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

    A single plain file is cut in two after its first twentieth, so that some of it can be held out.
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
        documents = itertools.chain.from_iterable(_documents(path, text_field, len(paths) == 1) for path in paths)
        return itertools.islice(documents, part + skip * parts, None, parts)

    return Corpus(read, sum(path.stat().st_size for path in paths) // parts, local=True)


def _kind(path: Path) -> str:
    """`a.jsonl.gz` → `.jsonl`."""
    return (path.with_suffix("") if path.suffix in (".gz", ".zst") else path).suffix


def _open(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path)
    if path.suffix == ".zst":
        import pyarrow  # comes with datasets; unlike zstandard's own reader it tells a cut file from a whole one

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _cut(content: bytes) -> list[bytes]:
    """The first twentieth up to a line end, else to a space, else to a whole character; and the rest."""
    twentieth = len(content) // 20
    end = content.find(b"\n", twentieth, -1) + 1 or content.find(b" ", twentieth, -1) + 1 or twentieth
    while 0 < end < len(content) and content[end] & 0xC0 == 0x80:  # inside a character of UTF-8
        end += 1
    return [content[:end], content[end:]]


def _documents(path: Path, text_field: str, alone: bool) -> Iterator[str]:
    """The documents of one file, in order. Raises UserError where it can't be read or has no such field."""
    kind = _kind(path)
    try:
        with _open(path) as file:
            if kind in PLAIN:
                content = file.read()
                for part in _cut(content) if alone else [content]:
                    yield part.decode("utf-8", errors="replace")  # a bad byte becomes U+FFFD
            else:
                read = {".parquet": _parquet_rows, ".jsonl": _json_lines, ".json": _json_records}[kind]
                yield from (_text(record, text_field, path) for record in read(file, text_field))
    except UserError:
        raise
    except Exception as error:  # of the file system, gzip, JSON, Arrow: no common base
        raise UserError(f"can't read {path} ({_first_line(error)}); mend it or leave it out of --files") from error


def _parquet_rows(file: Any, text_field: str) -> Iterator[Any]:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(file)
    columns = [text_field] if text_field in table.schema_arrow.names else None
    for batch in table.iter_batches(256, columns=columns):
        yield from batch.to_pylist()


def _json_lines(file: Any, _: str) -> Iterator[Any]:
    return (json.loads(line.decode("utf-8", "replace")) for line in file if line.strip())


def _json_records(file: Any, _: str) -> list[Any]:
    records = json.loads(file.read().decode("utf-8", "replace"))
    return records if isinstance(records, list) else [records]


def _text(record: Any, text_field: str, source: Path | str) -> str:
    """The text in a record's field; a null is an empty document. Raises UserError where there is no text in it."""
    fields = record if isinstance(record, dict) else {}
    text = fields.get(text_field, 0)
    if text is None or isinstance(text, str):
        return text or ""
    raise UserError(
        f"{source} has no text in a field {text_field!r}; its fields are {', '.join(fields) or 'none'}: "
        "name the one that holds text with --text-field"
    )


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
            f"can't open dataset {path!r}, name {name!r}, split {split!r} ({_first_line(error)}); "
            "check --hf-path, --hf-name and --split"
        ) from None
    splits = dataset.info.splits or {}
    size = splits[split].num_bytes if split in splits else None
    if text_field in (dataset.column_names or ()):
        dataset = dataset.select_columns([text_field])
    mine = split_dataset_by_node(dataset, rank=part, world_size=parts) if parts > 1 else dataset

    def read(skip: int) -> Iterator[str]:
        """This part's documents but for the first `skip`. Raises UserError where one can't be read."""
        try:
            # not mine.skip(): datasets would skip first and deal out to the parts then, so that shares move
            yield from (_text(row, text_field, path) for row in itertools.islice(mine, skip, None))
        except UserError:
            raise
        except Exception as error:  # of the network or of any format
            raise UserError(
                f"dataset {path!r} can't be read on ({_first_line(error)}); "
                "run the same command again, it goes on after the last whole shard"
            ) from error

    return Corpus(read, size // parts if size else None, local)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


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
