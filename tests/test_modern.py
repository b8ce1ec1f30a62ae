"""Every part of `gpt2.modern` computes what its name says, alone and together with the others."""

import dataclasses
import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from gpt2.config.presets import GPT_OSS, MAGNITUDE, SPEEDRUN
from gpt2.config.run import Model
from gpt2.evaluation.validation import evaluating
from gpt2.formats.build import build, config_from_json, make_config, named_config
from gpt2.formats.gpt_oss import from_mxfp4
from gpt2.formats.huggingface import save_pretrained
from gpt2.formats.load import from_pretrained
from gpt2.model import GPT, GPTConfig
from gpt2.modern import attention
from gpt2.modern.attention import attend, block_mask, block_masks, flex_attend
from gpt2.modern.experts import _grouped_linear, dispatch, grouped_linear
from gpt2.modern.model import Modern, ModernConfig, make_norm, normalise_rows, rms_norm
from gpt2.modern.parts import Parts
from gpt2.planning.flops import matrix_parameters
from gpt2.system.errors import UserError

SIZES = {"block_size": 32, "vocab_size": 300, "n_layer": 2, "n_head": 4, "n_embd": 32}
LANGUINI = Parts(head_size=16, scale_embedding=True, init="languini", tied=False)
LLAMA = Parts(norm="rms", position="rotary", kv_heads=2, bias=False, mlp="swiglu", mlp_width=48, tied=False)
SMALL_OSS = replace(GPT_OSS, kv_heads=1, windows=(8, "full"), mlp_width=24, experts=8)
KINDS = {
    "gpt2": Parts(),
    "speedrun": SPEEDRUN,
    "languini": LANGUINI,
    "llama": LLAMA,
    "gpt-oss": SMALL_OSS,
    "magnitude": MAGNITUDE,
    "magnitude with experts": replace(MAGNITUDE, experts=4, kv_heads=2, tied=True),
    "no positions, one expert a token": Parts(position="none", experts=3, experts_per_token=1, mlp="relu2"),
    "windows and learned positions": Parts(windows=(1, 5, "full"), kv_heads=1, fp32_logits=True),
    "rotary stretched": Parts(position="rotary", yarn_factor=4.0, yarn_context=16, qk_norm=True, sinks=True),
}


def model_of(parts: Parts, seed: int = 0, **sizes: int) -> Modern:
    """A tiny model with random values in every parameter, including those that are initialised to zero."""
    torch.manual_seed(seed)
    model = Modern(ModernConfig(**{**SIZES, **sizes}, parts=parts))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    constrain(model)
    return model


def constrain(model: Modern) -> None:
    """Rescale the rows of a magnitude-preserving model, as the optimiser does after every step."""
    if model.config.parts.normalised_weights:
        normalise_rows(model)


def tokens(batch: int = 2, length: int = 32, vocab_size: int = 300) -> torch.Tensor:
    """Random tokens, the same in every call."""
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))


