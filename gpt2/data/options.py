"""The settings of `fineweb.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le

from gpt2.data.tokenizer import GPT2_VOCAB, MIN_VOCAB


@dataclass(frozen=True)
class Options:
    """Text → token shards for train_gpt2.py."""

    source: Literal["fineweb-edu", "fineweb", "pretokenized", "hf", "files", "novels", "stories", "stdlib"] = (
        "fineweb-edu"
    )
    """fineweb-edu, fineweb: samples of Hugging Face's web text. pretokenized: FineWeb-10B as GPT-2 tokens, ready to
    train on. hf: any dataset, with --hf-path. files: local files, with --files. novels: books, with --files FOLDER.
    stories: twelve novels that come with this package. stdlib: this Python's own source."""
    files: tuple[str, ...] = ()
    """Folders, or glob patterns (quote them), of .txt .md .py .json .jsonl .parquet, also as .gz, .xz or .zst."""
    hf_path: str | None = None
    """Dataset on the hub, or a local dataset folder."""
    hf_name: str | None = None
    """Configuration of the dataset [fineweb and fineweb-edu: sample-10BT]."""
    split: str = "train"
    text_field: str = "text"
    vocab_size: Annotated[int, Ge(MIN_VOCAB), Le(GPT2_VOCAB)] = GPT2_VOCAB
    """257 (bytes) to 50257 (GPT-2)."""
    format: Literal["npy", "bin"] = "npy"
    """npy as build-nanogpt, bin as llm.c and modded-nanogpt."""
    shard_tokens: Annotated[int, Ge(1)] = 100_000_000
    val_tokens: Annotated[int | None, Ge(1)] = None
    """Hold out the first documents until they have this many tokens [files, stories, stdlib: a twentieth of the text,
    but at most one shard; novels: three books; else: one shard]."""
    test: bool = False
    """Hold out as much again as a second split, test [novels: always]."""
    max_shards: Annotated[int | None, Ge(1)] = None
    """Stop after this many train shards."""
    workers: Annotated[int | None, Ge(1)] = None
    """Threads that tokenise [one per core]."""
    part: Annotated[int, Ge(0)] = 0
    """The number of this machine, counted from 0, if several machines share the work."""
    parts: Annotated[int, Ge(1)] = 1
    """The number of machines that share the work. Each writes its own shards, and part 0 also those held out."""
    out: Path | None = None
    """Output folder [data/SOURCE]."""
