"""The race with nanoGPT is fair: one cut of the text for both, and one loss."""

import math
import os
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, run_python

from gpt2.data.shards import find_shards
from gpt2.data.tokenizer import get_encoding

sys.path.insert(0, str(ROOT / "benchmarks"))
import time_to_loss

TEXT = "".join(f"Citizen {i}:\nSpeak, speak.\n\n" for i in range(40))


def shard_text(folder, split: str) -> str:
    (shard,) = find_shards(folder, split, 257)
    return get_encoding(257).decode(shard.read(0, shard.tokens).tolist())


def test_training_sees_no_character_of_the_held_out_text(tmp_path):
    shards = time_to_loss.write_shards(TEXT, tmp_path)
    cut = int(len(TEXT) * 0.9)  # as in nanoGPT's data/shakespeare_char/prepare.py
    assert shard_text(shards, "train") == "<|endoftext|>" + TEXT[:cut]
    assert shard_text(shards, "val") == "<|endoftext|>" + TEXT[cut:]


@pytest.mark.skipif("NANOGPT" not in os.environ, reason="needs a clone of nanoGPT, named by NANOGPT")
def test_nanogpt_cuts_the_text_at_the_same_character(tmp_path):
    clone = time_to_loss.prepare_nanogpt(time_to_loss.Path(os.environ["NANOGPT"]), TEXT, tmp_path)
    characters = sorted(set(TEXT))
    for name, part in zip(("train", "val"), time_to_loss.split(TEXT), strict=True):
        tokens = np.fromfile(clone / "data" / "shakespeare_char" / f"{name}.bin", dtype=np.uint16)
        assert "".join(characters[i] for i in tokens) == part


def test_the_held_out_loss_counts_every_target_of_whole_windows_once():
    tokens = np.random.default_rng(0).integers(0, 7, 64 * 131 + 30)  # more windows than are computed at a time
    table = torch.randn(7, 7, generator=torch.Generator().manual_seed(0))
    said = time_to_loss.held_out_loss(lambda x: table[x], tokens)
    pairs = [(tokens[i], tokens[i + 1]) for i in range(64 * 131)]
    assert said == pytest.approx(-np.mean([table.log_softmax(-1)[a, b].item() for a, b in pairs]), abs=1e-6)
    assert time_to_loss.held_out_loss(lambda x: torch.zeros(*x.shape, 7), tokens) == pytest.approx(math.log(7))


@pytest.mark.parametrize("case", ["no clone", "no text", "text that is not ASCII"])
def test_wrong_input_is_refused_in_one_sentence(tmp_path, case):
    text = tmp_path / "text.txt"
    if case != "no text":
        text.write_text("Zoë" if "ASCII" in case else TEXT, encoding="utf-8")
    done = run_python("benchmarks/time_to_loss.py", "--clone", tmp_path, "--text", text, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert ("--clone" if case == "no clone" else "--text") in done.stderr
