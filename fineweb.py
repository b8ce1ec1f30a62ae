"""Text → token shards.

    python fineweb.py                                  FineWeb-Edu 10B, 100 shards of 100 M tokens
    python fineweb.py --source stdlib --vocab-size 2048   the Python standard library: no network needed
    python fineweb.py --source files --files 'books/*.txt' notes.jsonl.gz

Documents are read in the source's order, each is headed by `<|endoftext|>`, and the tokens are cut into shards of
equal size. The first documents are held out as `val`, whole; the rest is `train`. The output folder's index says
how far each shard reached into the source, so the same command after an interruption goes on after the last one.
"""

import errno
import json
import math
import re
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tiktoken
import tyro
from tqdm import tqdm

from gpt2.data import sources as corpus
from gpt2.data.shards import open_shard, read_index, sha256_of, write_index, write_shard
from gpt2.data.sources import Corpus
from gpt2.data.tokenizer import END_OF_TEXT, get_encoding, token_bytes
from gpt2.system.errors import UserError, run_command
from gpt2.system.machine import available_cores

BATCH_CHARACTERS = 2**20  # a worker's task: enough text to forget the cost of handing it over
HELD_OUT = 20  # of a local corpus, one part in so many goes to val
NOT_IN_THE_DATA = ("out", "workers", "max_shards", "part")  # options in which runs into one folder may differ
# the last place of a stretch where white space follows something else (Python counts U+001C … U+001F as white space,
# GPT-2's pattern doesn't, so the white space is one of a few on which both agree)
LAST_CUT = re.compile(r".*\S(?=[ \n\t\r\u3000])", re.DOTALL)
PRETOKENIZED, PRETOKENIZED_SHARDS = "kjj0/fineweb10B-gpt2", 103


@dataclass(frozen=True)
class Options:
    """Text → token shards for train_gpt2.py."""

    source: Literal["fineweb-edu", "fineweb", "pretokenized", "hf", "files", "stdlib"] = "fineweb-edu"
    """fineweb-edu, fineweb: samples of Hugging Face's web text. pretokenized: FineWeb-10B as GPT-2 tokens, ready to
    train on. hf: any dataset, with --hf-path. files: local files, with --files. stdlib: this Python's own source."""
    files: tuple[str, ...] = ()
    """Glob patterns of .txt .md .py .json .jsonl .parquet, also as .gz or .zst (quote them)."""
    hf_path: str | None = None
    """Dataset on the hub, or a local dataset folder."""
    hf_name: str | None = None
    """Configuration of the dataset [fineweb and fineweb-edu: sample-10BT]."""
    split: str = "train"
    text_field: str = "text"
    vocab_size: int = 50257
    """257 (bytes) to 50257 (GPT-2)."""
    format: Literal["npy", "bin"] = "npy"
    """npy as build-nanogpt, bin as llm.c and modded-nanogpt."""
    shard_tokens: int = 100_000_000
    val_tokens: int | None = None
    """Hold out the first documents until they have so many tokens [one shard; files, stdlib: a twentieth of the text,
    and no more than a shard]."""
    max_shards: int | None = None
    """Stop after so many train shards."""
    workers: int | None = None
    """Threads that tokenise [one a core]."""
    part: int = 0
    """This machine's share, counted from 0, of ..."""
    parts: int = 1
    """... so many; each machine writes shards of its own, and part 0 the val shard."""
    out: Path | None = None
    """Output folder [data/SOURCE]."""


class Piece(NamedTuple):
    """Text to tokenise: a document, or one stretch of a long one."""

    document: int  # its number in the source
    starts: bool  # whether the document starts here
    text: str