def test_with_gpt2s_parts_the_model_is_bit_identical_to_gpt2():
    torch.manual_seed(5)
    plain = GPT(GPTConfig(**SIZES))
    torch.manual_seed(5)
    modern = Modern(ModernConfig(**SIZES))
    assert [(n, p.tolist()) for n, p in plain.named_parameters()] == [
        (n, p.tolist()) for n, p in modern.named_parameters()
    ]
    assert plain.num_params() == modern.num_params()
    idx = tokens()
    assert torch.equal(plain(idx), modern(idx))
    losses = [model(idx[:, :-1], idx[:, 1:]) for model in (plain, modern)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for p, q in zip(plain.parameters(), modern.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


@pytest.mark.parametrize("parts", KINDS.values(), ids=KINDS.keys())
def test_no_position_sees_a_later_one_and_the_cache_does_not_change_logits(parts: Parts):
    model = model_of(parts)
    idx = tokens()
    with evaluating(model, torch.device("cpu"), "fp32"):
        logits = model(idx)
        changed = idx.clone()
        changed[:, 20:] = (changed[:, 20:] + 7) % 300
        assert_close(model(changed)[:, :20], logits[:, :20], atol=1e-5, rtol=0)
        cache = model.new_cache(2)
        pieces = [model(piece, cache=cache) for piece in idx.split([10, 1, 1, 9, 1, 10], dim=1)]
    assert_close(torch.cat(pieces, dim=1), logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("parts", KINDS.values(), ids=KINDS.keys())
def test_every_parameter_has_a_gradient_and_the_loss_falls(parts: Parts):
    model = model_of(parts)
    idx = tokens()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(15):
        loss = model(idx[:, :-1], idx[:, 1:])
        loss.backward()
        if step == 0:
            for name, p in model.named_parameters():
                assert p.grad is not None and p.grad.abs().sum() > 0, f"{name} has no gradient"
        optimizer.step()
        optimizer.zero_grad()
        constrain(model)
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("parts", [SPEEDRUN, LANGUINI, SMALL_OSS, MAGNITUDE], ids=lambda p: f"{p.mlp} {p.init}")
def test_a_saved_model_is_loaded_unchanged(parts: Parts, tmp_path):
    model = model_of(parts)
    save_pretrained(model, tmp_path / "model")
    again = from_pretrained(str(tmp_path / "model"))
    assert again.config == model.config
    assert torch.equal(again(tokens()), model(tokens()))


def test_gpt_oss_in_a_folder_has_the_logits_of_transformers(tmp_path):
    """4 layers of alternating windows, sinks, 2 of 8 experts, 4 query heads per key head; prompt and decoding."""
    from transformers import GptOssConfig, GptOssForCausalLM

    yarn = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
    yarn |= {"original_max_position_embeddings": 4096, "rope_theta": 150_000.0}
    theirs_config = GptOssConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=8,
        num_local_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        rope_parameters=yarn,
        layer_types=["sliding_attention", "full_attention"] * 2,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    theirs = GptOssForCausalLM(theirs_config).eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.copy_(1 + 0.2 * torch.randn_like(p) if "norm" in name else 0.2 * torch.randn_like(p))
    theirs.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path)
    idx = tokens(2, 40, 320)
    with evaluating(ours, torch.device("cpu"), "fp32"):
        expected = theirs(idx).logits
        assert expected.std() > 0.5  # weights large enough for every part to matter
        assert_close(ours(idx), expected, atol=1e-4, rtol=0)
        cache, pieces = ours.new_cache(2), []
        for piece in idx.split([20] + [1] * 20, dim=1):
            pieces.append(ours(piece, cache=cache))
        assert_close(torch.cat(pieces, dim=1), expected, atol=1e-4, rtol=0)


def test_experts_in_mxfp4_are_those_of_transformers(tmp_path):
    """Blocks and scales in the place of a matrix. transformers writes them only on a GPU, but unpacks them anywhere."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(0)
    shape = (2, 128, 3)  # experts, rows, groups of 32
    blocks = torch.randint(256, (*shape, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(110, 130, shape, dtype=torch.uint8, generator=generator)
    expected = convert_moe_packed_tensors(blocks, scales).transpose(1, 2)  # (experts, rows, columns)
    assert torch.equal(from_mxfp4(blocks, scales), expected)
    config = {"model_type": "gpt_oss", "num_hidden_layers": 1, "rope_theta": 150000, "num_key_value_heads": 1}
    config |= {"head_dim": 16, "sliding_window": 8, "intermediate_size": 64, "num_local_experts": 2}
    config |= {"num_experts_per_tok": 1, "max_position_embeddings": 64, "vocab_size": 64, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 96}))
    with pytest.raises(UserError, match=r"has no tensor 'model.embed_tokens.weight'; fetch the missing files"):
        from_pretrained(tmp_path)
    layer = "model.layers.0."
    ones = {"model.embed_tokens.weight": (64, 96), "model.norm.weight": (96,), "lm_head.weight": (64, 96)}
    ones |= {f"{layer}{name}.weight": (96,) for name in ("input_layernorm", "post_attention_layernorm")}
    rows = {"q": (32, 96), "k": (16, 96), "v": (16, 96), "o": (96, 32)}
    ones |= {f"{layer}self_attn.{name}_proj.weight": shape for name, shape in rows.items()}
    ones |= {f"{layer}self_attn.{name}_proj.bias": shape[:1] for name, shape in rows.items()}
    ones |= {f"{layer}self_attn.sinks": (2,), f"{layer}mlp.router.weight": (2, 96), f"{layer}mlp.router.bias": (2,)}
    ones |= {f"{layer}mlp.experts.gate_up_proj_bias": (2, 128), f"{layer}mlp.experts.down_proj_bias": (2, 96)}
    tensors = {name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in ones.items()}
    tensors |= {f"{layer}mlp.experts.gate_up_proj_{kind}": t for kind, t in (("blocks", blocks), ("scales", scales))}
    tensors[f"{layer}mlp.experts.down_proj_blocks"] = blocks[:, :96, :2].contiguous()
    tensors[f"{layer}mlp.experts.down_proj_scales"] = scales[:, :96, :2].contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    mlp = from_pretrained(tmp_path).transformer.h[0].mlp
    assert torch.equal(mlp.c_fc.weight, torch.cat([expected[:, ::2], expected[:, 1::2]], dim=1))
    assert torch.equal(mlp.c_proj.weight, expected[:, :96, :64])
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 96, "layer_types": ["full_attention"]}))
    with pytest.raises(UserError, match="layer_types that do not alternate"):
        from_pretrained(tmp_path)
    for change, problem in {
        "rms_norm_eps": r"has rms_norm_eps 1e-06, not gpt-oss's 1e-05",
        "head_dim": r"does not say 'head_dim'",
    }.items():
        other = config | {"hidden_size": 96} | ({change: 1e-6} if "eps" in change else {})
        other = {key: value for key, value in other.items() if "eps" in change or key != change}
        (tmp_path / "config.json").write_text(json.dumps(other))
        with pytest.raises(UserError, match=problem):
            from_pretrained(tmp_path)


def test_gpt_oss_keeps_its_parts():
    model = Model(init="gpt-oss-20b")
    assert make_config(model, Parts()).parts == named_config("gpt-oss-20b").parts
    with pytest.raises(ValueError, match=r"gpt-oss-20b has its own parts; leave --parts out"):
        make_config(model, Parts(balance=0.02))


@pytest.mark.parametrize(("name", "billions", "active"), [("gpt-oss-20b", 20.91, 3.61), ("gpt-oss-120b", 116.83, 5.13)])
def test_gpt_oss_has_the_published_sizes(name, billions, active):
    """In all, and per token; of the embedding, a token uses a row."""
    config = named_config(name)
    with torch.device("meta"):
        model, idx = build(config), torch.zeros(1, 200, dtype=torch.long)
        assert model.num_params() / 1e9 == pytest.approx(billions, abs=0.005)
        assert model(idx).shape == (1, 200, 201_088)
    assert matrix_parameters(config) / 1e9 == pytest.approx(active, abs=0.01)


def llama_weights(theirs: dict[str, torch.Tensor], layers: int, kinds: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Embedding, head, norms and attention of a LLaMA-like model of transformers, under our names."""
    ours = {
        "transformer.wte.weight": theirs["model.embed_tokens.weight"],
        "transformer.ln_f.weight": theirs["model.norm.weight"],
        "lm_head.weight": theirs["lm_head.weight"],
    }
    for i in range(layers):
        old, new = f"model.layers.{i}.", f"transformer.h.{i}."
        ours[new + "ln_1.weight"] = theirs[old + "input_layernorm.weight"]
        ours[new + "ln_2.weight"] = theirs[old + "post_attention_layernorm.weight"]
        for kind in kinds:
            ours[f"{new}attn.c_attn.{kind}"] = torch.cat([theirs[f"{old}self_attn.{x}_proj.{kind}"] for x in "qkv"])
            ours[f"{new}attn.c_proj.{kind}"] = theirs[f"{old}self_attn.o_proj.{kind}"]
    return ours


def test_rotary_positions_rmsnorm_swiglu_and_shared_heads_have_the_logits_of_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=320,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=8,
            num_key_value_heads=2,
            max_position_embeddings=64,
            rms_norm_eps=1e-5,
        )
    ).eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.copy_(1 + 0.2 * torch.randn_like(p) if "norm" in name else 0.2 * torch.randn_like(p))
    state = theirs.state_dict()
    weights = llama_weights(state, 3, ("weight",))
    for i in range(3):
        old, new = f"model.layers.{i}.", f"transformer.h.{i}."
        weights[new + "mlp.c_fc.weight"] = torch.cat([state[f"{old}mlp.{x}_proj.weight"] for x in ("gate", "up")])
        weights[new + "mlp.c_proj.weight"] = state[old + "mlp.down_proj.weight"]
    parts = replace(LLAMA, mlp_width=96)
    ours = Modern(ModernConfig(block_size=64, vocab_size=320, n_layer=3, n_head=8, n_embd=64, parts=parts))
    ours.load_state_dict(weights)
    idx = tokens(2, 40, 320)
    with evaluating(ours, torch.device("cpu"), "fp32"):
        expected = theirs(idx).logits
        assert expected.std() > 0.5
        assert_close(ours(idx), expected, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("window", [None, 1, 9, 64])
def test_flex_attention_computes_the_plain_formula(window: int | None, sinks: bool):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 48, 16, generator=generator) for heads in (4, 2, 2))
    sink = torch.randn(4, generator=generator) if sinks else None
    mask = block_mask(48, window, q.device)
    assert_close(flex_attend(q, k, v, sink, mask), attend(q, k, v, window, sink), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sinks", [None, torch.tensor([-1.0, 0.5, 0.0, 2.0])])
@pytest.mark.parametrize("window", [None, 1, 9])
def test_one_query_attends_as_the_last_of_many_and_copies_no_keys(monkeypatch, window: int | None, sinks):
    q, k, v = (torch.randn(2, heads, 20, 8) for heads in (4, 2, 2))
    whole = attend(q, k, v, window, sinks)
    monkeypatch.setattr(torch.Tensor, "repeat_interleave", None)  # calling it is an error
    assert_close(attend(q[:, :, -1:], k, v, window, sinks), whole[:, :, -1:])


def test_layers_share_the_mask_of_their_window(monkeypatch):
    cpu = torch.device("cpu")
    assert block_mask(64, 9, cpu) is block_mask(64, 9, cpu) is not block_mask(64, 8, cpu)
    assert not block_masks({None, 9}, True, 1024, 1024, cpu)  # the plain formula
    for windows, sinks, expected in (({None, 9, 600}, False, {9}), ({None, 9}, True, {None, 9})):
        monkeypatch.setattr(attention, "block_mask", lambda *_: "mask")  # there is no GPU to make it on
        assert set(block_masks(windows, sinks, 512, 512, torch.device("cuda"))) == expected
    for T, S in ((256, 256), (512, 600)):  # short; after cached positions
        assert not block_masks({9}, True, T, S, torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 40])
