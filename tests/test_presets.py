"""Every preset is the published model, says what it costs, and starts from a sound loss."""

import math
import re
from dataclasses import replace

import pytest
import torch
from conftest import run_python

from gpt2.config.checks import resolve
from gpt2.config.presets import PRESETS
from gpt2.config.run import Languini
from gpt2.formats.build import build, make_config, named_config
from gpt2.model import GPTConfig
from gpt2.planning import flops
from gpt2.planning.inspect import inspect_preset
from gpt2.planning.plan import Options, make_plan
from gpt2.system.errors import UserError

# C wide, L layers, T positions, V tokens. A GPT-2: V C + T C + L (12 C² + 13 C) + 2 C, where 12 C² + 13 C are
# attention's 4 C² + 4 C, the MLP's 8 C² + 5 C, and 4 C in two norms. An untied head: V C more. No biases and no
# weights in norms: 12 C² a layer.
PUBLISHED = {
    "gpt2-124m": 124_439_808,  # 50257 · 768 + 1024 · 768 + 12 (12 · 768² + 13 · 768) + 2 · 768
    "train-gpt-2": 124_439_808,
    "llmc-124m": 124_439_808,
    "llmc-350m": 354_823_168,  # C 1024, L 24
    "llmc-774m": 774_030_080,  # C 1280, L 36
    "llmc-1558m": 1_557_611_200,  # C 1600, L 48
    "gpt3-125m": 125_226_240,  # GPT-2's 124,439,808 and 1024 · 768 for twice the positions
    "speedrun": 162_129_408,  # 2 · 50257 · 768 + 12 · 12 · 768²
    # Languini: I wide in all heads: 2 V C + T C + L (4 C I + 3 I + C + 8 C² + 5 C + 4 C) + 2 C, V 16384, T 512
    "languini-mini": 27_549_696,  # C 512, I 256, L 4
    "languini-tiny": 53_912_064,  # C 768, I 768, L 4
    "languini-small": 110_615_040,  # C 768, I 768, L 12
    "languini-medium": 336_390_144,  # C 1024, I 1024, L 24
    "languini-large": 731_077_632,  # C 1536, I 1536, L 24
    "languini-xl": 1_478_160_384,  # C 2048, I 3072, L 24
    # 12 layers of: c_attn 18 · 64 rows of 768 and as many biases (12 heads, 3 of keys, 3 of values), c_proj
    # 768² + 768, 12 sinks, router 8 · 768 + 8, experts 8 (1536 · 768 + 1536 + 768² + 768), norms 2 · 768: 15,658,388;
    # the last norm 768, two tables 2 · 50257 · 768
    "gpt-oss-mini": 265_096_176,
    "magnitude": 162_129_409,  # speedrun's and the gain
    "novels": 8_791_040,  # C 320, L 6, T 256, V 4096
    # 128 wide, 4 layers, 128 positions, 2048 tokens
    "shakespeare": 852_224,  # 2 · 257 · 128 + 4 · 12 · 128², at 64 positions
    "demo": 1_071_872,
    "llmc-demo": 1_071_872,
    "speedrun-demo": 1_310_720,
    "languini-demo": 1_334_016,
    "gpt-oss-demo": 1_485_216,  # 4 heads of 32, one of keys; 4 experts 128 wide: 240,200 a layer
    "magnitude-demo": 1_310_721,
}


def config_of(name: str) -> GPTConfig:
    run = PRESETS[name][1]
    return make_config(run.model, run.parts)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_published_parameters(name):
    with torch.device("meta"):
        model = build(config_of(name))
    assert model.num_params() == PUBLISHED[name] == flops.published_parameters(model.config)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_its_tokens_and_its_work(name):
    words, run = PRESETS[name][0], resolve(PRESETS[name][1])
    tokens = run.schedule.steps * run.data.batch_tokens
    work = flops.flops_per_token(config_of(name)) * tokens
    count, unit = re.search(r"([\d.]+) ([MB]) tokens(?! /s|/s)", words).groups()
    assert float(count) * {"M": 1e6, "B": 1e9}[unit] == pytest.approx(tokens, rel=0.02)
    assert re.search(r"(\S+) FLOPs", words)[1] == f"{work:.1e}".replace("+", "")


def test_the_help_lists_every_preset_with_what_it_costs():
    words = " ".join(run_python("train_gpt2.py", "--help").stdout.replace("│", " ").split())
    for name, (description, _) in PRESETS.items():
        assert name in words and description in words


