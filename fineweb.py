"""Text → token shards.

    python fineweb.py                                     FineWeb-Edu 10B, 100 shards of 100 M tokens
    python fineweb.py --source stories --vocab-size 2048  twelve novels that come with this package: no network needed
    python fineweb.py --source novels --files NOVELS      a folder of novels as .txt files: whole books are held out
    python fineweb.py --source files --files 'books/*.txt' notes.jsonl.gz

Documents are read in the order of the source. `<|endoftext|>` stands in front of each, and the tokens are cut into
shards of equal size. The first documents are held out as `val`, whole, and the next as `test`, if asked for. The rest
is `train`. The index in the output folder says how far each shard reached into the source, so the same command
resumes an interrupted run.

This file composes; the pieces are in gpt2/data/, each built by hand in a notebook.
"""

import errno
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import tyro
from tqdm import tqdm

from gpt2.data import novels, sources
from gpt2.data.options import Options
from gpt2.data.pipeline import pieces, tokenized
from gpt2.data.sources import Corpus
from gpt2.data.tokenizer import get_encoding
from gpt2.data.writer import Limit, ShardWriter
from gpt2.system.errors import UserError, run_command
from gpt2.system.machine import available_cores
from gpt2.system.ranges import check_ranges

HELD_OUT = 20  # of local text, one part in this many goes to val
FINEWEB = {"fineweb-edu": "HuggingFaceFW/fineweb-edu", "fineweb": "HuggingFaceFW/fineweb"}


def main(words: Sequence[str] | None = None) -> None:
    """Make the shards that the command line asks for. Raises UserError."""
    options = tyro.cli(Options, args=words, description=__doc__)
    folder = options.out or Path("data", options.source)
    check(options, folder)
    try:
        if options.source == "pretokenized":
            share = {"part": options.part, "parts": options.parts}
            sources.download_pretokenized(folder, options.hf_path, options.max_shards, **share)
        else:
            make_shards(options, folder)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"the disk is full, {folder} keeps its whole shards; free some room and run the same command again, "
            "it goes on after the last of them"
        ) from None


def check(options: Options, folder: Path) -> None:
    """Raise UserError for impossible options, and for a folder that can't be written to."""
    check_ranges(options)
    if options.part >= options.parts:
        raise UserError(f"--part {options.part} of --parts {options.parts} is impossible; parts count from 0")
    if options.source == "novels" and options.parts > 1:
        raise UserError(f"--parts {options.parts} can't divide whole books; one machine makes the shards of novels")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"can't write to {folder} ({error.strerror}); name another folder with --out") from None


def make_shards(options: Options, folder: Path) -> None:
    """Read, tokenise and write: from the source to a complete folder of shards."""
    encoding = get_encoding(options.vocab_size)
    writer = ShardWriter(options, folder, encoding)
    if writer.resume() or writer.full:
        print(f"{folder} is complete already: {len(writer.records)} shards")
        return
    corpus = open_corpus(options)
    writer.limits = held_out(options, corpus)
    first, earlier = writer.document, len(writer.records)
    stream = tokenized(encoding, pieces(corpus.read(first), first), options.workers or available_cores())
    started, tokens_done = time.perf_counter(), 0
    bytes_done = sum(record["bytes"] for record in writer.records)
    with tqdm(total=corpus.size, initial=bytes_done, unit="B", unit_scale=True, desc=str(folder), disable=None) as bar:
        for batch in stream:
            bar.update(sum(writer.add(piece, tokens) for piece, tokens in batch))
            tokens_done += sum(len(tokens) for _, tokens in batch)
            speed = tokens_done / (time.perf_counter() - started)
            bar.set_postfix_str(f"{batch[-1][0].document + 1:,} documents, {speed / 1e6:.2f} M tokens/s", refresh=False)
            if writer.full:
                break
    if not writer.full:
        writer.finish()
    seconds = time.perf_counter() - started
    tokens = [record["tokens"] for record in writer.records]
    print(
        f"{folder}: {sum(tokens):,} tokens in {len(tokens)} shards, "
        f"{sum(tokens[earlier:]):,} of them in {seconds:.1f} s ({tokens_done / seconds / 1e6:.2f} M tokens/s)"
    )


def held_out(options: Options, corpus: Corpus) -> dict[str, Limit]:
    """Where val ends, and test if there is one."""
    if corpus.held_out and options.val_tokens is None:
        return {split: Limit(documents=end) for split, end in zip(("val", "test"), corpus.held_out, strict=True)}
    limit = Limit(tokens=options.val_tokens or options.shard_tokens)
    if corpus.local and corpus.size is not None and options.val_tokens is None:
        limit = limit._replace(bytes=max(1, corpus.size // HELD_OUT))
    return {"val": limit, "test": limit} if options.test else {"val": limit}


def open_corpus(options: Options) -> Corpus:
    """The documents that the options name. Raises UserError if they are not available."""
    share = {"part": options.part, "parts": options.parts}
    if options.source == "stdlib":
        return sources.stdlib(**share)
    if options.source == "stories":
        return sources.stories(**share)
    if options.source == "novels":
        return novels.novels(options.files)
    if options.source == "files":
        return sources.files(options.files, options.text_field, **share)
    if options.source == "hf" and options.hf_path is None:
        raise UserError("--source hf needs a dataset, for example: --hf-path roneneldan/TinyStories")
    path = options.hf_path or FINEWEB[options.source]
    name = options.hf_name or (None if options.source == "hf" else "sample-10BT")
    return sources.hub(path, name, options.split, options.text_field, **share)


if __name__ == "__main__":
    run_command(main)