def test_flex_attention_on_a_gpu_has_the_gradients_of_the_plain_formula(window: int | None):
    q, k, v = (torch.randn(2, heads, 512, 64, device="cuda", requires_grad=True) for heads in (8, 2, 2))
    sinks = torch.randn(8, device="cuda", requires_grad=True)
    weight = torch.randn(2, 8, 512, 64, device="cuda")
    results = []
    for mask in (None, block_mask(512, window, q.device)):
        y = attend(q, k, v, window, sinks, mask)
        results.append((y, *torch.autograd.grad((y * weight).sum(), (q, k, v, sinks))))
    for plain, fused in zip(*results, strict=True):
        assert_close(fused, plain, atol=2e-3, rtol=2e-3)


def test_the_speedruns_weights_start_as_modded_nanogpts():
    """PyTorch's defaults: uniform linear maps, a normal embedding; zeros at the end of every branch."""
    torch.manual_seed(0)
    model = Modern(ModernConfig(**SIZES | {"n_embd": 128}, parts=SPEEDRUN))
    block = model.transformer.h[0]
    for weight in (block.attn.c_attn.weight, block.mlp.c_fc.weight):
        bound = 1 / math.sqrt(128)
        assert 0.99 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert model.transformer.wte.weight.std().item() == pytest.approx(1, rel=0.02)
    assert not any(w.any() for w in (block.attn.c_proj.weight, block.mlp.c_proj.weight, model.lm_head.weight))


