"""Token shards have two formats, appear whole or not at all, name their damage, and take little memory."""

import errno
import json
import multiprocessing
import os
import random
import re
import resource
import signal
import struct
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from gpt2.__main__ import main as gpt2
from gpt2.data.check import check_folder
from gpt2.data.shards import find_shards, open_shard, sha256_of, write_index, write_shard
from gpt2.system.errors import UserError
from gpt2.system.files import write_atomically

TOKENS = np.random.default_rng(0).integers(0, 50257, 5000).astype(np.uint16)


def in_new_process(function: Callable[[Path], Any], path: Path) -> Any:
    """What the function returns in an interpreter of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, path).result()


def indexed_folder(folder: Path, suffix: str = ".npy", vocab_size: int = 50257) -> list[Path]:
    """A val and two train shards with an index, as fineweb.py leaves them."""
    paths = [folder / (name + suffix) for name in ("val_000000", "train_000001", "train_000002")]
    records = []
    for path in paths:
        write_shard(path, TOKENS % vocab_size)
        records.append({"name": path.name, "tokens": len(TOKENS), "sha256": sha256_of(path)})
    write_index(folder / "index.json", {"vocab_size": vocab_size, "shards": records})
    return paths


# formats


@pytest.mark.parametrize("suffix", [".npy", ".bin"])
@pytest.mark.parametrize("count", [0, 1, 2, 5000])
def test_tokens_come_back_unchanged(tmp_path: Path, suffix: str, count: int) -> None:
    path = tmp_path / f"train_000001{suffix}"
    write_shard(path, TOKENS[:count])
    shard = open_shard(path)
    assert shard.tokens == count
    read = shard.read(0, count)
    assert read.dtype == np.uint16 and np.array_equal(read, TOKENS[:count])
    assert np.array_equal(shard.read(count // 3, count // 2), TOKENS[count // 3 : count // 2])
    assert os.listdir(tmp_path) == [path.name]


def test_bin_is_laid_out_as_llm_c_reads_it(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", TOKENS)
    content = (tmp_path / "a.bin").read_bytes()
    assert struct.unpack("<256i", content[:1024]) == (20240520, 1, 5000, *[0] * 253)
    assert struct.unpack("<5000H", content[1024:]) == tuple(TOKENS.tolist())


def test_bin_of_llm_c_is_read(tmp_path: Path) -> None:
    header = np.zeros(256, dtype=np.int32)  # written as llm.c's data_common.py does
    header[0], header[1], header[2] = 20240520, 1, len(TOKENS)
    with open(tmp_path / "fineweb_train_000001.bin", "wb") as file:
        file.write(header.tobytes())
        file.write(TOKENS.tobytes())
    assert np.array_equal(find_shards(tmp_path, "train")[0].read(0, 5000), TOKENS)


def test_npy_is_what_numpy_saves(tmp_path: Path) -> None:
    write_shard(tmp_path / "ours.npy", TOKENS)
    np.save(tmp_path / "theirs.npy", TOKENS)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()
    assert np.array_equal(np.load(tmp_path / "ours.npy"), TOKENS)


def test_npy_of_build_nanogpt_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "edufineweb_train_000001.npy", TOKENS)
    np.save(tmp_path / "edufineweb_val_000000.npy", TOKENS[:10])
    assert np.array_equal(find_shards(tmp_path, "train", 50257)[0].read(0, 5000), TOKENS)
    assert find_shards(tmp_path, "val")[0].tokens == 10


def test_reading_a_large_shard_keeps_memory_flat(tmp_path: Path) -> None:
    tokens = 200_000_000  # 400 MB; a hole in the file, but every page of it is mapped
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, tokens
    with open(tmp_path / "train.bin", "wb") as file:
        file.write(header.tobytes())
        file.truncate(1024 + 2 * tokens)
    assert in_new_process(growth_of_memory, tmp_path / "train.bin") < 20  # MiB


def growth_of_memory(path: Path) -> float:
    """Read a shard in slices and keep a token of each; return by how many MiB this raised the peak of memory."""
    peaks, kept, shard = [], [], open_shard(path)
    for start in range(0, shard.tokens, 2**20):
        peaks.append(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
        kept.append(shard.read(start, start + 2**20)[:1].copy())
    return peaks[-1] - peaks[0]


# damage


@pytest.mark.parametrize("suffix", [".npy", ".bin"])
@pytest.mark.parametrize("by", [-5000, -2, -1, 1, 2])
def test_shard_of_another_length_than_its_header_says_is_refused(tmp_path: Path, suffix: str, by: int) -> None:
    path = tmp_path / f"train{suffix}"
    write_shard(path, TOKENS)
    os.truncate(path, path.stat().st_size + by)
    with pytest.raises(UserError, match=r"train.* promises 5,000 tokens .* holds .*fineweb\.py"):
        open_shard(path)


@pytest.mark.parametrize("kept", [0, 1, 5, 64, 1000])
@pytest.mark.parametrize("suffix", [".npy", ".bin"])
def test_shard_cut_inside_its_header_is_refused(tmp_path: Path, suffix: str, kept: int) -> None:
    path = tmp_path / f"train{suffix}"
    write_shard(path, TOKENS)
    os.truncate(path, kept)
    with pytest.raises(UserError, match=r"fineweb\.py"):
        open_shard(path)


def test_wrong_magic_number_and_version_are_refused_with_their_values(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    for position, value, named in [(0, 20240521, "20240520"), (4, 7, "version 7")]:
        write_shard(path, TOKENS)
        with open(path, "r+b") as file:
            file.seek(position)
            file.write(struct.pack("<i", value))
        with pytest.raises(UserError, match=r"fineweb\.py") as caught:
            open_shard(path)
        assert named in str(caught.value) and str(value) in str(caught.value)


@pytest.mark.parametrize("array", [TOKENS.astype(np.int32), TOKENS.reshape(2, -1), TOKENS.astype(">u2")])
def test_npy_that_is_not_a_one_dimensional_uint16_array_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "train.npy", array)
    with pytest.raises(UserError, match="not a one-dimensional uint16 array"):
        open_shard(tmp_path / "train.npy")


@pytest.mark.parametrize("suffix", [".npy", ".bin"])
def test_any_damage_of_a_header_is_a_plain_sentence_or_harmless(tmp_path: Path, suffix: str) -> None:
    path, draw = tmp_path / f"train{suffix}", random.Random(0)
    write_shard(path, TOKENS)
    whole = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            damaged[draw.randrange(128)] = draw.randrange(256)
        path.write_bytes(damaged)
        try:
            assert open_shard(path).tokens == len(TOKENS)
        except UserError as error:
            assert str(path) in str(error)


def test_missing_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.bin.*fineweb\.py"):
        open_shard(tmp_path / "nowhere.bin")


# finding


def test_folder_gives_its_split_in_name_order(tmp_path: Path) -> None:
    for name in ("train_000010.bin", "train_000002.bin", "val_000000.bin", "x-train.npy", "trainer.npy", "a.txt"):
        write_shard(tmp_path / name, TOKENS)
    (tmp_path / "train_000011.bin.tmp").write_bytes(b"half")
    assert [s.path.name for s in find_shards(tmp_path, "train")] == [
        "train_000002.bin",
        "train_000010.bin",
        "x-train.npy",
    ]
    assert [s.path.name for s in find_shards(tmp_path, "val")] == ["val_000000.bin"]


def test_glob_pattern_gives_what_it_matches(tmp_path: Path) -> None:
    for name in ("b_2.bin", "b_1.bin", "c.bin"):
        write_shard(tmp_path / name, TOKENS)
    assert [s.path.name for s in find_shards(str(tmp_path / "b_*.bin"), "train")] == ["b_1.bin", "b_2.bin"]


def test_a_pattern_leaves_out_the_shards_of_other_splits(tmp_path: Path) -> None:
    for name in ("web_val_000000.bin", "web_train_000001.bin", "more.bin"):
        write_shard(tmp_path / name, TOKENS)
    for split, names in (("train", ["more.bin", "web_train_000001.bin"]), ("val", ["more.bin", "web_val_000000.bin"])):
        assert [s.path.name for s in find_shards(str(tmp_path / "*.bin"), split)] == names
    with pytest.raises(UserError, match=r"no val shards.*--vocab-size 300 --out .*name them with --data\.val-shards"):
        find_shards(str(tmp_path / "web_train*.bin"), "val", 300)


@pytest.mark.parametrize("where", ["empty", "missing", "missing/*.bin"])
def test_no_shards_says_how_to_make_some(tmp_path: Path, where: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no train shards in .*(empty|missing).*python fineweb\.py --source stories"):
        find_shards(tmp_path / where, "train")


def test_shards_of_another_vocabulary_are_refused_by_their_index(tmp_path: Path) -> None:
    indexed_folder(tmp_path, vocab_size=1024)
    assert len(find_shards(tmp_path, "train", 1024)) == 2
    for where in (tmp_path, tmp_path / "train_*.npy"):
        with pytest.raises(UserError, match=r"vocabulary of 1024.*50257.*--model\.vocab-size 1024.*fineweb\.py"):
            find_shards(where, "train", 50257)


def test_shards_of_another_vocabulary_are_refused_by_their_tokens(tmp_path: Path) -> None:
    write_shard(tmp_path / "train_000001.bin", np.array([5, 1024, 7], dtype=np.uint16))
    assert find_shards(tmp_path, "train", 1025)[0].tokens == 3
    with pytest.raises(UserError, match=r"train_000001\.bin holds token 1024.*1024.*--model\.vocab-size"):
        find_shards(tmp_path, "train", 1024)


@pytest.mark.parametrize("content", ["{", "[]", "null", "{}", '"x"'])
def test_index_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    indexed_folder(tmp_path)
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(UserError, match=r"index\.json is not a shard index .*delete it"):
        find_shards(tmp_path, "train", 50257)


# checking a folder


@pytest.mark.parametrize("suffix", [".npy", ".bin"])
def test_check_finds_a_flipped_byte(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    paths = indexed_folder(tmp_path, suffix)
    gpt2(["check", str(tmp_path)])
    assert "every shard is as its index describes" in capsys.readouterr().out
    content = bytearray(paths[1].read_bytes())
    content[3000] ^= 1
    paths[1].write_bytes(content)
    with pytest.raises(UserError, match=r"fineweb\.py") as caught:
        gpt2(["check", str(tmp_path)])
    assert str(paths[1]) in str(caught.value) and str(paths[2]) not in str(caught.value)


def test_check_names_every_missing_and_short_shard(tmp_path: Path) -> None:
    paths = indexed_folder(tmp_path)
    paths[0].unlink()
    os.truncate(paths[2], 500)
    first, second = check_folder(tmp_path)
    assert paths[0].name in first and paths[2].name in second


def test_check_without_an_index_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no index; name one folder of shards"):
        gpt2(["check", str(tmp_path)])


@pytest.mark.parametrize("words", [[], ["a", "b"]])
def test_check_takes_one_folder(words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpt2(["check", *words])


def test_index_is_json_for_everyone(tmp_path: Path) -> None:
    write_index(tmp_path / "index.json", {"vocab_size": 300, "shards": []})
    assert json.loads((tmp_path / "index.json").read_text()) == {"vocab_size": 300, "shards": []}


# whole or not at all


def test_write_that_fails_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def half(file: BinaryIO) -> None:
        file.write(b"new" * 10**6)
        assert path.read_bytes() == b"old", "the old content stands until the new is whole"
        raise RuntimeError("stopped halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        write_atomically(path, half)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_write_over_a_half_file_of_a_killed_run_succeeds(tmp_path: Path) -> None:
    (tmp_path / "file.tmp").write_bytes(b"much longer than what follows")
    write_atomically(tmp_path / "file", b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("suffix", [".npy", ".bin"])
def test_shard_for_which_no_room_is_left_is_not_left_in_half(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"train{suffix}"
    write_shard(path, TOKENS)
    os.symlink("/dev/full", f"{path}.tmp")
    with pytest.raises(OSError, match="No space left"):
        write_shard(path, TOKENS[:10])
    assert np.array_equal(open_shard(path).read(0, 5000), TOKENS)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".npy", ".bin"])
def test_write_that_stops_among_the_tokens_says_why(tmp_path: Path, suffix: str) -> None:
    assert in_new_process(errno_of_a_write_without_room, tmp_path / f"train{suffix}") == "EFBIG"
    assert os.listdir(tmp_path) == []


def errno_of_a_write_without_room(path: Path) -> str | None:
    """Write a shard of 2 MB where a file may have 200 kB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    try:
        write_shard(path, np.zeros(1_000_000, dtype=np.uint16))
    except OSError as error:
        return errno.errorcode[error.errno]
    return None
