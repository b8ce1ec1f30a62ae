"""Learning-rate schedules and AdamW follow their published formulas; parameters are grouped by their roles."""

import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from gpt2.config.presets import PRESETS
from gpt2.config.run import Optim, Schedule
from gpt2.formats.build import build, make_config
from gpt2.model import GPT, GPTConfig
from gpt2.optim.optimizer import make_optimizer, parameter_groups, role_of
from gpt2.optim.schedule import learning_rate
from gpt2.system.errors import UserError


def test_the_schedule_of_the_lectures_run():
    lr = {step: learning_rate(step, 6e-4, Schedule()) for step in (0, 357, 714, 715, 9894, 19072, 19073, 30000)}
    assert lr[0] == pytest.approx(6e-4 / 715)
    assert lr[357] == pytest.approx(6e-4 * 358 / 715)
    assert lr[714] == lr[715] == pytest.approx(6e-4)
    assert lr[9894] == pytest.approx(6e-5 + 0.5 * 5.4e-4)  # half way: cos is zero
    assert lr[19072] == pytest.approx(6e-5, rel=1e-5)
    assert lr[19073] == lr[30000] == pytest.approx(6e-5)


AFTER_WARMUP = ("linear", "constant", "wsd", "cosine")


@pytest.mark.parametrize("fraction", [0.0, 0.1])
def test_linear_constant_and_wsd_follow_their_formulas(fraction):
    schedules = {kind: Schedule(1000, kind=kind, warmup=100, final_fraction=fraction) for kind in AFTER_WARMUP}
    kinds = {kind: [learning_rate(s, 1.0, schedule) for s in range(1001)] for kind, schedule in schedules.items()}
    for kind in AFTER_WARMUP:
        assert kinds[kind][49] == 0.5 and kinds[kind][99] == 1.0
    assert kinds["linear"][550] == pytest.approx((1 + fraction) / 2)
    assert kinds["linear"][1000] == pytest.approx(fraction)
    assert set(kinds["constant"][99:]) == {1.0}
    assert set(kinds["wsd"][99:801]) == {1.0}
    assert kinds["wsd"][900] == pytest.approx(fraction + (1 - fraction) * (1 - math.sqrt(0.5)))
    assert kinds["wsd"][1000] == pytest.approx(fraction)


def cosine(step: int, steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / steps))


