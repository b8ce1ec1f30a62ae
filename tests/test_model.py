"""`gpt2/model.py` is GPT-2: the same numbers as `transformers`, the same files, the same counts."""

import json
import math
import os

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gpt2 import kernels
from gpt2.config.run import Optim
from gpt2.formats.build import build, named_config
from gpt2.formats.huggingface import save_pretrained
from gpt2.formats.load import from_pretrained
from gpt2.kernels import chunked_cross_entropy, linear_cross_entropy
from gpt2.model import GPT, GPTConfig
from gpt2.modern.model import ModernConfig
from gpt2.modern.parts import Parts
from gpt2.optim.optimizer import parameter_groups
from gpt2.system.errors import UserError

transformers = pytest.importorskip("transformers")
GPT2Config, GPT2LMHeadModel = transformers.GPT2Config, transformers.GPT2LMHeadModel
SMALL = GPTConfig(block_size=32, vocab_size=301, n_layer=3, n_head=4, n_embd=64)


def perturbed(config: GPTConfig) -> GPT:
    """A model whose biases and norms are not at their trivial initial values."""
    torch.manual_seed(0)
    model = GPT(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.fixture(params=[False, True], ids=["inference", "training"])
def reference(request, tmp_path):
    """Our model and `transformers`' reading of the folder that it saved, in fp32."""
    model = perturbed(SMALL)
    save_pretrained(model, tmp_path)
    model.requires_grad_(request.param)  # the attention formula differs with it on a CPU
    return model, GPT2LMHeadModel.from_pretrained(tmp_path).eval()


def test_logits_and_loss_equal_transformers(reference):
    model, theirs = reference
    idx = torch.randint(301, (2, 32))
    expected = theirs(idx, labels=idx)
    torch.testing.assert_close(model(idx), expected.logits, atol=1e-4, rtol=0)
    loss = model(idx[:, :-1], idx[:, 1:])
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=0)


def test_gradients_equal_transformers(tmp_path):
    model = perturbed(SMALL)
    save_pretrained(model, tmp_path)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    idx = torch.randint(301, (2, 32))
    model(idx[:, :-1], idx[:, 1:]).backward()
    theirs(idx, labels=idx).loss.backward()
    grads = dict(theirs.named_parameters())
    for name, p in model.named_parameters():
        grad = grads[name].grad
        ours = p.grad[:301] if name == "transformer.wte.weight" else p.grad
        ours = ours.t() if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else ours
        torch.testing.assert_close(ours, grad, atol=1e-5, rtol=1e-4)


def test_loads_what_transformers_saved_and_back(tmp_path):
    config = GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=301, n_positions=24)
    theirs = GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    model = from_pretrained(str(tmp_path / "theirs"))
    save_pretrained(model, tmp_path / "ours")
    back = GPT2LMHeadModel.from_pretrained(tmp_path / "ours").eval()
    idx = torch.randint(301, (2, 24))
    torch.testing.assert_close(model(idx), theirs(idx).logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(back(idx).logits, theirs(idx).logits, atol=0, rtol=0)
    assert next(model.parameters()).requires_grad


def test_the_published_sizes_have_the_published_parameter_counts():
    with torch.device("meta"):
        counts = {name: GPT(named_config(name)).num_params() for name in ("gpt2", "gpt2-medium")}
        xl = GPT(named_config("gpt2-xl")).num_params()
    assert counts == {"gpt2": 124_439_808, "gpt2-medium": 354_823_168}
    assert xl == 1_557_611_200


def test_fifty_tensors_decay_and_ninety_eight_do_not():
    with torch.device("meta"):
        decayed, rest = parameter_groups(GPT(GPTConfig()), Optim(weight_decay=0.1))
    assert (len(decayed["params"]), sum(p.numel() for p in decayed["params"])) == (50, 124_354_560)
    assert (len(rest["params"]), sum(p.numel() for p in rest["params"])) == (98, 121_344)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)


