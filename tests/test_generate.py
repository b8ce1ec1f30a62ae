"""Sampling: the cache changes the speed alone, and each rule does what its paper says."""

import json
import lzma
import math
import time

import pytest
import torch
from conftest import run_python
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpt2 import __main__ as gpt2_command
from gpt2 import kernels
from gpt2.data.sources import STORIES
from gpt2.data.tokenizer import get_encoding, token_bytes
from gpt2.evaluation.report import compressed_bits_per_byte
from gpt2.formats import load
from gpt2.formats.huggingface import save_pretrained
from gpt2.formats.packed import PackedWeight, pack
from gpt2.generate import generate, sample_token
from gpt2.model import GPT, GPTConfig
from gpt2.system.errors import UserError

needs_onednn = pytest.mark.skipif(kernels._ONEDNN is None, reason="torch is built without oneDNN")


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=32, vocab_size=257, n_layer=2, n_head=2, n_embd=32))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def written(model, idx, tokens, **rule):
    return torch.cat(list(generate(model, idx, tokens, **rule)), dim=1)


def test_cached_sampling_equals_uncached(model):
    idx = torch.randint(257, (3, 5))
    cached = written(model, idx, 27, generator=torch.Generator().manual_seed(1))
    context, generator = idx, torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(27):
            context = torch.cat([context, sample_token(model(context)[:, -1], generator=generator)], dim=1)
    assert torch.equal(cached, context[:, 5:])


@pytest.mark.parametrize(("batch", "steps"), [(1, [16, 1, 1, 1]), (3, [5, 4, 1, 9]), (1, [1] * 6)])
@pytest.mark.parametrize("width", [32, 768])  # 768: the shapes of 124M, with fewer layers and tokens
def test_cached_logits_are_the_uncached_ones(batch, steps, width):
    torch.manual_seed(0)
    wide = GPT(GPTConfig(block_size=32, vocab_size=2000, n_layer=2, n_head=width // 32, n_embd=width))
    idx = torch.randint(2000, (batch, sum(steps)))
    uncached = wide(idx)  # with gradients: through other products than without
    cache = wide.new_cache(batch, sum(steps))
    with torch.no_grad():
        cached = torch.cat([wide(part, cache=cache) for part in idx.split(steps, dim=1)], dim=1)
    torch.testing.assert_close(cached, uncached, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3), (2, 0)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("onednn", [True, False])
def test_products_without_gradients_are_those_with_gradients(monkeypatch, shape, bias, onednn):
    monkeypatch.setattr(kernels, "onednn_is_faster", lambda few: onednn)
    x, weight = torch.randn(*shape, 2, 48)[..., 0, :], torch.randn(40, 48)
    b = torch.randn(40) if bias else None
    expected = F.linear(x, weight, b)
    with torch.no_grad():
        torch.testing.assert_close(kernels.linear(x, weight, b), expected, atol=1e-5, rtol=1e-5)
        assert kernels.linear(x.double(), weight.double(), None).dtype == torch.float64
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert kernels.linear(x, weight, b).dtype == torch.bfloat16


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
def test_onednn_gives_the_products_of_pytorch(bias):
    x, weight = torch.randn(1, 1, 48), torch.randn(40, 48)
    b = torch.randn(40) if bias else None
    torch.testing.assert_close(kernels.onednn_linear(x, weight, b), F.linear(x, weight, b), atol=1e-5, rtol=1e-5)


@pytest.fixture
def products(monkeypatch) -> list[str]:
    """The names of the products that `kernels.linear` calls, where oneDNN is faster."""
    called: list[str] = []

    def watched(name, product):
        return lambda *arguments: (called.append(name), product(*arguments))[1]

    monkeypatch.setattr(kernels, "onednn_is_faster", lambda few: True)
    monkeypatch.setattr(kernels, "onednn_linear", watched("onednn", F.linear))
    monkeypatch.setattr(kernels.F, "linear", watched("plain", F.linear))
    return called


def test_rows_without_gradients_take_the_product_that_was_measured_faster(monkeypatch, products):
    few, many, weight = torch.randn(1, 16, 48), torch.randn(17, 48), torch.randn(40, 48)
    with torch.no_grad():
        kernels.linear(few, weight)
        monkeypatch.setattr(kernels, "onednn_is_faster", lambda few: few)
        kernels.linear(few, weight)
        kernels.linear(many, weight)
    assert products == ["onednn", "onednn", "plain"]


def test_gradients_autocast_and_other_types_take_pytorchs_product(products):
    row, weight = torch.randn(1, 48), torch.randn(40, 48, requires_grad=True)
    kernels.linear(row, weight).sum().backward()
    assert weight.grad is not None
    with torch.no_grad():
        kernels.linear(row.double(), weight.double())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            kernels.linear(row, weight)
    assert products == ["plain"] * 3


@needs_onednn
def test_the_faster_product_is_measured_once_per_process(monkeypatch):
    calls: list[Tensor] = []

    def slow(x, weight, bias=None):
        calls.append(x)
        time.sleep(0.05)

    monkeypatch.setattr(kernels, "onednn_linear", slow)
    kernels.onednn_is_faster.cache_clear()
    try:
        assert not kernels.onednn_is_faster(True) and not kernels.onednn_is_faster(True)
        assert len(calls) == 5
        assert not kernels.onednn_is_faster(False) and len(calls) == 10
    finally:
        kernels.onednn_is_faster.cache_clear()


def test_greedy_is_what_transformers_generates(model, tmp_path):
    from transformers import GPT2LMHeadModel

    save_pretrained(model, tmp_path)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    idx = torch.randint(256, (1, 4))
    expected = theirs.generate(idx, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(written(model, idx, 20, temperature=0), expected[:, 4:])


def test_sampling_continues_past_the_block(model):
    tokens = written(model, torch.randint(257, (2, 30)), 80)
    assert tokens.shape == (2, 80)
    long_prompt = written(model, torch.randint(257, (1, 100)), 3)
    assert long_prompt.shape == (1, 3)


def test_past_the_block_the_later_half_is_the_context(model):
    idx = torch.randint(257, (1, 32))
    tokens = written(model, idx, 2, temperature=0)
    context = torch.cat([idx, tokens[:, :1]], dim=1)[:, -16:]
    with torch.no_grad():
        assert tokens[0, 1] == model(context)[0, -1].argmax()


LOGITS = torch.log(torch.tensor([[0.5, 0.25, 0.15, 0.07, 0.03]]))


def frequencies(**rule) -> torch.Tensor:
    drawn = sample_token(LOGITS.expand(20_000, -1), generator=torch.Generator().manual_seed(0), **rule)
    return torch.bincount(drawn.flatten(), minlength=5) / 20_000


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, [0.5, 0.25, 0.15, 0.07, 0.03]),
        ({"temperature": 0}, [1, 0, 0, 0, 0]),
        ({"temperature": 0.5}, [0.7385, 0.1846, 0.0665, 0.0145, 0.0027]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0, 0]),
        ({"top_k": 99}, [0.5, 0.25, 0.15, 0.07, 0.03]),
        ({"top_p": 0.5}, [1, 0, 0, 0, 0]),
        ({"top_p": 0.8}, [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0, 0]),
        ({"top_k": 3, "top_p": 0.7}, [2 / 3, 1 / 3, 0, 0, 0]),
    ],
)
def test_each_rule_gives_its_distribution(rule, expected):
    torch.testing.assert_close(frequencies(**rule), torch.tensor(expected), atol=0.012, rtol=0, check_dtype=False)


