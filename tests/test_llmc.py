"""llm.c's checkpoint: written and read as llm.c does both, refused where it is something else, and llm.c agrees."""

import os
import struct

import numpy as np
import pytest
import torch
from conftest import run_python
from torch.nn import functional as F
from transformers import AutoTokenizer, GPT2LMHeadModel

from gpt2 import __main__ as command
from gpt2.formats.build import build
from gpt2.formats.huggingface import save_pretrained
from gpt2.formats.llmc import read_model, write_model
from gpt2.formats.load import from_pretrained, pretrained_config
from gpt2.model import GPT, GPTConfig
from gpt2.modern.model import ModernConfig
from gpt2.modern.parts import Parts
from gpt2.system.errors import UserError

CONFIG = GPTConfig(block_size=24, vocab_size=301, n_layer=3, n_head=2, n_embd=16)
IDX = torch.arange(40).view(2, 20) * 7 % 301


def perturbed(config: GPTConfig = CONFIG) -> GPT:
    """A model in which every tensor matters."""
    torch.manual_seed(1)
    model = GPT(config).requires_grad_(False)
    for p in model.parameters():
        p += 0.2 * torch.randn_like(p)
    return model


def reference_bytes(version: int, rows: int) -> tuple[bytes, dict[str, np.ndarray]]:
    """A checkpoint put together from the format's description alone, and its tensors, layers stacked."""
    T, V, L, H, C = 24, 301, 3, 2, 16
    random = np.random.default_rng(0)
    shapes = {
        **{"wte": (rows, C), "wpe": (T, C), "ln1w": (L, C), "ln1b": (L, C), "qkvw": (L, 3 * C, C), "qkvb": (L, 3 * C)},
        **{"attprojw": (L, C, C), "attprojb": (L, C), "ln2w": (L, C), "ln2b": (L, C), "fcw": (L, 4 * C, C)},
        **{"fcb": (L, 4 * C), "fcprojw": (L, C, 4 * C), "fcprojb": (L, C), "lnfw": (C,), "lnfb": (C,)},
    }
    file = struct.pack("<256i", 20240326, version, T, V, L, H, C, rows, *[0] * 248)
    tensors = {}
    for name, shape in shapes.items():
        bits = random.normal(0, 0.3, shape).astype("<f4").view("<u4")
        if version == 5:  # the upper half of an fp32 is a bf16
            bits &= 0xFFFF0000
        tensors[name] = bits.view("<f4")
        file += bits.tobytes() if version == 3 else (bits >> 16).astype("<u2").tobytes()
    return file, tensors


def reference_logits(p: dict[str, np.ndarray], idx: np.ndarray) -> np.ndarray:
    """GPT-2 in numpy: tokens (B, T) → logits (B, T, rows)."""
    heads, C, T = 2, 16, idx.shape[1]

    def norm(x, weight, bias):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias

    x = p["wte"][idx] + p["wpe"][:T]
    for i in range(3):
        qkv = norm(x, p["ln1w"][i], p["ln1b"][i]) @ p["qkvw"][i].T + p["qkvb"][i]
        q, k, v = (np.stack(np.split(part, heads, -1), 1) for part in np.split(qkv, 3, -1))  # (B, heads, T, D)
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(C / heads) + np.triu(np.full((T, T), -np.inf), 1)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        y = np.concatenate(list((weights / weights.sum(-1, keepdims=True) @ v).swapaxes(0, 1)), -1)
        x = x + y @ p["attprojw"][i].T + p["attprojb"][i]
        h = norm(x, p["ln2w"][i], p["ln2b"][i]) @ p["fcw"][i].T + p["fcb"][i]
        h = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + h @ p["fcprojw"][i].T + p["fcprojb"][i]
    return norm(x, p["lnfw"], p["lnfb"]) @ p["wte"].T