def test_initial_weights_have_the_scale_of_the_paper():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=4000, n_layer=8, n_head=4, n_embd=256))
    state = model.state_dict()
    assert state["transformer.wte.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    for name in ("attn", "mlp"):
        residual = state[f"transformer.h.3.{name}.c_proj.weight"]
        assert residual.std().item() == pytest.approx(0.02 / math.sqrt(2 * 8), rel=0.05)
    idx = torch.randint(4000, (4, 64))
    assert model(idx, torch.randint(4000, (4, 64))).item() == pytest.approx(math.log(4000), abs=0.15)


def first_change(before: Tensor, after: Tensor) -> int:
    """The first position at which two outputs (1, T, …) differ."""
    return ((before - after).abs().amax(dim=(0, 2)) > 1e-4).nonzero()[0].item()


def attend_without_mask(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """`kernels.attend`, but every position sees all others."""
    return F.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize("grad", [False, True])
def test_a_position_does_not_see_the_future(grad, monkeypatch):
    model = perturbed(SMALL).requires_grad_(grad)
    idx = torch.randint(301, (1, 32))
    changed = idx.clone()
    changed[0, 20] = (changed[0, 20] + 1) % 301
    assert first_change(model(idx), model(changed)) == 20
    monkeypatch.setattr(kernels, "attend", attend_without_mask)
    assert first_change(model(idx), model(changed)) == 0


@pytest.mark.parametrize("grad", [False, True])
def test_a_block_without_a_causal_mask_is_found_by_a_random_change_and_not_by_a_constant_one(grad, monkeypatch):
    """LayerNorm subtracts a number that is added to all channels, so attention never sees it (notebook 02)."""
    block = perturbed(SMALL).transformer.h[0].requires_grad_(grad)
    x, constant, random = torch.randn(1, 32, 64), torch.zeros(1, 32, 64), torch.zeros(1, 32, 64)
    constant[0, 20], random[0, 20] = 1.0, torch.randn(64)
    assert first_change(block(x), block(x + constant)) == first_change(block(x), block(x + random)) == 20
    monkeypatch.setattr(kernels, "attend", attend_without_mask)
    assert first_change(block(x), block(x + constant)) == 20  # passes as if there were a mask
    assert first_change(block(x), block(x + random)) == 0


@pytest.mark.parametrize("pieces", [[32], [1] * 32, [10, 5, 1, 16]])
def test_cached_logits_equal_uncached_ones(pieces):
    model = perturbed(SMALL).requires_grad_(False)
    idx = torch.randint(301, (2, 32))
    cache = model.new_cache(2)
    cached = torch.cat([model(part, cache=cache) for part in idx.split(pieces, dim=1)], dim=1)
    torch.testing.assert_close(cached, model(idx), atol=1e-4, rtol=0)


def test_padding_rows_get_no_probability_and_no_gradient():
    model = perturbed(SMALL)
    with torch.no_grad():
        model.transformer.wte.weight[301:] = 50.0  # would win every softmax
    idx = torch.randint(301, (2, 16))
    logits, loss = model(idx), model(idx, idx)
    assert logits.shape == (2, 16, 301)
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), idx.flatten()))
    loss.backward()
    assert model.transformer.wte.weight.grad[301:].abs().max() == 0


def test_chunked_loss_equals_the_plain_one_and_its_gradients():
    torch.manual_seed(0)
    targets = torch.randint(301, (100,))
    targets[7] = -100
    results = []
    for chunk in (None, 1, 320 * 33):
        x, weight = torch.randn(100, 16).requires_grad_(), torch.randn(320, 16).requires_grad_()
        with torch.no_grad():
            x.copy_(torch.linspace(-1, 1, 1600).view(100, 16))
            weight.copy_(torch.linspace(-2, 2, 5120).view(320, 16).sin())
        if chunk is None:
            loss = F.cross_entropy((x @ weight.t())[:, :301], targets)
        else:
            loss = chunked_cross_entropy(x, weight, targets, 301, chunk_logits=chunk)
        loss.backward()
        results.append((loss.detach(), x.grad, weight.grad))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], atol=1e-6, rtol=1e-5)


def test_large_logits_are_never_held_whole(monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK_LOGITS", 10_000)
    monkeypatch.setattr(kernels.chunked_cross_entropy, "__defaults__", (10_000,))
    seen = []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda x, w: seen.append(x.size(0) * w.size(0)) or linear(x, w))
    x, weight = torch.randn(500, 16), torch.randn(320, 16)
    linear_cross_entropy(x, weight, torch.randint(301, (500,)), 301)
    assert len(seen) > 1 and max(seen) <= 10_000


