"""The code that torch.compile writes for an H200, compiled without one: how many kernels, and what they move.

After the first step, nothing is compiled again.
"""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
from conftest import ROOT

from gpt2.config.presets import PRESETS
from gpt2.formats.build import make_config
from gpt2.planning.memory import Setup
from gpt2.planning.step import LOGIT_PASSES, bytes_per_channel

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ to compile the device with"),
    pytest.mark.skipif(find_spec("triton") is None, reason="there is no triton; pip install -e '.[lowering]'"),
]
# preset → kernels, launches of all kernels, library calls and launches of the optimiser of two layers, at most
LIMITS = {
    "gpt2-124m": (39, 100, 31, 12),
    "speedrun": (28, 79, 31, 98),
    "magnitude": (37, 84, 31, 60),
    "languini-small": (38, 99, 31, 5),
    "gpt-oss-mini": (100, 226, 41, 12),
}


def lower(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks/lowering.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("preset", LIMITS)
def test_a_preset_compiles_for_a_gpu_as_well_as_recorded(preset):
    done = lower(preset, "--layers", "2", "--micro-batch", "16", "--kernels", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert (found["graphs"], found["graph_breaks"], found["recompilations"]) == (1, 0, 0)
    kernels, launches, library_calls, optimizer_launches = LIMITS[preset]
    assert found["optimizer_launches"] <= optimizer_launches
    assert found["kernels"] <= kernels and found["launches"] <= launches and found["library_calls"] <= library_calls
    assert found["shared_bytes"] <= 227 * 1024 and found["registers"] <= 255
    assert not [name for name in found["narrow_loads"] if "softmax" in name]  # the loss reads 8 bytes at a time
    assert not found["cosines"]  # rotary positions are a table
    run = PRESETS[preset][1]
    config = make_config(run.model, run.parts)
    tokens = 16 * config.block_size
    layers = 2 * config.n_embd * bytes_per_channel(config, Setup(weights=run.system.weights))
    predicted = tokens * (layers + 2 * LOGIT_PASSES * config.padded_vocab_size) / 1e9
    assert found["gigabytes"] == pytest.approx(predicted, rel=0.15)


def test_what_cannot_be_lowered_is_a_sentence():
    for words, sentence in (
        (["gpt5"], "error: unknown preset 'gpt5'; known: gpt2-124m, "),
        (["demo", "--card", "rtx-1"], "error: unknown card 'rtx-1'; known: h200, "),
        (["demo", "--layers", "0"], "error: --layers 0 "),
        (
            ["--peer", "nowhere"],
            "error: --peer nowhere is no clone of nanoGPT or build-nanogpt: it has no train_gpt2.py",
        ),
    ):
        done = lower(*words)
        assert (done.returncode, done.stdout) == (2, "") and sentence in done.stderr


def test_without_a_compiler_a_sentence_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = lower("demo")
    assert done.returncode == 2 and done.stderr == "error: there is no g++ to compile fake_cuda.cpp with; install one\n"