def test_a_norm_without_weights_adds_pytorchs_own_epsilon():
    x = torch.full((1, 32), 2.0**-10)
    expected = 2.0**-10 / math.sqrt(2.0**-20 + 2.0**-23)
    plain = make_norm(ModernConfig(**SIZES, parts=SPEEDRUN))
    for y in (rms_norm(x), plain(x)):
        assert_close(y, torch.full((1, 32), expected))


def test_a_window_hides_the_positions_before_it():
    model = model_of(Parts(windows=(4,), position="none"), n_layer=1)
    idx = tokens()
    with evaluating(model, torch.device("cpu"), "fp32"):
        before = model(idx)
        changed = idx.clone()
        changed[:, 10] = (changed[:, 10] + 1) % 300
        differs = (model(changed) - before).abs().amax((0, 2)) > 1e-6
    assert differs.nonzero().flatten().tolist() == [10, 11, 12, 13]


def test_grouped_products_equal_one_product_per_token():
    torch.manual_seed(0)
    x = torch.randn(11, 6, requires_grad=True)
    weight = torch.randn(4, 5, 6, requires_grad=True)
    expert = torch.tensor([0, 0, 0, 2, 2, 2, 2, 2, 3, 3, 3])  # expert 1 has no token
    ends = torch.tensor([3, 3, 8, 11])
    expected = torch.stack([weight[e] @ row for e, row in zip(expert, x, strict=True)])
    dy = torch.randn(11, 5)
    assert_close(grouped_linear(x, weight, ends), expected)
    gradients = [torch.autograd.grad((y * dy).sum(), (x, weight)) for y in (grouped_linear(x, weight, ends), expected)]
    assert_close(*gradients)