@pytest.mark.parametrize("name", PRESETS)
def test_a_small_model_of_a_preset_starts_near_the_loss_of_chance(name):
    model = PRESETS[name][1].model
    parts = PRESETS[name][1].parts
    small = replace(model, init="d6", vocab_size=300, block_size=48, n_layer=2, n_head=6, n_embd=48)
    narrow = {"head_size": parts.head_size and 8, "mlp_width": parts.mlp_width and 64}
    torch.manual_seed(0)
    network = build(make_config(small, replace(parts, **narrow)))
    idx, targets = torch.randint(300, (2, 4, 48))
    loss = network(idx, targets)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(300), abs=0.3)
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", PRESETS)
def test_the_cost_of_every_preset_can_be_asked_for(name):
    plan = make_plan(Options(name))
    assert plan.tokens == resolve(PRESETS[name][1]).schedule.steps * plan.batch_tokens
    assert plan.setup.micro_batch >= 1


@pytest.mark.parametrize(
    ("preset", "batch", "hours", "steps"),
    [
        ("small", 128, 6, 18_265),
        ("small", 128, 12, 36_529),
        ("small", 256, 24, 36_529),
        ("medium", 256, 48, 21_908),
        ("medium", 256, 96, 43_817),
    ],
)
def test_a_compute_class_has_the_published_steps(preset, batch, hours, steps):
    run = PRESETS[f"languini-{preset}"][1]
    run = replace(run, data=replace(run.data, batch_tokens=512 * batch), languini=replace(run.languini, hours=hours))
    assert resolve(run).schedule.steps == steps


def test_a_compute_class_without_a_speed_is_refused():
    with pytest.raises(UserError, match=r"--languini.hours 6 .*--languini.tokens-per-second.*gpt2 sweep"):
        resolve(replace(PRESETS["languini-xl"][1], languini=Languini(hours=6.0)))


@pytest.mark.parametrize(
    ("descriptor", "sizes"),
    [
        ("gpt3:c384", (6, 6, 384)),
        ("gpt3:c768", (12, 12, 768)),
        ("gpt3:c1024", (24, 16, 1024)),
        ("gpt3:c1536", (24, 16, 1536)),
        ("gpt3:c2048", (24, 16, 2048)),
        ("gpt3:c2560", (32, 32, 2560)),
        ("gpt3:c4096", (32, 32, 4096)),
        ("gpt3:c12288", (96, 96, 12288)),
    ],
)
def test_gpt3_descriptors_are_those_of_the_paper(descriptor, sizes):
    config = named_config(descriptor)
    assert (config.n_layer, config.n_head, config.n_embd) == sizes and config.block_size == 2048
    assert named_config(descriptor, block_size=64).block_size == 64


def test_an_unknown_descriptor_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'gpt3:c5'; known: d6, .*d84, gpt2, .*gpt2-xl, gpt3:c384, .*gpt3:c12288"):
        named_config("gpt3:c5")


# ---- python -m gpt2.model ----


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith("demo")])
def test_the_smoke_test_shows_every_stage(name):
    lines = list(inspect_preset(name, PRESETS[name][1], torch.device("cpu")))
    shown = {line.split("  ")[1].strip(): line.rsplit("  ", 1)[1].strip() for line in lines if line.startswith("  ")}
    assert lines[0] == f"{name}: {PUBLISHED[name]:,} parameters, on cpu"
    assert shown["tokens"] == "(2, 128)" and shown["logits"] == "(2, 128, 2048)"
    stages = [stage for stage, shape in shown.items() if shape == "(2, 128, 128)"]
    assert (stages[0], stages[-1]) == ("token embedding", "last norm")
    attention = [stage for stage in stages if "attention" in stage]
    windows = {"gpt-oss-demo": ["sees 32 positions", "sees all before"]}.get(name, ["sees all before"])
    assert [stage.split(", ")[1] for stage in attention] == windows
    assert sum("2 of 4 experts" in stage or "MLP" in stage for stage in stages) == len(windows)
    loss, chance = re.match(r"loss (\S+) nats per token; ln 2,048 = (\S+)$", lines[-2]).groups()
    assert float(chance) == round(math.log(2048), 4) and abs(float(loss) - float(chance)) < 0.3


def test_the_smoke_test_is_a_command_with_a_default():
    assert "(default: gpt2-124m)" in run_python("-m", "gpt2", "inspect", "--help").stdout
    out = run_python("-m", "gpt2", "inspect", "demo", "--device", "cpu").stdout.splitlines()
    assert out[0] == "demo: 1,071,872 parameters, on cpu" and re.match(r"forward in \d+\.\d\d s", out[-1])


def test_the_smoke_test_of_an_unknown_preset_lists_the_known_ones():
    done = run_python("-m", "gpt2", "inspect", "gpt5", check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: unknown preset 'gpt5'; known: {', '.join(PRESETS)}\n"


def test_the_smoke_test_of_what_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr("gpt2.planning.inspect.free_device_memory", lambda device: 2.0**30)
    with pytest.raises(UserError, match=r"languini-xl needs \d\.\d GiB .* the 1.0 GiB .* gpt2 inspect shakespeare"):
        next(inspect_preset("languini-xl", PRESETS["languini-xl"][1], torch.device("cpu")))