def pieces(documents: Iterator[str], first: int) -> Iterator[Piece]:
    """Number the documents from `first`, leave out empty ones, and cut long ones where no token can reach across.

    In GPT-2's splitting pattern white space after something else always starts a new token. A stretch without any
    is cut anyway, so that a line of 50 MB needs neither 50 MB of merging nor its memory.
    """
    for number, text in enumerate(documents, first):
        start = 0
        while start < len(text):
            end = start + BATCH_CHARACTERS
            if end < len(text) and (cut := LAST_CUT.match(text, start, end)):
                end = cut.end()
            yield Piece(number, start == 0, text[start:end])
            start = end


def batches(stream: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Group pieces until a batch has BATCH_CHARACTERS characters."""
    batch: list[Piece] = []
    characters = 0
    for piece in stream:
        batch.append(piece)
        characters += len(piece.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def tokenize(encoding: tiktoken.Encoding, batch: list[Piece]) -> list[tuple[Piece, np.ndarray]]:
    """Each piece with its tokens, uint16. tiktoken works outside Python's lock, so threads use every core.

    Whole documents go to it in one call, each headed by `<|endoftext|>`, at which it never merges: then threads wait
    for Python's lock once a batch, not once a document.
    """
    texts = [as_unicode(piece.text) for piece in batch]
    if all(piece.starts for piece in batch) and not any(END_OF_TEXT in text for text in texts):
        whole = "".join(END_OF_TEXT + text for text in texts)
        tokens = encoding.encode_to_numpy(whole, allowed_special={END_OF_TEXT}).astype(np.uint16)
        return list(zip(batch, np.split(tokens, np.flatnonzero(tokens == encoding.eot_token)[1:]), strict=True))
    result = []
    for piece, text in zip(batch, texts, strict=True):
        tokens = encoding.encode_to_numpy(text, disallowed_special=()).astype(np.uint16)
        if piece.starts:
            tokens = np.concatenate([np.array([encoding.eot_token], dtype=np.uint16), tokens])
        result.append((piece, tokens))
    return result


def as_unicode(text: str) -> str:
    """The text with U+FFFD for lone surrogates, which JSON can hold and UTF-8 can't."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def tokenized(
    encoding: tiktoken.Encoding, stream: Iterator[Piece], workers: int
) -> Iterator[list[tuple[Piece, np.ndarray]]]:
    """Tokenise batches on `workers` threads, in order, with a bounded number under way (so memory stays flat)."""
    # The first thread that uses a regular expression owns its scratch memory, and marks each use where all others look.
    # If that is a worker, two of them took 1.6 × as long as when it is this thread, which encodes nothing more.
    encoding.encode_ordinary(" ")
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[list[tuple[Piece, np.ndarray]]]] = deque()
    try:
        for batch in batches(stream):
            waiting.append(pool.submit(tokenize, encoding, batch))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class ShardWriter:
    """Fills one shard after the other and keeps the index. Shard 0 is `val`; part i of n writes i, i + n, …"""

    def __init__(self, options: Options, folder: Path, encoding: tiktoken.Encoding):
        self.options, self.folder = options, folder
        self.val_tokens = options.val_tokens or options.shard_tokens  # `val` is full with so many,
        self.val_bytes = math.inf  # or with so many bytes of text
        self.sizes = token_bytes(encoding)
        self.index = folder / ("index.json" if options.parts == 1 else f"index_{options.part}_of_{options.parts}.json")
        self.settings = json.loads(json.dumps({k: v for k, v in asdict(options).items() if k not in NOT_IN_THE_DATA}))
        self.records: list[dict[str, Any]] = []
        self.document, self.inside = 0, 0  # which document of the source is read, and how many of its tokens were
        self.kept = (0, 0)  # up to where an earlier run's shards reach, in the same terms
        self.clear()

    def clear(self) -> None:
        """Start an empty shard."""
        self.buffer = bytearray()  # of uint16
        self.bytes = 0  # of text

    @property
    def number(self) -> int:
        """The number of the shard that is being filled."""
        return self.options.part + self.options.parts * len(self.records)

    @property
    def full(self) -> bool:
        """Whether --max-shards train shards are there."""
        train = sum(record["split"] == "train" for record in self.records)
        return self.options.max_shards is not None and train >= self.options.max_shards

    def resume(self) -> bool:
        """Take over the whole shards of an earlier run; True if it had finished.

        Raises UserError where the folder was made with other settings.
        """
        for path in self.folder.glob("index*.json"):  # of every part
            theirs = read_index(path).get("settings", {})
            for name, value in self.settings.items():
                if theirs.get(name) != value:
                    raise UserError(
                        f"{self.folder} holds shards made with {name} {theirs.get(name)}, not {value}; "
                        "name another folder with --out, or delete this one"
                    )
        if not self.index.exists():
            return False
        index = read_index(self.index)
        for record in index["shards"]:
            path = self.folder / record["name"]
            if not path.exists() or open_shard(path).tokens != record["tokens"]:
                break
            self.records.append(record)
            self.kept = tuple(record["reached"])
        return index["complete"] and len(self.records) == len(index["shards"])

    def add(self, piece: Piece, tokens: np.ndarray) -> None:
        """Append a piece's tokens, closing every shard that they fill."""
        if piece.starts:
            if self.number == 0 and self._val_is_full():
                self.close((piece.document, 0))
            self.document, self.inside = piece.document, 0
        if piece.document == self.kept[0]:
            already = min(len(tokens), max(0, self.kept[1] - self.inside))
            tokens, self.inside = tokens[already:], self.inside + already
        while len(tokens) and not self.full:
            room = len(tokens) if self.number == 0 else self.options.shard_tokens - len(self.buffer) // 2
            head, tokens = tokens[:room], tokens[room:]
            self.buffer += head.tobytes()
            self.bytes += int(self.sizes[head].sum())
            self.inside += len(head)
            if self.number > 0 and len(self.buffer) == 2 * self.options.shard_tokens:
                self.close((self.document, self.inside))

    def _val_is_full(self) -> bool:
        tokens = len(self.buffer) // 2
        return tokens >= self.val_tokens or (tokens > 0 and self.bytes >= self.val_bytes)

    def close(self, reached: tuple[int, int]) -> None:
        """Write the shard, then the index that names it. Raises OSError, e.g. on a full disk; whole shards stay."""
        split = "val" if self.number == 0 else "train"
        path = self.folder / f"{split}_{self.number:06d}.{self.options.format}"
        tokens = np.frombuffer(self.buffer, dtype=np.uint16)
        write_shard(path, tokens)
        record = {"name": path.name, "split": split, "tokens": len(tokens), "bytes": self.bytes}
        self.records.append({**record, "sha256": sha256_of(path), "reached": reached})
        tqdm.write(f"{path.name}: {len(tokens):,} tokens, {self.bytes / 1e6:.1f} MB of text")
        self.write_index(complete=False)
        self.clear()

    def write_index(self, complete: bool) -> None:
        """Say in JSON what the folder holds and how far it reaches into the source."""
        vocab_size = self.options.vocab_size
        about = {"tokenizer": "gpt2", "vocab_size": vocab_size, "complete": complete, "settings": self.settings}
        write_index(self.index, {**about, "shards": self.records})

    def finish(self) -> None:
        """Close the last, shorter shard. Raises UserError where nothing was left for training."""
        if self.number == 0 and self.buffer:
            raise UserError(
                f"all {len(self.buffer) // 2:,} tokens of the source went to val; "
                "hold out less with --val-tokens, or give more text"
            )
        if self.buffer:
            self.close((self.document, self.inside))
        if not self.records:
            raise UserError(f"the source {self.options.source} holds no text; nothing was written")
        self.write_index(complete=True)


