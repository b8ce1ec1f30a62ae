"""Promises of fineweb.py: every document once, in order, whatever the format, the workers, the parts and the stops."""

import functools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import regex
from huggingface_hub import close_session, constants

import fineweb
from fineweb import make_shards
from gpt2.data import pipeline, sources
from gpt2.data.check import check_folder
from gpt2.data.options import Options
from gpt2.data.pipeline import BATCH_CHARACTERS, pieces
from gpt2.data.shards import find_shards, open_shard, write_shard
from gpt2.data.tokenizer import get_encoding
from gpt2.system.errors import UserError

ROOT = Path(__file__).parents[1]
VOCAB = 1024
CLOSED = "http://127.0.0.1:9"  # no server listens here
ENCODING = get_encoding(VOCAB)
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


# text


def words(count: int, seed: int) -> str:
    """English-like text: words of random letters, lines of about ten."""
    draw = random.Random(seed)
    vocabulary = ["".join(draw.choices("etaoinshrdlu", k=draw.randrange(1, 9))) for _ in range(500)]
    return "".join(word + draw.choice("          .,\n") for word in draw.choices(vocabulary, k=count))


@functools.cache
def documents() -> tuple[str, ...]:
    """300 documents, awkward ones among them, and two that `source` has cut into pieces."""
    draw = random.Random(0)
    texts = [words(draw.randrange(1, 300), seed) for seed in range(300)]
    texts[3] = texts[70] = texts[-1] = ""
    texts[5], texts[6] = "naïve 深層学習 👩‍👩‍👧‍👦 \u202bمرحبا\u202c", "<|endoftext|> is text here <|endoftext|>"
    texts[7], texts[8] = "\x00\x01 \x1c\x85\xa0\n", " "
    for number, seed in ((60, 1), (200, 2)):
        kinds = random.Random(seed).choices(["\x1c", "\x85", "\xa0", "\u3000", "   ", "\t\n", "\n\n\n", " 深 "], k=40)
        texts[number] = "".join(words(400, seed + k) + kind for k, kind in enumerate(kinds))
    return tuple(texts)