@pytest.mark.parametrize("rows", [301, 384, 640])
@pytest.mark.parametrize("version", [3, 5])
def test_a_checkpoint_of_llm_c_is_read_with_its_logits(tmp_path, version, rows):
    content, tensors = reference_bytes(version, rows)
    (tmp_path / "model.bin").write_bytes(content)
    model = read_model(tmp_path / "model.bin")
    assert model.config == CONFIG and next(model.parameters()).requires_grad
    expected = reference_logits(tensors, IDX.numpy())[..., :301]
    np.testing.assert_allclose(model(IDX).detach().numpy(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("dtype", "version"), [("fp32", 3), ("bf16", 5)])
def test_what_is_written_is_the_file_that_llm_c_would_have(tmp_path, dtype, version):
    content, tensors = reference_bytes(version, 384)
    tensors["wte"][301:] = 0
    start, width = 1024 + 301 * 16 * (4 if version == 3 else 2), 83 * 16 * (4 if version == 3 else 2)
    content = content[:start] + bytes(width) + content[start + width :]  # the padding rows hold zeros
    (tmp_path / "theirs.bin").write_bytes(content)
    write_model(read_model(tmp_path / "theirs.bin"), tmp_path / "ours.bin", dtype)
    assert (tmp_path / "ours.bin").read_bytes() == content
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["ours.bin", "theirs.bin"]


def test_bf16_rounds_every_weight_once_and_fp32_none(tmp_path):
    model = perturbed()
    for dtype in ("fp32", "bf16"):
        write_model(model, tmp_path / "model.bin", dtype)
        state = read_model(tmp_path / "model.bin").state_dict()
        for name, tensor in model.state_dict().items():
            tensor = tensor[:301] if name == "transformer.wte.weight" else tensor
            expected = tensor.bfloat16().float() if dtype == "bf16" else tensor
            assert torch.equal(state[name][: len(tensor)], expected), name


def test_padding_rows_do_not_matter(tmp_path):
    model = perturbed()
    model.transformer.wte.weight[301:] = 50.0  # would win every softmax, were they read
    write_model(model, tmp_path / "model.bin")
    written = np.fromfile(tmp_path / "model.bin", "<f4")[256:].reshape(-1, 16)
    assert written[301:384].any() == 0 and written[[300, 384]].all()
    again = read_model(tmp_path / "model.bin")
    table = again.transformer.wte.weight
    assert table.shape == (320, 16) and table[301:].abs().max() == 0
    torch.testing.assert_close(again(IDX), model(IDX))
    torch.testing.assert_close(again(IDX, IDX), F.cross_entropy(model(IDX).flatten(0, 1), IDX.flatten()))


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        (0, 20240520, r"is no checkpoint of llm.c: it starts with \[20240520\], not with 20240326"),
        (1, 1, r"has version 1 of llm.c's format; 3 \(fp32\) and 5 \(bf16\) can be read"),
        (3, 999, "is damaged: 384 rows for a vocabulary of 999"),
        (5, 3, "is damaged: n_embd 16 is not divisible by n_head 3"),
        (4, 2**31 - 1, "its header promises .* bytes and it has 66,624"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_value(tmp_path, place, value, sentence):
    content = bytearray(reference_bytes(3, 384)[0])
    content[4 * place : 4 * place + 4] = struct.pack("<i", value)
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read_model(tmp_path / "model.bin")


@pytest.mark.parametrize("kept", [0, 3, 600, 1024, 30_000])
def test_a_cut_file_is_refused(tmp_path, kept):
    (tmp_path / "model.bin").write_bytes(reference_bytes(3, 384)[0][:kept])
    with pytest.raises(UserError, match=r"no checkpoint of llm.c|is damaged"):
        read_model(tmp_path / "model.bin")
    with pytest.raises(UserError, match=r"no file .*other.bin"):
        read_model(tmp_path / "other.bin")


def test_a_write_that_fails_leaves_the_older_file(tmp_path):
    write_model(perturbed(), tmp_path / "model.bin")
    before = (tmp_path / "model.bin").read_bytes()
    (tmp_path / "model.bin.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_model(perturbed(), tmp_path / "model.bin")
    assert [path.name for path in tmp_path.iterdir()] == ["model.bin"]
    assert (tmp_path / "model.bin").read_bytes() == before


def test_another_architecture_is_not_written(tmp_path):
    model = build(ModernConfig(24, 301, 1, 2, 16, parts=Parts(norm="rms", tied=False)))
    with pytest.raises(UserError, match="not a model with norm rms, tied False"):
        write_model(model, tmp_path / "model.bin")
    assert not list(tmp_path.iterdir())


def test_the_command_writes_what_generate_opens(tmp_path, capsys):
    save_pretrained(perturbed(), tmp_path / "run" / "model")
    command.main(["convert", str(tmp_path / "run"), str(tmp_path / "out.bin"), "--dtype", "bf16"])
    assert capsys.readouterr().out.endswith(f"out.bin: {perturbed().num_params():,} parameters in bf16\n")
    assert from_pretrained(tmp_path / "out.bin").config == CONFIG == pretrained_config(tmp_path / "out.bin")
    with pytest.raises(UserError, match=r"out\.pt is no format of this command; name a folder"):
        command.main(["convert", str(tmp_path / "run"), str(tmp_path / "out.pt")])


def test_the_command_writes_a_folder_that_transformers_opens_with_its_tokenizer(tmp_path):
    model = perturbed()
    save_pretrained(model, tmp_path / "model")
    command.main(["convert", str(tmp_path / "model"), str(tmp_path / "small"), "--dtype", "bf16"])
    idx = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "small")("The old man")["input_ids"]])
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "small", dtype=torch.float32).eval()
    ours = from_pretrained(tmp_path / "small")
    torch.testing.assert_close(ours(idx), theirs(idx).logits, atol=1e-4, rtol=0)
    halved = 2 * (tmp_path / "small" / "model.safetensors").stat().st_size
    assert halved == pytest.approx((tmp_path / "model" / "model.safetensors").stat().st_size, rel=0.1)


@pytest.mark.skipif("LLM_C" not in os.environ, reason="LLM_C names no clone of llm.c")
def test_llm_c_starts_from_our_file_and_reports_our_losses():
    done = run_python("benchmarks/llmc.py", "--clone", os.environ["LLM_C"])
    assert "largest difference" in done.stdout and done.stdout.count(" train ") == 20, done.stdout