def open_corpus(options: Options) -> Corpus:
    """The source that the options name. Raises UserError where it can't be had."""
    share = {"part": options.part, "parts": options.parts}
    if options.source == "stdlib":
        return corpus.stdlib(**share)
    if options.source == "files":
        return corpus.files(options.files, options.text_field, **share)
    path = {"fineweb-edu": "HuggingFaceFW/fineweb-edu", "fineweb": "HuggingFaceFW/fineweb"}.get(options.source)
    name = options.hf_name or ("sample-10BT" if path else None)
    path = options.hf_path or path
    if path is None:
        raise UserError("--source hf needs a dataset, for example: --hf-path roneneldan/TinyStories")
    return corpus.hub(path, name, options.split, options.text_field, **share)


def check(options: Options, folder: Path) -> None:
    """Raise UserError for values that can't be meant, before anything is read."""
    if not 0 <= options.part < options.parts:
        raise UserError(f"--part {options.part} of --parts {options.parts} is impossible; parts count from 0")
    for name in ("shard_tokens", "val_tokens", "max_shards", "workers"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value} is too small; give at least 1")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"can't write to {folder} ({error.strerror}); name another folder with --out") from None


def make_shards(options: Options, folder: Path) -> None:
    """Read, tokenise, write: everything from the source to a finished folder of shards."""
    encoding = get_encoding(options.vocab_size)
    writer = ShardWriter(options, folder, encoding)
    if writer.resume() or writer.full:
        print(f"{folder} is complete already: {len(writer.records)} shards")
        return
    text = open_corpus(options)
    if text.local and text.size is not None and options.val_tokens is None:
        writer.val_bytes = text.size // HELD_OUT
    first, _ = writer.kept
    stream = pieces(text.read(first), first)
    started, tokens_done = time.perf_counter(), 0
    earlier = list(writer.records)
    done = sum(record["bytes"] for record in earlier)
    bar = tqdm(total=text.size, initial=done, unit="B", unit_scale=True, desc=str(folder), disable=None)
    for batch in tokenized(encoding, stream, options.workers or available_cores()):
        for piece, tokens in batch:
            writer.add(piece, tokens)
            tokens_done += len(tokens)
            bar.update(int(writer.sizes[tokens].sum()))
        speed = tokens_done / (time.perf_counter() - started)
        bar.set_postfix_str(f"{batch[-1][0].document + 1:,} documents, {speed / 1e6:.2f} M tokens/s", refresh=False)
        if writer.full:
            break
    bar.close()
    if not writer.full:
        writer.finish()
    seconds = time.perf_counter() - started
    tokens = sum(record["tokens"] for record in writer.records)
    new = tokens - sum(record["tokens"] for record in earlier)
    print(
        f"{folder}: {tokens:,} tokens in {len(writer.records)} shards, "
        f"{new:,} of them in {seconds:.1f} s ({tokens_done / seconds / 1e6:.2f} M tokens/s)"
    )