def write_jsonl(path: Path, texts: tuple[str, ...] | list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The documents as a file; within this process, batches are small enough that there are many of every kind."""
    monkeypatch.setattr(pipeline, "BATCH_CHARACTERS", 2**14)
    return write_jsonl(tmp_path / "source.jsonl", documents())


# running and reading back


def tokens_of(texts: tuple[str, ...] | list[str], encoding=ENCODING) -> np.ndarray:
    """Each document tokenised on its own, headed by <|endoftext|>: what the shards must hold."""
    stream = [[encoding.eot_token, *encoding.encode_ordinary(text)] for text in texts if text]
    return np.array([token for tokens in stream for token in tokens], dtype=np.uint16)


def make(source: Path | str, out: Path, **options) -> Path:
    out.mkdir(exist_ok=True, parents=True)
    given = {"vocab_size": VOCAB, "shard_tokens": 20_000, "val_tokens": 10_000, "out": out, **options}
    make_shards(Options(source="files", files=(str(source),), **given), out)
    return out


def read(folder: Path, split: str) -> np.ndarray:
    shards = find_shards(folder, split, VOCAB)
    return np.concatenate([shard.read(0, shard.tokens) for shard in shards])


def everything(folder: Path) -> np.ndarray:
    return np.concatenate([read(folder, "val"), read(folder, "train")])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def files(source: Path | str, out: Path | str, *more: str) -> list[str]:
    """Arguments for a command that does what `make` does."""
    sizes = ["--vocab-size", str(VOCAB), "--shard-tokens", "20000", "--val-tokens", "10000"]
    return ["--source", "files", "--files", str(source), "--out", str(out), *sizes, *more]


def start(*words: str, **environment: str) -> subprocess.Popen:
    """`python fineweb.py WORDS` as a process."""
    command = [sys.executable, "fineweb.py", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, **pipes)


def refused(words: list[str], *says: str) -> None:
    """The command ends with one sentence that says how to mend it."""
    with pytest.raises(UserError) as caught:
        fineweb.main(words)
    assert "\n" not in str(caught.value)
    for said in says:
        assert said in str(caught.value), (said, str(caught.value))


def own_peak_memory(words: list[str]) -> float:
    """Run the command; return the most MiB that this process has held. (ru_maxrss would include its parent's.)"""
    fineweb.main(words)
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def peak_memory(words: list[str]) -> float:
    """The same in a new interpreter."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(own_peak_memory, words).result()


# every document, once, in order


@pytest.mark.parametrize("suffix", ["npy", "bin"])
def test_shards_hold_every_document_tokenised_on_its_own(source: Path, tmp_path: Path, suffix: str) -> None:
    folder = make(source, tmp_path / "out", format=suffix)
    assert np.array_equal(everything(folder), tokens_of(documents()))
    train = find_shards(folder, "train")
    assert {shard.path.suffix for shard in train} == {f".{suffix}"}
    assert all(shard.tokens == 20_000 for shard in train[:-1]) and 0 < train[-1].tokens <= 20_000
    assert check_folder(folder) == []


def test_document_of_several_batches_is_tokenised_as_in_one(tmp_path: Path) -> None:
    texts = ["short", words(BATCH_CHARACTERS // 2, seed=0), "short", *documents()]
    assert len(texts[1]) > 2 * BATCH_CHARACTERS
    folder = make(write_jsonl(tmp_path / "a.jsonl", texts), tmp_path / "out", val_tokens=1, shard_tokens=10**7)
    assert np.array_equal(everything(folder), tokens_of(texts))


def test_every_document_starts_with_endoftext_and_nothing_else_does(source: Path, tmp_path: Path) -> None:
    tokens = everything(make(source, tmp_path / "out"))
    starts = np.flatnonzero(tokens == ENCODING.eot_token)
    written = [ENCODING.decode(part[1:].tolist()) for part in np.split(tokens, starts)[1:]]
    assert starts[0] == 0 and written == [text for text in documents() if text]


def test_gpt2s_own_vocabulary_fits_the_shards(source: Path, tmp_path: Path) -> None:
    folder = make(source, tmp_path / "out", vocab_size=50257)
    tokens = np.concatenate([s.read(0, s.tokens) for split in ("val", "train") for s in find_shards(folder, split)])
    assert np.array_equal(tokens, tokens_of(documents(), get_encoding()))


def test_index_describes_every_shard(source: Path, tmp_path: Path) -> None:
    folder = make(source, tmp_path / "out")
    index = json.loads((folder / "index.json").read_text())
    assert (index["tokenizer"], index["vocab_size"], index["complete"]) == ("gpt2", VOCAB, True)
    assert {record["name"] for record in index["shards"]} | {"index.json"} == set(os.listdir(folder))
    assert sum(record["bytes"] for record in index["shards"]) == sum(len(text.encode()) for text in documents())
    assert [record["split"] for record in index["shards"]] == ["val"] + ["train"] * (len(index["shards"]) - 1)


def test_number_of_workers_does_not_change_a_byte(source: Path, tmp_path: Path) -> None:
    one, two, four = (contents(make(source, tmp_path / f"w{n}", workers=n)) for n in (1, 2, 4))
    assert one == two == four


def test_lone_surrogates_and_bad_bytes_become_the_replacement_character(tmp_path: Path) -> None:
    lines = [b'{"text": "a\\ud83dz \\ude00 end\\ud83d"}', b'{"text": "x\xffy \\ud83d\\udc4d"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    folder = make(tmp_path / "a.jsonl", tmp_path / "out", val_tokens=1)
    assert np.array_equal(everything(folder), tokens_of(["a\ufffdz \ufffd end\ufffd", "x\ufffdy 👍"]))


def test_many_tiny_documents_take_no_longer_than_few(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["a"] * 40_000)
    before = time.perf_counter()
    assert len(everything(make(tmp_path / "a.jsonl", tmp_path / "out"))) == 80_000
    assert time.perf_counter() - before < 10  # adding up a batch anew for every document takes far longer


# pieces


def awkward_text(draw: random.Random, length: int) -> str:
    """Letters, digits, marks, every white space and what only Python takes for it; "z z" often enough to cut at."""
    whites = " \t\n\r\x0b\x0c\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000"
    alphabet = "ab1!'\x00\x1c\x1d\x1e\x1f\u200b\ufeff\u180e深é👍" + 2 * whites + "    \n\n"
    return "z z".join("".join(draw.choices(alphabet, k=draw.randrange(12))) for _ in range(length))


def test_cutting_a_document_never_cuts_what_gpt2s_pattern_takes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "BATCH_CHARACTERS", 40)
    draw = random.Random(0)
    for _ in range(400):
        text = awkward_text(draw, 40)
        cut = [piece.text for piece in pieces(iter([text]), 0)]
        assert "".join(cut) == text and len(cut) > 5 and max(map(len, cut)) <= 40
        together = [found for part in cut for found in regex.findall(GPT2_PATTERN, part)]
        assert together == regex.findall(GPT2_PATTERN, text)
        assert [t for part in cut for t in ENCODING.encode_ordinary(part)] == ENCODING.encode_ordinary(text)


@pytest.mark.parametrize("character", ["x", "深", " ", "\n", "\x1c", "!", "\u3000"])
def test_stretch_without_a_place_to_cut_is_cut_anyway(character: str) -> None:
    text = character * (3 * BATCH_CHARACTERS + 5)
    cut = list(pieces(iter(["", text, "next"]), 10))
    assert "".join(piece.text for piece in cut[:-1]) == text
    assert max(len(piece.text) for piece in cut) <= BATCH_CHARACTERS
    assert [piece.document for piece in cut] == [11] * 4 + [12]
    assert [piece.starts for piece in cut] == [True] + [False] * 3 + [True]


# val


def test_val_is_the_first_whole_documents_up_to_val_tokens(source: Path, tmp_path: Path) -> None:
    for limit in (1, 700, 10_000):
        val = read(make(source, tmp_path / f"out{limit}", val_tokens=limit), "val")
        held = next(n for n in range(300) if len(tokens_of(documents()[:n])) >= limit)
        assert np.array_equal(val, tokens_of(documents()[:held]))
        assert np.array_equal(read(tmp_path / f"out{limit}", "train"), tokens_of(documents()[held:]))


def test_val_is_a_twentieth_of_local_text_by_default(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"{number}.txt").write_text(words(200, number))
    folder = make(tmp_path / "*.txt", tmp_path / "out", val_tokens=None)
    val, train = len(read(folder, "val")), len(read(folder, "train"))
    assert 0.05 <= val / (val + train) < 0.06
    again = make(tmp_path / "*.txt", tmp_path / "again", val_tokens=None, workers=1)
    assert contents(folder) == contents(again)


def test_val_is_no_longer_than_a_shard_by_default(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [words(100, seed) for seed in range(1000)])
    val = read(make(source, tmp_path / "out", val_tokens=None), "val")
    held = next(n for n in range(300) if len(tokens_of([words(100, seed) for seed in range(n)])) >= 5000)
    assert len(val) > 5000, "a twentieth"
    val = read(make(source, tmp_path / "small", val_tokens=None, shard_tokens=5000), "val")
    assert np.array_equal(val, tokens_of([words(100, seed) for seed in range(held)]))


def test_val_and_train_share_no_document(source: Path, tmp_path: Path) -> None:
    """Val ends where a document ends; what follows is train, and together they are every document once."""
    folder = make(source, tmp_path / "out")
    val, train = read(folder, "val"), read(folder, "train")
    assert len(val) and train[0] == ENCODING.eot_token
    assert np.array_equal(np.concatenate([val, train]), tokens_of(documents()))


def test_source_that_is_all_val_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("short")
    (tmp_path / "b.txt").write_text("short")
    words = files(tmp_path / "*.txt", tmp_path / "out")
    refused(words, "all ", "tokens of the source went to val", "--val-tokens")


@pytest.mark.parametrize(
    "text", ["line\n" * 5000, "深層" * 5000, "one long line " * 5000, "a b\n" * 100 + "深層\n" * 9000]
)
def test_single_plain_file_has_a_val_and_a_train_share(tmp_path: Path, text: str) -> None:
    (tmp_path / "book.txt").write_text(text)
    folder = make(tmp_path / "book.txt", tmp_path / "out", val_tokens=None)
    val, train = (ENCODING.decode(read(folder, split).tolist()) for split in ("val", "train"))
    assert val.removeprefix("<|endoftext|>") + train.removeprefix("<|endoftext|>") == text
    assert len(val.encode()) < len(text.encode()) / 10


# stopping and going on


def test_killed_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [words(400, seed) for seed in range(1500)])
    small = ("--shard-tokens", "7000", "--val-tokens", "3000")
    fineweb.main(files(source, tmp_path / "whole", *small))
    whole, draw, killed = contents(tmp_path / "whole"), random.Random(), 0
    assert len(whole) > 100
    for fraction in (0.1, 0.4, 0.7):
        process = start(*files(source, tmp_path / "killed", *small))
        while process.poll() is None and len(list(tmp_path.glob("killed/*"))) < fraction * len(whole):
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        for name, content in contents(tmp_path / "killed").items():
            assert name.endswith(".tmp") or name == "index.json" or content == whole[name], f"{name} is not whole"
    assert killed >= 2, "this machine is too fast for this test: give it more text"
    done_before = len(json.loads((tmp_path / "killed" / "index.json").read_text())["shards"])
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("killed/*_*")}
    fineweb.main(files(source, tmp_path / "killed", *small))
    assert contents(tmp_path / "killed") == whole
    kept = sorted(whole, key=lambda name: re.sub(r"\D", "", name))[1 : done_before + 1]
    assert all((tmp_path / "killed" / name).stat().st_mtime_ns == times[name] for name in kept), "whole shards are kept"


def test_restart_continues_after_the_last_whole_shard(source: Path, tmp_path: Path) -> None:
    small = {"shard_tokens": 2000}  # several in a batch
    whole = contents(make(source, tmp_path / "whole", **small))
    folder = make(source, tmp_path / "out", max_shards=2, **small)
    assert sorted(contents(folder)) == ["index.json", "train_000001.npy", "train_000002.npy", "val_000000.npy"]
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    make(source, folder, max_shards=4, **small)
    assert sorted(p.name for p in folder.glob("train*")) == [f"train_{n:06d}.npy" for n in (1, 2, 3, 4)]
    make(source, folder, **small)
    assert contents(folder) == whole
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before


def test_the_summary_counts_what_was_written(source: Path, tmp_path: Path, capsys) -> None:
    earlier: list[dict] = []
    for limit in (2, 4, None):
        folder = make(source, tmp_path / "out", shard_tokens=2000, max_shards=limit)
        shards = json.loads((folder / "index.json").read_text())["shards"]
        tokens, before = (sum(record["tokens"] for record in records) for records in (shards, earlier))
        said = capsys.readouterr().out
        assert f"{tokens:,} tokens in {len(shards)} shards, {tokens - before:,} of them in" in said
        assert said.count(" MB of text") == len(shards) - len(earlier)
        earlier = shards


def test_max_shards_reached_or_source_finished_leaves_all_as_it_is(source: Path, tmp_path: Path, capsys) -> None:
    for limit in (2, None):
        folder = make(source, tmp_path / "out", max_shards=limit)
        before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        make(source, folder, max_shards=limit)
        assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
        assert "complete already" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["val_000000.npy", "train_000003.npy"])
def test_deleted_shard_is_made_again(source: Path, tmp_path: Path, name: str) -> None:
    folder = make(source, tmp_path / "out")
    whole = contents(folder)
    (folder / name).unlink()
    make(source, folder)
    assert contents(folder) == whole


def test_deleted_index_is_made_again(source: Path, tmp_path: Path) -> None:
    folder = make(source, tmp_path / "out")
    whole = contents(folder)
    (folder / "index.json").unlink()
    make(source, folder)
    assert contents(folder) == whole


def test_truncated_shard_is_named(source: Path, tmp_path: Path) -> None:
    folder = make(source, tmp_path / "out")
    whole = contents(folder)
    os.truncate(folder / "train_000002.npy", 1001)
    refused(files(source, folder), "train_000002.npy is damaged", "delete it and run fineweb.py again")
    (folder / "train_000002.npy").unlink()
    make(source, folder)
    assert contents(folder) == whole


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--vocab-size", "300"), "vocab_size 1024, not 300"),
        (("--format", "bin"), "format npy, not bin"),
        (("--shard-tokens", "60000"), "shard_tokens 20000, not 60000"),
        (("--val-tokens", "9"), "val_tokens 10000, not 9"),
        (("--parts", "2"), "parts 1, not 2"),
        (("--text-field", "body"), "text_field text, not body"),
    ],
)
def test_shards_made_with_other_settings_are_kept_and_named(
    source: Path, tmp_path: Path, more: tuple[str, ...], says: str
) -> None:
    folder = make(source, tmp_path / "out")
    whole = contents(folder)
    refused(files(source, folder, *more), str(folder), says, "--out")
    assert contents(folder) == whole


# full disks


@pytest.mark.parametrize("name", ["val_000000.npy", "train_000002.npy", "train_000002.bin", "index.json"])
def test_full_disk_is_one_sentence_and_loses_nothing(source: Path, tmp_path: Path, name: str) -> None:
    folder, suffix = tmp_path / "out", "bin" if name.endswith("bin") else "npy"
    folder.mkdir()
    os.symlink("/dev/full", folder / f"{name}.tmp")
    refused(files(source, folder, "--format", suffix), "the disk is full", str(folder), "same command again")
    left = contents(folder)
    whole = contents(make(source, tmp_path / "whole", format=suffix))
    assert not [name for name in left if name.endswith(".tmp")]
    shards = {file: content for file, content in left.items() if file != "index.json"}
    assert all(content == whole[file] for file, content in shards.items())
    assert len(shards) == {"val_000000": 0, "train_000002": 2, "index": 1}[name.split(".")[0]]
    make(source, folder, format=suffix)
    assert contents(folder) == whole


# parts


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_hold_all_documents_once_under_names_of_their_own(source: Path, tmp_path: Path, parts: int) -> None:
    folder, names = tmp_path / "together", []
    for part in range(parts):
        alone = make(source, tmp_path / f"alone{part}", part=part, parts=parts)
        names += os.listdir(alone)
        make(source, folder, part=part, parts=parts)
        mine = [text for text in documents()[part::parts] if text]
        tokens = [open_shard(path) for path in sorted(alone.glob("*.npy"), key=lambda path: path.name[-10:])]
        assert np.array_equal(np.concatenate([s.read(0, s.tokens) for s in tokens]), tokens_of(mine))
        assert bool(list(alone.glob("val*"))) == (part == 0)
    assert len(set(names)) == len(names)
    assert sorted(os.listdir(folder)) == sorted(names)
    assert check_folder(folder) == []
    assert len(everything(folder)) == len(tokens_of(documents()))


def test_parts_of_other_settings_do_not_mix(source: Path, tmp_path: Path) -> None:
    folder = make(source, tmp_path / "out", part=0, parts=2)
    whole = contents(folder)
    for other in ({"part": 1, "parts": 3}, {"part": 1, "parts": 2, "vocab_size": 300}, {}):
        with pytest.raises(UserError, match=r"holds shards made with .*--out"):
            make(source, folder, **other)
    assert contents(folder) == whole


def test_an_option_that_did_not_exist_when_a_folder_was_made_had_its_default(source: Path, tmp_path: Path) -> None:
    folder = make(source, tmp_path / "out")
    index = json.loads((folder / "index.json").read_text())
    del index["settings"]["test"]
    (folder / "index.json").write_text(json.dumps(index))
    make(source, folder)
    with pytest.raises(UserError, match="holds shards made with test False, not True"):
        make(source, folder, test=True)


def test_parts_start_at_the_same_moment_without_disturbing_each_other(source: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:  # the check of the folder alone, often enough to meet
        list(pool.map(lambda _: fineweb.check(Options(), tmp_path / "out"), range(400)))
    assert os.listdir(tmp_path / "out") == []
    started = [start(*files(source, tmp_path / "out", "--part", str(i), "--parts", "3")) for i in range(3)]
    results = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], results
    assert len(everything(tmp_path / "out")) == len(tokens_of(documents()))


def test_part_goes_on_after_its_last_whole_shard(source: Path, tmp_path: Path) -> None:
    share = {"part": 1, "parts": 2}
    whole = contents(make(source, tmp_path / "whole", **share))
    make(source, tmp_path / "out", max_shards=1, **share)
    assert contents(make(source, tmp_path / "out", **share)) == whole


# sources


def test_stdlib_needs_no_arguments_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", CLOSED)
    fineweb.main(["--source", "stdlib", "--vocab-size", "300", "--out", str(tmp_path)])
    text = "".join(sources.stdlib().read(0))
    val, train = find_shards(tmp_path, "val", 300), find_shards(tmp_path, "train", 300)
    written = "".join(get_encoding(300).decode(s.read(0, s.tokens).tolist()) for s in val + train)
    assert written.replace("<|endoftext|>", "") == text.replace("<|endoftext|>", "")
    assert "2 shards" in capsys.readouterr().out


def test_files_may_be_several_patterns_of_several_kinds(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", documents()[:20])
    (tmp_path / "b.txt").write_text(documents()[30])
    (tmp_path / "c.md").write_text(documents()[31])
    patterns = ["--files", str(tmp_path / "*.jsonl"), str(tmp_path / "*.txt"), str(tmp_path / "c.md")]
    fineweb.main(["--source", "files", *patterns, *files("", tmp_path / "out", "--val-tokens", "10")[4:]])
    assert len(everything(tmp_path / "out")) == len(tokens_of([*documents()[:20], *documents()[30:32]]))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", documents())
    return folder


def test_hf_reads_a_local_dataset_folder_and_goes_on_in_it(dataset: Path, tmp_path: Path) -> None:
    words = ["--source", "hf", "--hf-path", str(dataset), *files("", tmp_path / "out")[4:]]
    for more in (["--max-shards", "1"], []):
        fineweb.main([*words, *more])
    assert np.array_equal(everything(tmp_path / "out"), tokens_of(documents()))


def test_hf_errors_name_the_flag_that_mends_them(dataset: Path, tmp_path: Path) -> None:
    hf = ["--source", "hf", "--out", str(tmp_path / "out")]
    refused(hf, "--hf-path")
    refused([*hf, "--hf-path", str(dataset), "--text-field", "body"], "'body'", "text", "--text-field")
    refused([*hf, "--hf-path", str(dataset), "--split", "nope"], "'nope'", "--split")


ONLINE = (["fineweb-edu"], ["pretokenized"], ["hf", "--hf-path", "someone/something"])


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that takes connections and never answers: the worst network there is."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("network", ["no server", "no answer", "offline mode"])
def test_no_network_is_said_within_seconds_with_the_offline_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent_server: str, network: str
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", silent_server if network == "no answer" else CLOSED)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", network == "offline mode")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()  # the next one asks no proxy
    began = time.monotonic()
    with ThreadPoolExecutor(len(ONLINE)) as pool:
        commands = [["--source", *source, "--out", str(tmp_path / "out")] for source in ONLINE]
        list(pool.map(lambda words: refused(words, "--source stories"), commands))
    assert time.monotonic() - began < 20  # 5 s alone; this may be a busy machine
    assert os.listdir(tmp_path / "out") == []


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as serves the files of one dataset."""

    files: dict[str, bytes]

    def do_GET(self) -> None:
        name = self.path.split("?")[0].rsplit("/", 1)[-1]
        if self.path.startswith("/api/"):
            body = json.dumps({"id": "kjj0/fineweb10B-gpt2", "sha": "0" * 40, "siblings": []}).encode()
        else:
            body = self.files.get(name, b"")
        self.send_response(200 if body else 404)
        for header in ("ETag", "X-Repo-Commit"):
            self.send_header(header, f'"{name}"' if header == "ETag" else "0" * 40)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


def test_pretokenized_shards_are_fetched_as_they_are(tmp_path: Path) -> None:
    names = ["fineweb_val_000000.bin", *(f"fineweb_train_{n:06d}.bin" for n in (1, 2, 3))]
    for number, name in enumerate(names):
        write_shard(tmp_path / name, np.arange(number, 100 + number))
    Hub.files = {name: (tmp_path / name).read_bytes() for name in names}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "cache"),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    arguments = ["--source", "pretokenized", "--max-shards", "3", "--out", str(tmp_path / "out")]
    for part in ("0", "1", "1"):
        process = start(*arguments, "--part", part, "--parts", "2", **environment)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
    server.shutdown()
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == Hub.files[name]
    assert len(find_shards(tmp_path / "out", "train", 50257)) == 3


# wrong input


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--source", "stdlib", "--vocab-size", "256"], ("--vocab-size 256", "257 to 50257")),
        (["--source", "stdlib", "--vocab-size", "60000"], ("--vocab-size 60000", "257 to 50257")),
        (["--source", "stdlib", "--part", "2", "--parts", "2"], ("--part 2 of --parts 2",)),
        (["--source", "stdlib", "--part", "-1"], ("--part -1", "0 or more")),
        (["--source", "stdlib", "--parts", "0"], ("--parts 0", "1 or more")),
        (["--source", "stdlib", "--shard-tokens", "0"], ("--shard-tokens 0", "1 or more")),
        (["--source", "stdlib", "--val-tokens", "-5"], ("--val-tokens -5", "1 or more")),
        (["--source", "stdlib", "--workers", "0"], ("--workers 0", "1 or more")),
        (["--source", "files"], ("--files",)),
        (["--source", "files", "--files", "nowhere/*.txt"], ("nowhere/*.txt",)),
        (["--source", "files", "--files", "Makefile"], ("Makefile", ".txt", ".parquet")),
    ],
)
def test_wrong_value_is_refused_with_the_right_ones(tmp_path: Path, arguments: list[str], says: tuple[str]) -> None:
    refused([*arguments, "--out", str(tmp_path / "out")], *says)
    assert not list(tmp_path.glob("out/*"))


