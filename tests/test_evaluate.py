"""Validation is of the same text always, counts every token once, and compares fairly with compressors."""

import bz2
import gzip
import lzma
import re

import numpy as np
import pytest
import torch
from conftest import run_python, train
from torch.nn import functional as F

from gpt2.distributed import Processes
from gpt2.evaluate import compressed_bits_per_byte, validate
from gpt2.loader import Sequences
from gpt2.model import GPT, GPTConfig
from gpt2.shards import find_shards
from gpt2.tokenizer import get_encoding, token_bytes

ONE = Processes(0, 0, 1, torch.device("cpu"))


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(block_size=16, vocab_size=257, n_layer=2, n_head=2, n_embd=32)).requires_grad_(False)


@pytest.mark.parametrize(("tokens", "micro"), [(16, 1), (160, 4), (176, 4), (10**6, 7)])
def test_the_loss_is_the_mean_over_all_tokens_whatever_the_micro_batch(shards, model, tokens, micro):
    line = np.load(shards / "val_000000.npy")
    count = min(tokens, 1488)
    x = torch.from_numpy(line[:count].astype(np.int64)).view(-1, 16)
    y = torch.from_numpy(line[1 : count + 1].astype(np.int64)).view(-1, 16)
    expected = F.cross_entropy(model(x)[0].flatten(0, 1), y.flatten()).item()
    shapes = set()

    def loss_of(x, y):
        shapes.add(x.shape)
        return model(x, y)[1]

    sequences = Sequences(find_shards(shards, "val"), 16)
    sizes = token_bytes(get_encoding(257))
    loss, bits = validate(loss_of, sequences, tokens, micro, ONE, sizes)
    assert loss == pytest.approx(expected, abs=1e-5)
    assert bits == pytest.approx(expected * count / np.log(2) / sizes[y].sum(), abs=1e-5)
    assert shapes == {(micro, 16)}  # one shape: a compiled model never compiles again


def test_compressors_see_the_same_bytes():
    text = b"def f(x):\n    return x\n" * 50
    expected = {"gzip": gzip.compress(text), "bz2": bz2.compress(text), "xz": lzma.compress(text, preset=9)}
    assert compressed_bits_per_byte(text) == {name: 8 * len(b) / len(text) for name, b in expected.items()}


def test_the_command_repeats_the_runs_last_validation(shards, tmp_path):
    train(shards, tmp_path / "run")
    done = run_python("-m", "gpt2.evaluate", tmp_path / "run").stdout
    last = re.findall(r"val loss: ([\d.]+) \| bits/byte: ([\d.]+)", (tmp_path / "run" / "log.txt").read_text())[-1]
    assert float(re.search(r"loss ([\d.]+)", done)[1]) == pytest.approx(float(last[0]), abs=2e-4)
    assert float(re.search(r"model ([\d.]+)", done)[1]) == pytest.approx(float(last[1]), abs=2e-3)
    assert all(name in done for name in ("gzip", "bz2", "xz"))


def test_too_few_tokens_are_refused(shards, tmp_path):
    train(shards, tmp_path / "run", "--schedule.steps", "4")
    done = run_python("-m", "gpt2.evaluate", tmp_path / "run", "--tokens", "5", check=False)
    assert done.returncode == 2 and "--tokens 5 of 1,500 held-out ones" in done.stderr


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    done = run_python("-m", "gpt2.evaluate", tmp_path, check=False)
    assert done.returncode == 2 and "is not a run folder" in done.stderr