def download_pretokenized(options: Options, folder: Path) -> None:
    """Fetch FineWeb-10B as GPT-2 tokens from the hub: one val shard and `--max-shards` (103) train shards of .bin."""
    from huggingface_hub import hf_hub_download

    repository = options.hf_path or PRETOKENIZED
    corpus.check_hub(repository)
    names = [f"fineweb_train_{i:06d}.bin" for i in range(1, 1 + (options.max_shards or PRETOKENIZED_SHARDS))]
    names = ["fineweb_val_000000.bin", *names]
    mine = names[options.part :: options.parts]
    for name in tqdm(mine, unit="shard", desc=str(folder), disable=None):
        hf_hub_download(repository, name, repo_type="dataset", local_dir=folder)  # resumes, and keeps what is whole
        open_shard(folder / name)
    print(f"{folder}: {len(mine)} shards from {repository}")


def main() -> None:
    """`python fineweb.py`: see `Options`."""
    options = tyro.cli(Options, description=__doc__)
    folder = options.out or Path("data", options.source)
    check(options, folder)
    try:
        (download_pretokenized if options.source == "pretokenized" else make_shards)(options, folder)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"the disk is full, {folder} keeps its whole shards; free some room and run the same command again, "
            "it goes on after the last of them"
        ) from None


if __name__ == "__main__":
    run_command(main)