@pytest.mark.parametrize("many", [5, 2000])
def test_every_copy_of_a_token_gets_its_own_row_among_those_of_its_expert(many):
    """Groups begin at multiples of 8, which F.grouped_mm needs. They fit even if one expert gets all tokens."""
    for chosen in (torch.randint(4, (many,)), torch.full((many,), 1), torch.tensor([3] * (many - 1) + [0])):
        row, expert, ends = dispatch(chosen, 4)
        assert row.unique().numel() == many
        assert torch.equal(expert[row].argmax(1), chosen) and expert.sum() == many
        assert torch.equal((row[:, None] >= ends).sum(1), chosen)
        assert (ends % 8 == 0).all() and ends[-1] == len(expert)


@pytest.mark.gpu
def test_grouped_products_on_a_gpu_equal_those_of_a_loop():
    x = torch.randn(104, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(4, 32, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    ends = torch.tensor([32, 32, 80, 104], device="cuda")  # expert 1 has no token
    dy = torch.randn(104, 32, device="cuda", dtype=torch.bfloat16)
    results = []
    for product in (grouped_linear, _grouped_linear):
        y = product(x, weight, ends)
        results.append((y, *torch.autograd.grad((y * dy).sum(), (x, weight))))
    for one, other in zip(*results, strict=True):
        assert_close(one, other, atol=0.1, rtol=0.02)


def test_the_gradients_of_experts_do_not_depend_on_the_micro_batch_size():
    model = model_of(SMALL_OSS)
    idx = tokens(4)

    def gradients(size: int) -> list[torch.Tensor]:
        model.zero_grad()
        for rows in idx.split(size):
            (model(rows[:, :-1], rows[:, 1:]) * size / 4).backward()
        return [p.grad.clone() for p in model.parameters()]

    for whole, parts in zip(gradients(4), gradients(1), strict=True):
        assert_close(parts, whole, atol=1e-6, rtol=1e-4)


def test_load_balancing_keeps_all_experts_busy_and_is_not_part_of_the_loss():
    """With it, a router that prefers one expert learns to use all of them. Without it, it does not."""
    shares = {}
    for balance in (0.0, 0.5):
        model = model_of(Parts(experts=4, experts_per_token=1, balance=balance), n_layer=1)
        router = model.transformer.h[0].mlp.router
        with torch.no_grad():
            router.bias.copy_(torch.tensor([3.0, 0.0, 0.0, 0.0]))
        idx = tokens(8)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(60):
            loss = model(idx[:, :-1], idx[:, 1:])
            if step == 0:
                assert_close(loss, torch.nn.functional.cross_entropy(model(idx[:, :-1]).mT, idx[:, 1:]))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        shares[balance] = model.hidden_and_balance(idx)[1].item()
    assert shares[0.5] < 1.15 < shares[0.0]  # 1: all experts equally busy


def residual_magnitudes(model: Modern, idx: torch.Tensor) -> list[float]:
    """Root mean square of the residual stream after every layer."""
    magnitudes: list[float] = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: magnitudes.append(out[0].square().mean().sqrt().item()))
        for block in model.transformer.h
    ]
    with torch.no_grad():
        model(idx)
    for hook in hooks:
        hook.remove()
    return magnitudes