def test_a_mistake_is_one_line_and_exit_status_2(tmp_path: Path) -> None:
    process = start("--source", "files", "--out", str(tmp_path / "out"))
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert error.startswith("error: --source files needs") and error.count("\n") == 1


@pytest.mark.parametrize(("words", "says"), [(["--shard-token", "5"], "--shard-tokens"), (["--source", "x"], "stdlib")])
def test_unknown_flag_and_source_name_the_nearest(words: list[str], says: str, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        fineweb.main(words)
    assert says in "".join(capsys.readouterr())


def test_unwritable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        refused(["--source", "stdlib", "--out", str(out)], str(out), "--out")
    assert (tmp_path / "file").read_text() == "a file, not a folder"


def test_source_without_any_text_writes_nothing(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("")
    refused(files(tmp_path / "*.txt", tmp_path / "out"), "holds no text", "nothing was written")
    assert os.listdir(tmp_path / "out") == []


def test_empty_documents_are_left_out(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["", "one", "", "", "two", ""])
    folder = make(tmp_path / "a.jsonl", tmp_path / "out", val_tokens=1)
    assert np.array_equal(everything(folder), tokens_of(["one", "two"]))


# memory


@pytest.mark.parametrize("spaces", [True, False])
def test_line_of_50_mb_needs_less_than_1_gb(tmp_path: Path, spaces: bool) -> None:
    text = words(50_000, seed=0).replace("\n", " ")
    text = text if spaces else re.sub(r"\W", "x", text)
    line = (text * (50_000_000 // len(text) + 1))[:50_000_000]
    (tmp_path / "line.txt").write_text(line)
    out = tmp_path / "out"
    one_shard = ("--shard-tokens", "100000000", "--val-tokens", "1000")
    assert peak_memory(files(tmp_path / "line.txt", out, *one_shard)) < 1000
    (val,), (train,) = find_shards(out, "val"), find_shards(out, "train")
    assert ENCODING.decode(val.read(0, 1001).tolist()).startswith("<|endoftext|>" + line[:1000])
    assert line.endswith(ENCODING.decode(train.read(train.tokens - 1000, train.tokens).tolist()))
    assert sum(record["bytes"] for record in json.loads((out / "index.json").read_text())["shards"]) == 50_000_000


def test_memory_does_not_grow_with_the_stream(tmp_path: Path) -> None:
    texts, peaks = [words(2000, seed) for seed in range(100)], []
    for times in (5, 30):  # 5 and 30 MB
        with open(tmp_path / "a.jsonl", "w") as file:
            for _ in range(times):
                file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        peaks.append(peak_memory(files(tmp_path / "a.jsonl", tmp_path / "out", "--shard-tokens", "1000000")))
        shutil.rmtree(tmp_path / "out")
    assert peaks[1] < peaks[0] + 15, peaks
    assert peaks[1] < 500, peaks