def test_chunked_loss_under_autocast_equals_the_plain_one():
    targets = torch.randint(301, (100,))
    results = []
    for chunk in (2**28, 320 * 33):
        torch.manual_seed(0)
        x, weight = torch.randn(100, 16, requires_grad=True), torch.randn(320, 16, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            loss = chunked_cross_entropy(x, weight, targets, 301, chunk_logits=chunk)
        loss.backward()
        results.append((loss.detach(), x.grad, weight.grad))
    assert results[0][0].dtype == torch.float32
    torch.testing.assert_close(results[1], results[0], atol=1e-3, rtol=1e-2)


def test_another_architecture_is_refused(tmp_path):
    for name, change in (("other", {"activation_function": "relu"}), ("untied", {"tie_word_embeddings": False})):
        config = GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=301, n_positions=8, **change)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / name)
        with pytest.raises(UserError, match=f"another architecture: its {next(iter(change))} is"):
            from_pretrained(str(tmp_path / name))


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch before 2.13")
def test_torchs_own_fused_loss_equals_the_fallback():
    x, weight, targets = torch.randn(100, 16), torch.randn(320, 16), torch.randint(301, (100,))
    padding = torch.zeros(320)
    padding[301:] = float("-inf")
    options = torch.nn.LinearCrossEntropyOptions()
    theirs = F.linear_cross_entropy(x, weight, targets, linear_bias=padding, options=options)
    torch.testing.assert_close(theirs, chunked_cross_entropy(x, weight, targets, 301), atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
def test_fp32_loss_on_a_gpu_equals_the_fallback(monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK_LOGITS", 10_000)
    x, weight = torch.randn(500, 64, device="cuda"), torch.randn(320, 64, device="cuda")
    targets = torch.randint(301, (500,), device="cuda")
    expected = chunked_cross_entropy(x.double(), weight.double(), targets, 301, chunk_logits=10_000)
    loss = linear_cross_entropy(x, weight, targets, 301)
    torch.testing.assert_close(loss.double(), expected.double(), atol=1e-3, rtol=1e-3)


def test_an_interrupted_save_keeps_the_older_weights(tmp_path, monkeypatch):
    model = perturbed(SMALL)
    save_pretrained(model, tmp_path)
    before, names = (tmp_path / "model.safetensors").read_bytes(), set(os.listdir(tmp_path))
    (tmp_path / "model.safetensors.tmp").symlink_to("/dev/full")
    with torch.no_grad():
        model.transformer.wte.weight.add_(1)
    with pytest.raises(OSError, match="No space"):
        save_pretrained(model, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert set(os.listdir(tmp_path)) == names


def test_unknown_names_and_impossible_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'d13'.*d12.*gpt2-xl"):
        named_config("d13")
    with pytest.raises(ValueError, match="not divisible by n_head 5"):
        GPTConfig(n_embd=64, n_head=5)
    with pytest.raises(ValueError, match="33 positions"):
        GPT(SMALL)(torch.zeros(1, 33, dtype=torch.long))
    with pytest.raises(UserError, match="no model folder 'no/such-model'"):
        from_pretrained("no/such-model")
    with pytest.raises(UserError, match="holds no model; give a run folder, or one that save_pretrained wrote"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"has no model\.safetensors; give a folder that save_pretrained wrote"):
        from_pretrained(tmp_path)


DAMAGES = ["{", "[]", "\xff", "n_head 5", "n_head null", "n_layer 2", "n_layer 4", "n_layer 3.5", "vocab_size 999"]
DAMAGES += ['vocab_size "301"', "n_embd 0", 'model_type "gpt_oss"', "weights"]
MODERN = ModernConfig(**vars(SMALL), parts=Parts(norm="rms"))
CASES = [(config, damage) for config in (SMALL, MODERN) for damage in DAMAGES] + [(MODERN, 'parts {"norms": 1}')]


@pytest.mark.parametrize(("config", "damage"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_damaged_model_folder_is_one_sentence_that_names_it_and_the_remedy(config, damage, tmp_path):
    save_pretrained(build(config), tmp_path)
    weights, text = tmp_path / "model.safetensors", tmp_path / "config.json"
    key, _, value = damage.partition(" ")
    if key == "weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif value:
        more = {"num_hidden_layers": "two"} if key == "model_type" else {}
        text.write_text(json.dumps(json.loads(text.read_text()) | more | {key: json.loads(value)}))
    else:
        text.write_text(key, encoding="latin-1")
    with pytest.raises(UserError, match=rf"^{tmp_path}/[^\n]{{,300}}; write or fetch this folder again$"):
        from_pretrained(tmp_path)


def test_a_file_is_not_looked_for_on_the_hub(tmp_path):
    (tmp_path / "model").write_text("")
    with pytest.raises(UserError, match="model is a file; give a run folder"):
        from_pretrained(tmp_path / "model")