def train_for(model: Modern, steps: int, constrained: bool) -> None:
    """Train on text with structure: only three tokens can follow each token."""
    generator = torch.Generator().manual_seed(3)
    follows = torch.randint(300, (300, 3), generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2, weight_decay=0.0)
    for _ in range(steps):
        rows = [torch.randint(300, (8,), generator=generator)]
        for _ in range(32):
            rows.append(follows[rows[-1], torch.randint(3, (8,), generator=generator)])
        idx = torch.stack(rows, dim=1)
        model(idx[:, :-1], idx[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if constrained:
            constrain(model)


def row_norms(model: Modern) -> torch.Tensor:
    """Root mean square of every row of every matrix."""
    matrices = [p.detach() for p in model.parameters() if p.dim() >= 2]
    return torch.cat([p.square().mean(-1).sqrt().flatten() for p in matrices])


def test_magnitudes_are_preserved_for_200_steps_and_not_without_these_parts():
    sizes = {"n_layer": 6, "n_embd": 64}
    torch.manual_seed(0)
    model = Modern(ModernConfig(**{**SIZES, **sizes}, parts=MAGNITUDE))
    idx = tokens(8)
    at_start = residual_magnitudes(model, idx)
    assert_close(row_norms(model), torch.ones(len(row_norms(model))), atol=1e-4, rtol=0)
    train_for(model, 200, constrained=True)
    trained = residual_magnitudes(model, idx)
    for magnitude in at_start + trained:
        assert 0.8 < magnitude < 1.25
    assert_close(row_norms(model), torch.ones(len(row_norms(model))), atol=1e-4, rtol=0)

    torch.manual_seed(0)  # with x + f(x), the residual stream grows from layer to layer
    model = Modern(ModernConfig(**{**SIZES, **sizes}, parts=replace(MAGNITUDE, residual="add")))
    train_for(model, 50, constrained=True)
    assert residual_magnitudes(model, idx)[-1] > 1.25
    torch.manual_seed(0)  # without rescaling after every step, rows grow
    model = Modern(ModernConfig(**{**SIZES, **sizes}, parts=MAGNITUDE))
    train_for(model, 50, constrained=False)
    assert (row_norms(model) > 1.1).any()


def test_a_loaded_magnitude_preserving_model_can_be_trained(tmp_path):
    """The padding rows of its embeddings are zero after loading, and must not become NaN."""
    model = model_of(MAGNITUDE)
    save_pretrained(model, tmp_path)
    model = from_pretrained(str(tmp_path))
    train_for(model, 3, constrained=True)
    assert torch.isfinite(model(tokens()[:, :-1], tokens()[:, 1:]))
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_config_survives_json():
    for config in (GPTConfig(**SIZES), ModernConfig(**SIZES, parts=SMALL_OSS)):
        assert config_from_json(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_a_run_with_gpt2s_parts_builds_gpt2():
    config = make_config(Model(init="d6", n_embd=48, vocab_size=300), Parts())
    assert type(build(config)) is GPT
    assert type(build(make_config(Model(init="d6", n_embd=48, vocab_size=300), Parts(qk_norm=True)))) is Modern


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"kv_heads": 3}, "kv_heads 3 does not divide n_head 4"),
        ({"experts": 4, "experts_per_token": 5}, "experts_per_token 5 is out of range; give 1 to 4"),
        ({"windows": ("full", 0)}, "windows full 0 is out of range; give 1 or more"),
        ({"windows": ()}, "windows ()"),
        ({"position": "rotary", "head_size": 7}, "head_size 7 is odd"),
        ({"rotary_base": 500.0}, "position learned does not use rotary_base"),
        ({"residual_mix": 1.0}, "residual-mix 1.0 is out of range; give more than 0, below 1"),
        ({"experts": -1}, "experts -1"),
        ({"init": "zero", "normalised_weights": True}, "init zero does not go with normalised_weights"),
        ({"mlp_width": 0}, "mlp-width 0 is out of range"),
        ({"balance": -1.0}, "balance -1.0"),
        ({"yarn_factor": 0.5, "position": "rotary"}, "yarn-factor 0.5"),
    ],
)
def test_impossible_parts_are_refused_with_name_and_value(parts: dict, words: str):
    with pytest.raises(ValueError) as error:
        ModernConfig(**SIZES, parts=Parts(**parts))
    assert words in str(error.value)