def command(capsys, *words) -> str:
    """What `gpt2 generate` prints, without a new process."""
    gpt2_command.main(["generate", *map(str, words)])
    return capsys.readouterr().out


def test_the_command_continues_a_prompt_the_same_way_for_a_seed(model, tmp_path, capsys):
    save_pretrained(model, tmp_path / "model")
    words = (tmp_path, "--prompt", "abc", "--tokens", "12", "--samples", "2")
    first, second = (command(capsys, *words) for _ in range(2))
    assert first == second and first.startswith("abc") and first.count("abc") == 2
    assert command(capsys, *words, "--seed", "1") != first
    assert command(capsys, tmp_path, "--prompt", "", "--tokens", "3")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--temperature", "-1"], "--temperature -1.0 is out of range"),
        (["--top-p", "1.5"], "--top-p 1.5 is out of range"),
        (["--top-k", "0"], "--top-k 0 is out of range"),
        (["--samples", "0"], "--samples 0 is out of range"),
    ],
)
def test_settings_out_of_range_are_refused(capsys, words, says):
    with pytest.raises(UserError, match=says):
        command(capsys, "nowhere", *words)


def test_a_folder_without_a_model_is_refused(tmp_path):
    done = run_python("-m", "gpt2", "generate", tmp_path, check=False)
    assert done.returncode == 2 and "holds no model" in done.stderr