# the published formulas, as fractions of the largest rate
FORMULAS = {
    "gpt2-124m": lambda s, n: (s + 1) / 715 if s < 715 else 0.1 + 0.9 * cosine(s - 715, n - 715),
    "train-gpt-2": lambda s, n: (s + 1) / 100 if s < 100 else 0.1 + 0.9 * cosine(s - 100, n - 100),
    "llmc-124m": lambda s, n: (s + 1) / 700 if s < 700 else cosine(s - 700, n - 700),
    "speedrun": lambda s, n: 1.0 if s < n - 1308 else (n - s) / 1308,
    "languini-small": lambda s, n: min(s + 1, 200) / 200 * (0.01 + 0.99 * cosine(s + 1, n)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_schedule_is_the_published_one_at_every_step(name):
    schedule = PRESETS[name][1].schedule
    for step in range(schedule.steps):
        assert abs(learning_rate(step, 1.0, schedule) - FORMULAS[name](step, schedule.steps)) < 1e-12


def test_without_warm_up_the_first_step_has_the_largest_rate():
    assert learning_rate(0, 1.0, Schedule(10, warmup=0)) == 1.0


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match=r"'cosin'.*cosine"):
        learning_rate(0, 1.0, Schedule(10, kind="cosin"))


def test_a_step_follows_adamws_formula_and_only_matrices_decay():
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=8, vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    optimizer = make_optimizer(model, Optim(lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    moments = dict.fromkeys(before, (0.0, 0.0))
    for t in (1, 2, 3):
        model(idx := torch.randint(64, (2, 8)), idx).backward()
        for name, p in model.named_parameters():
            m = 0.9 * moments[name][0] + 0.1 * p.grad
            v = 0.95 * moments[name][1] + 0.05 * p.grad**2
            moments[name] = (m, v)
            decayed = before[name] * (1 - 0.01 * (0.1 if p.dim() >= 2 else 0.0))
            before[name] = decayed - 0.01 * (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
        optimizer.step()
        optimizer.zero_grad()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name], atol=1e-5, rtol=1e-4)


SMALL = GPTConfig(block_size=8, vocab_size=64, n_layer=2, n_head=2, n_embd=16)


def train(model, optimizer, steps: int) -> float:
    """The loss after this many steps on one batch."""
    idx = torch.arange(16, device=next(model.parameters()).device).view(2, 8)
    for _ in range(steps):
        model(idx, idx).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model(idx, idx).item()


def test_adamw_is_bit_identical_to_torchs():
    models = []
    for ours in (True, False):
        torch.manual_seed(0)
        models.append(model := GPT(SMALL))
        groups = parameter_groups(model, Optim())
        train(model, make_optimizer(model, Optim()) if ours else torch.optim.AdamW(groups, fused=True), 5)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_every_parameter_has_the_role_of_its_name_and_dimensions():
    roles: dict[str, set[str]] = {role: set() for role in ("embedding", "head", "matrix", "vector")}
    for preset in ("speedrun", "gpt-oss-mini", "magnitude", "gpt2-124m"):
        with torch.device("meta"):
            model = build(make_config(PRESETS[preset][1].model, PRESETS[preset][1].parts))
        for name, p in model.named_parameters():
            roles[role_of(name, p)].add(re.sub(r"transformer\.(h\.\d+\.)?", "", name))
    assert roles["embedding"] == {"wte.weight", "wpe.weight"}
    assert roles["head"] == {"lm_head.weight"}
    matrices = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "mlp.router")
    assert roles["matrix"] == {f"{name}.weight" for name in matrices}
    assert {"gain", "attn.sinks", "mlp.c_fc.bias", "mlp.router.bias", "ln_f.weight"} < roles["vector"]
    assert role_of("module.transformer.wte.weight", torch.zeros(2, 2)) == "embedding"  # wrapped by DDP


def test_the_learning_rates_of_a_step_keep_their_proportions():
    from train_gpt2 import update

    run = PRESETS["speedrun-demo"][1]
    model = build(make_config(run.model, run.parts))
    optimizer = make_optimizer(model, replace(run.optim, vector_lr=0.04, weight_decay=0.1))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    update(SimpleNamespace(optimizer=optimizer, scaler=scaler, updates=0), 0.01, skip=False)
    named = dict(model.named_parameters())
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    expected = {
        "transformer.wte.weight": (0.15, 0.1),
        "lm_head.weight": (0.001, 0.1),
        "transformer.h.0.mlp.c_fc.weight": (0.01, 0.1),
    }
    for name, (rate, decay) in expected.items():
        assert rates[id(named[name])] == (pytest.approx(rate), decay)
    assert len(rates) == len(named)


def test_a_special_rate_beside_a_rate_of_zero_is_refused():
    with pytest.raises(UserError, match=r"--optim.head-lr 0.1 follows --optim.lr in proportion, which is 0"):
        make_optimizer(GPT(SMALL), Optim(lr=0.0, head_lr=0.1))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_fp32_copies_of_bf16_weights_learn_from_small_updates(kind):
    """Without them, an update smaller than half the last digit of a bf16 weight is lost."""
    learned = {}
    for weights in ("fp32", "bf16-master", "bf16"):
        torch.manual_seed(0)
        model = GPT(SMALL)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(10)  # weights of 0.2, whose last digit is 0.001
        model.to(torch.float32 if weights == "fp32" else torch.bfloat16)
        optimizer = make_optimizer(model, Optim(kind=kind, lr=5e-5, weight_decay=0.0), weights)
        learned[weights] = train(model, optimizer, 0) - train(model, optimizer, 50)
        assert {t.dtype for state in optimizer.state.values() for key, t in state.items() if key != "step"} == {
            torch.bfloat16 if weights == "bf16" else torch.float32
        }
    assert learned["bf16-master"] == pytest.approx(learned["fp32"], rel=0.1)
    assert learned["bf16"] < 0.25 * learned["fp32"]