def test_without_a_name_the_model_of_the_package_writes(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(load, "NOVELS", tmp_path / "novels")
    with pytest.raises(UserError, match=r"weights of novels are not in this copy.*git checkout.*train_gpt2.py novels"):
        command(capsys)
    save_pretrained(model, tmp_path / "novels", torch.bfloat16)
    assert command(capsys, "--prompt", "abc", "--tokens", "5").startswith("abc")
    assert load.is_pretrained("novels") and load.pretrained_config("novels") == model.config


with_weights = pytest.mark.skipif(
    not (load.NOVELS / "model.safetensors").exists(), reason="the weights of novels are not in this copy"
)


@with_weights
def test_the_model_of_the_package_writes_the_same_with_transformers():
    ours, tokenizer = load.from_pretrained("novels"), AutoTokenizer.from_pretrained(load.NOVELS)
    theirs = AutoModelForCausalLM.from_pretrained(load.NOVELS).float().eval()
    idx = torch.tensor([get_encoding(4096).encode_ordinary("The old man looked at")])
    assert tokenizer("The old man looked at").input_ids == idx[0].tolist()
    greedy = theirs.generate(idx, max_new_tokens=40, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    assert torch.equal(torch.cat([idx, written(ours, idx, 40, temperature=0)], dim=1), greedy)
    with torch.no_grad():
        torch.testing.assert_close(ours(greedy), theirs(greedy).logits, atol=1e-3, rtol=0)


@with_weights
def test_the_model_of_the_package_needs_half_the_bits_of_gzip_for_a_novel_it_has_not_read():
    """The Hound of the Baskervilles was held out of its training. Measured on its first 100 kB: 1.448 bits per byte."""
    with lzma.open(STORIES, "rt", encoding="utf-8") as file:
        chapters = [(c["chapter"], c["text"]) for c in map(json.loads, file) if "Baskervilles" in c["title"]]
    text = "\n\n".join(text for _, text in sorted(chapters)).encode()[:100_000].decode(errors="ignore")
    encoding, model = get_encoding(4096), load.from_pretrained("novels").requires_grad_(False)
    rows = torch.tensor([encoding.eot_token, *encoding.encode_ordinary(text)]).unfold(0, 257, 256)
    nats = mean_loss(model, rows)
    bits = nats / math.log(2) / token_bytes(encoding)[rows[:, 1:].numpy()].mean()
    assert bits < 1.46 and bits < 0.5 * compressed_bits_per_byte(text.encode())["gzip"]
    few = rows[:24]  # what 16 and 8 bits cost, as `gpt2 generate --help` says
    before = mean_loss(model, few)
    assert mean_loss(model.bfloat16(), few) == pytest.approx(before, abs=2e-3)
    pack(model)
    assert mean_loss(model, few) == pytest.approx(before, abs=4e-3)


def mean_loss(model: GPT, rows: Tensor) -> float:
    return sum(model(part[:, :-1], part[:, 1:]).item() * len(part) for part in rows.split(8)) / len(rows)


@pytest.mark.parametrize("rows", [1, kernels.FEW_ROWS, kernels.FEW_ROWS + 1])
def test_a_packed_weight_is_off_by_half_a_step_and_multiplies_as_the_unpacked_one(rows):
    torch.manual_seed(0)
    weight, bias = torch.randn(96, 64).bfloat16(), torch.randn(96).bfloat16()
    weight[5] = 0
    packed = PackedWeight.pack(weight)
    step = weight.float().abs().amax(1, keepdim=True) / 127
    # bf16 rounds the scale, and the unpacked value, by up to 1/256 of it
    assert ((packed.unpack() - weight).abs() <= 0.51 * step + weight.abs() / 100).all()
    x = torch.randn(1, rows, 64).bfloat16()
    torch.testing.assert_close(F.linear(x, packed, bias), F.linear(x, packed.unpack(), bias), atol=0.1, rtol=0.02)
    idx = torch.tensor([[3, 5]])
    assert torch.equal(F.embedding(idx, packed), F.embedding(idx, packed.unpack()))
    assert (packed.shape, packed.dtype) == (weight.shape, torch.bfloat16)
    assert packed.as_subclass(Tensor).dtype == torch.int8


@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_the_command_samples_with_weights_in_fewer_bits(model, tmp_path, capsys, kind):
    save_pretrained(model, tmp_path)
    words = ["generate", str(tmp_path), "--prompt", "a", "--tokens", "40", "--temperature", "0", "--weights", kind]
    gpt2_command.main(words)
    assert capsys.readouterr().out.startswith("a")
    packed = model.bfloat16()
    if kind == "int8":
        pack(packed)
    assert packed.new_cache(1).k[0].dtype == torch.bfloat16
    assert written(packed, torch.tensor([[65]]), 40, temperature=0).shape == (1, 40)
