"""The plan of a run beside what PyTorch really does: parameters, FLOPs, bytes kept, bytes at the peak, bytes sent."""

import dataclasses
import json
import re
import sys
import weakref
from collections.abc import Iterator

import pytest
import torch
from conftest import ROOT, run_python
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(ROOT / "benchmarks"))
from calibration import PUBLISHED, predict

from gpt2.config import presets
from gpt2.config.checks import resolve
from gpt2.config.run import Optim
from gpt2.formats.build import build, make_config, named_config
from gpt2.model import GPT, GPTConfig
from gpt2.modern import experts
from gpt2.modern.model import ModernConfig
from gpt2.modern.parts import Parts
from gpt2.optim.optimizer import make_optimizer
from gpt2.planning import fits, flops
from gpt2.planning.gpus import HARDWARE
from gpt2.planning.memory import RECOMPUTE, Setup, activation_bytes, bytes_sent, is_fused, memory
from gpt2.planning.plan import Options, make_plan, report
from gpt2.system.devices import autocast
from gpt2.system.errors import UserError
from gpt2.system.processes import Processes, process_group
from gpt2.training.distributed import accumulating, cast_in_use, recompute, wrap

CPU = torch.device("cpu")
SMALL = GPTConfig(block_size=576, vocab_size=1000, n_layer=3, n_head=2, n_embd=64)
SHORT = GPTConfig(block_size=192, vocab_size=300, n_layer=3, n_head=4, n_embd=128)  # a CPU keeps the T × T maps
GROUPS = GPTConfig(block_size=520, vocab_size=300, n_layer=5, n_head=2, n_embd=128)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models so small are slower on two threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def setup(config: GPTConfig, **changes) -> Setup:
    return Setup(**{"micro_batch": 2, "micro_steps": 2, "fused": config.block_size > 512, **changes})


# ---- counts ----


@pytest.mark.parametrize("name", ["d6", "gpt2", "gpt2-xl"])
def test_parameters_by_part_are_those_of_the_model(name):
    with torch.device("meta"):
        model = GPT(named_config(name))
    parts = dict.fromkeys(flops.parameters(model.config), 0)
    words = {"wte": "token embedding", "wpe": "position embedding", "attn": "attention", "mlp": "MLP", "ln_": "norms"}
    for key, p in model.named_parameters():
        parts[next(part for word, part in words.items() if f".{word}" in key)] += p.numel()
    assert flops.parameters(model.config) == parts
    assert flops.published_parameters(model.config) == model.num_params()


def test_the_published_size_and_work_of_the_lecture_run():
    plan = make_plan(Options("gpt2-124m"))
    assert flops.published_parameters(plan.config) == 124_439_808
    assert flops.flops_per_token(plan.config) == pytest.approx(0.857e9, rel=0.005)
    assert flops.flops_per_token(plan.config) * plan.tokens == pytest.approx(8.6e18, rel=0.01)


@pytest.mark.parametrize("level", RECOMPUTE)
def test_flops_are_those_that_torch_counts(level):
    model = GPT(SHORT)
    recompute(model, level)
    x = torch.randint(SHORT.vocab_size, (2, SHORT.block_size))
    with FlopCounterMode(display=False) as counter:
        model(x, x).backward()
    planned = flops.flops_per_token(SHORT) + flops.recompute_flops_per_token(SHORT, level)
    assert counter.get_total_flops() == planned * x.numel()


def modern(parts: Parts, block_size: int = 192) -> ModernConfig:
    """A small model of these parts, no wider than SHORT."""
    width, window = parts.mlp_width and 128, 64 if len(parts.windows) > 1 else "full"
    small = dataclasses.replace(parts, kv_heads=parts.kv_heads and 2, mlp_width=width, windows=(window, "full"))
    return ModernConfig(block_size, vocab_size=300, n_layer=3, n_head=4, n_embd=128, parts=small)


MODERN = {
    "speedrun": presets.SPEEDRUN,
    "gpt-oss": presets.GPT_OSS,
    "magnitude": presets.MAGNITUDE,
    "languini": Parts(head_size=16, scale_embedding=True, init="languini", tied=False),
    "llama": Parts(norm="rms", position="rotary", kv_heads=2, mlp="swiglu", bias=False, tied=False),
}


def count_experts(x: torch.Size, weight: torch.Size, *others, out_shape=None, **named) -> int:
    """FLOPs of a product whose rows are each multiplied by one expert's matrix."""
    return 2 * x[0] * weight[1] * weight[2]


def count_experts_backward(x: torch.Size, weight: torch.Size, *others, out_shape=None, **named) -> int:
    """The gradient of the rows, and that of the matrices."""
    return 2 * count_experts(x, weight)


GROUPED = {
    torch.ops.gpt2.grouped_linear: count_experts,
    torch.ops.gpt2.grouped_linear_backward: count_experts_backward,
}


@pytest.mark.parametrize("level", RECOMPUTE)
@pytest.mark.parametrize("name", MODERN)
def test_flops_of_other_parts_are_those_that_torch_counts(name, level, monkeypatch):
    """With full layers: a plain path multiplies what a window hides, too. Without the rows between experts."""
    monkeypatch.setattr(experts, "ALIGN", (1, 1))
    config = modern(dataclasses.replace(MODERN[name], windows=("full",)))
    model = build(config)
    if level == "gelu" and config.parts.experts:
        with pytest.raises(UserError, match="recompute gelu does not go with experts; give mlp or block"):
            make_plan(Options("gpt-oss-mini", recompute=level))
        return
    recompute(model, level)
    x = torch.randint(config.vocab_size, (2, config.block_size))
    with FlopCounterMode(display=False, custom_mapping=GROUPED) as counter:
        model(x, x).backward()
    planned = flops.flops_per_token(config) + flops.recompute_flops_per_token(config, level)
    total = counter.get_total_flops()  # experts' biases are added by a product with their one-hot rows, not planned
    assert 1 <= total / (planned * x.numel()) < (1.03 if config.parts.experts and config.parts.bias else 1.0000001)


def test_a_window_costs_what_it_shows():
    full = ModernConfig(1024, n_layer=4, parts=Parts())
    sliding = dataclasses.replace(full, parts=Parts(windows=(128, "full", 4096)))
    inner = 12 * full.n_head * full.head_size  # layers 0 and 3 see 128; 4096 is more than there is
    assert flops.flops_per_token(full) - flops.flops_per_token(sliding) == 2 * inner * (1024 - 128)
    assert flops.flops_per_token(full) == flops.flops_per_token(GPTConfig(1024, n_layer=4))


def test_only_the_experts_that_are_chosen_count():
    """2 of 8 experts 768 wide, and the router: a token meets 12 · (2 · 3 · 768² + 8 · 768) of their parameters."""
    run = presets.PRESETS["gpt-oss-mini"][1]
    config = make_config(run.model, run.parts)
    attention = 12 * 768 * (18 * 64 + 768)
    assert flops.matrix_parameters(config) == 50_304 * 768 + attention + 12 * (2 * 3 * 768**2 + 8 * 768)


# ---- memory ----


def kept_bytes(config: GPTConfig, micro_batch: int, precision: str, level: str, cast: bool = False) -> int:
    """Bytes that autograd keeps between forward and backward: every storage once, parameters left out."""
    model = build(config)
    if cast:
        cast_in_use(model.bfloat16())
    recompute(model, level)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randint(config.vocab_size, (micro_batch, config.block_size))
    with saved_tensors_hooks(pack, lambda tensor: tensor), autocast(CPU, precision):
        loss = model(x, x)
    assert loss.requires_grad  # and so keeps the graph until here
    return sum(kept.values())


def test_weights_that_are_cast_in_use_leave_their_copies_for_backward():
    for config in (SMALL, modern(presets.SPEEDRUN)):
        two, three = (kept_bytes(config, size, "bf16", "none", cast=True) for size in (2, 3))
        planned = memory(config, setup(config, micro_batch=1, precision="bf16", weights="bf16-cast"))
        assert 3 * two - 2 * three == pytest.approx(planned.copies, rel=0.02, abs=40_000)


@pytest.mark.parametrize("level", RECOMPUTE)
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("config", [SMALL, SHORT], ids=["fused", "maps"])
def test_activations_are_those_that_autograd_keeps(config, precision, level):
    two, three = (kept_bytes(config, size, precision, level) for size in (2, 3))
    logits = 4 * config.vocab_size * config.block_size  # of the loss: counted in the plan as `working`
    planned = memory(config, setup(config, micro_batch=1, precision=precision, recompute=level))
    assert three - two - logits == pytest.approx(planned.activations, rel=0.01)
    if level == "none":  # what doesn't grow with the batch: the matrices in 16 bits
        assert 3 * two - 2 * three == pytest.approx(planned.copies, rel=0.01, abs=20_000)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("name", MODERN)
def test_activations_of_other_parts_are_about_those_that_autograd_keeps(name, precision, monkeypatch):
    monkeypatch.setattr(experts, "ALIGN", (1, 1))  # the rows between them are few where sequences are long
    config = modern(MODERN[name])
    for level in (level for level in RECOMPUTE if level != "gelu" or not config.parts.experts):
        two, three = (kept_bytes(config, size, precision, level) for size in (2, 3))
        logits = 4 * config.vocab_size * config.block_size
        plan = setup(config, micro_batch=1, precision=precision, recompute=level, fused=is_fused(config, CPU))
        planned = memory(config, plan)
        assert three - two - logits == pytest.approx(planned.activations, rel=0.25), level
        if level == "none":
            assert 3 * two - 2 * three == pytest.approx(planned.copies, rel=0.1, abs=200_000)


class Watch(TorchDispatchMode):
    """Watches every operation of PyTorch: `peak` is the most bytes of tensors that were alive after one, `moved` the
    bytes of whole tensors that collectives gathered, or summed and dealt out (an all-reduce does both)."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
        self.peak = self.moved = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            if isinstance(tensor, torch.Tensor):
                self.storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        self.peak = max(self.peak, sum(storage.nbytes() for storage in list(self.storages.values())))
        name = str(operation)
        if name.startswith("c10d._allgather_base_") or name.startswith("c10d._reduce_scatter_base_"):
            self.moved += max(args[0].nbytes, args[1].nbytes)
        elif name.startswith("c10d.allreduce_"):
            self.moved += 2 * sum(tensor.nbytes for tensor in args[0])
        return out


def watch_steps(config: GPTConfig, plan: Setup, processes: Processes, steps: int = 2) -> Watch:
    """A model made and trained for two steps: Adam's state is made in the first."""
    with Watch() as watch:
        model = GPT(config)
        recompute(model, plan.recompute)
        wrapped = wrap(model, processes, zero=plan.zero)
        train(wrapped, make_optimizer(wrapped, Optim()), config, plan, processes, steps)
    return watch


def train(model, optimizer, config: GPTConfig, plan: Setup, processes: Processes, steps: int) -> None:
    x = torch.randint(config.vocab_size, (plan.micro_batch, config.block_size), device=processes.device)
    for _ in range(steps):
        for i in range(plan.micro_steps):
            with accumulating(model, i == plan.micro_steps - 1, plan.zero):
                with autocast(processes.device, plan.precision):
                    loss = model(x, x) / plan.micro_steps
                loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("level", RECOMPUTE)
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("config", [SMALL, SHORT], ids=["fused", "maps"])
def test_the_peak_of_a_step_is_the_planned_one(config, precision, level):
    plan = setup(config, precision=precision, recompute=level)
    measured = watch_steps(config, plan, Processes(0, 0, 1, CPU)).peak
    ratio = memory(config, plan).total / measured
    print(f"{config.block_size} {precision} {level}: planned {ratio:.3f} of {measured / 1e6:.1f} MB")
    assert 0.97 < ratio < 1.2


def test_gradients_and_optimiser_take_what_is_planned():
    model = GPT(SMALL)
    optimizer = make_optimizer(model, Optim())
    x = torch.zeros(1, 8, dtype=torch.long)
    model(x, x).backward()
    optimizer.step()
    planned = memory(SMALL, setup(SMALL))
    state = [t for entry in optimizer.state.values() for name, t in entry.items() if name != "step"]
    assert sum(p.nbytes for p in model.parameters()) == planned.weights
    assert sum(p.grad.nbytes for p in model.parameters()) == planned.gradients
    assert sum(t.nbytes for t in state) == planned.optimizer


def measure_stages() -> None:
    """Run by two processes: for every ZeRO stage, the peak of memory and the bytes that a process sent in a step."""
    results = []
    with process_group("cpu") as processes:
        for zero in range(4):
            watch = watch_steps(GROUPS, setup(GROUPS, gpus=2, zero=zero, micro_batch=1), processes)
            results.append((watch.peak, watch.moved / 2 / 2))  # each of two lacks half of everything; two steps
    if processes.is_first:
        print(json.dumps(results))


def test_the_zero_stages_take_and_send_what_is_planned():
    done = run_python("tests/test_flops.py", processes=2)
    for zero, (peak, sent) in enumerate(json.loads(done.stdout.splitlines()[-1])):
        plan = setup(GROUPS, gpus=2, zero=zero, micro_batch=1)
        planned, planned_sent = memory(GROUPS, plan).total, bytes_sent(GROUPS, plan)
        print(f"ZeRO {zero}: planned {planned / 1e6:.1f} MB, took {peak / 1e6:.1f}; sends {planned_sent:,}, {sent:,}")
        assert 0.99 < planned / peak < 1.17
        assert sent == pytest.approx(planned_sent, rel=0.01)


@pytest.mark.parametrize("weights", ["fp32", "bf16", "bf16-master", "bf16-cast"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_state_of_every_optimiser_takes_what_is_planned(kind, weights):
    config = modern(presets.GPT_OSS)
    model = build(config).to(torch.float32 if weights == "fp32" else torch.bfloat16)
    if weights == "bf16-cast":
        cast_in_use(model)
    optimizer = make_optimizer(model, Optim(kind=kind), weights)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    planned = memory(config, setup(config, weights=weights, muon=kind == "muon"))
    state = [t for entry in optimizer.state.values() for name, t in entry.items() if name != "step"]
    assert sum(p.nbytes for p in model.parameters()) == pytest.approx(planned.weights, rel=1e-9)
    assert sum(p.grad.nbytes for p in model.parameters()) == pytest.approx(planned.gradients, rel=1e-9)
    assert sum(t.nbytes for t in state) == pytest.approx(planned.optimizer, rel=1e-9)


@pytest.mark.gpu
@pytest.mark.parametrize("level", RECOMPUTE)
def test_the_peak_of_a_step_on_a_gpu_is_the_planned_one(level):
    config = GPTConfig(n_layer=6, n_head=6, n_embd=384, block_size=1024, vocab_size=8192)
    plan = Setup(micro_batch=8, micro_steps=2, recompute=level)
    processes = Processes(0, 0, 1, torch.device("cuda", 0))
    before = torch.cuda.memory_allocated()
    model = GPT(config).to(processes.device)
    recompute(model, level)
    optimizer = make_optimizer(model, Optim())
    train(model, optimizer, config, plan, processes, steps=1)
    torch.cuda.reset_peak_memory_stats()
    train(model, optimizer, config, plan, processes, steps=1)
    ratio = memory(config, plan).total / (torch.cuda.max_memory_allocated() - before)
    assert 0.95 < ratio < 1.2


def test_one_sequence_on_a_cpu_takes_what_choose_micro_batch_is_told():
    for config in (SMALL, SHORT):
        peaks = [
            watch_steps(config, setup(config, micro_batch=size, precision="fp32"), Processes(0, 0, 1, CPU)).peak
            for size in (2, 3)
        ]
        assert 0.97 < activation_bytes(config) / (peaks[1] - peaks[0]) < 1.3


# ---- what fits ----


class Two(Processes):
    """Two processes that have the same of everything."""

    def min(self, *values):
        return list(values)


def refusal(monkeypatch, name: str, gib: float, processes: Processes, **system) -> str:
    """What a preset's run is told where so much memory is free; "" where it may run."""
    monkeypatch.setattr(fits, "free_device_memory", lambda device: gib * 2**30)
    run = resolve(presets.PRESETS[name][1])
    run = dataclasses.replace(run, system=dataclasses.replace(run.system, precision="fp32", compile="off", **system))
    try:
        fits.check_fits(run, make_config(run.model, run.parts), processes)
    except UserError as error:
        return str(error)
    return ""


def test_a_preset_that_does_not_fit_is_told_what_would(monkeypatch):
    alone, two = Processes(0, 0, 1, CPU), Two(0, 0, 2, CPU)
    words = refusal(monkeypatch, "llmc-1558m", 16, alone)
    assert re.match(r"1,557,611,200 parameters need \d\d\.\d GiB .* a micro-batch of 1, more than the 16.0 GiB", words)
    assert words.endswith("; try the preset llmc-774m, the largest that fits") and "\n" not in words
    assert refusal(monkeypatch, "gpt-oss-mini", 1, alone).endswith("try the preset gpt-oss-demo, the largest that fits")
    assert refusal(monkeypatch, "demo", 0.001, alone).endswith("no preset is small enough; free some memory")
    assert "give --system.micro-batch " in refusal(monkeypatch, "gpt2-124m", 8, alone, micro_batch=64)
    assert "give --system.zero 3" in refusal(monkeypatch, "llmc-1558m", 20, two)


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_that_fits_is_not_refused(monkeypatch, name):
    wanted = presets.PRESETS[name][1].system.micro_batch
    setup = Setup(precision="fp32", fused=False, micro_batch=1 if wanted == "auto" else wanted)
    needed = memory(make_plan(Options(name)).config, setup).total
    assert refusal(monkeypatch, name, 3 * needed / 2**30 + 0.1, Processes(0, 0, 1, CPU)) == ""


@pytest.mark.parametrize("case", [("gpt2-124m", 3.3, 64), ("llmc-774m", 13.5, 16), ("speedrun", 3, 32)])
def test_the_advised_flags_fit(monkeypatch, case):
    name, gib, size = case
    words = refusal(monkeypatch, name, gib, Processes(0, 0, 1, CPU), micro_batch=size)
    flags = dict(re.findall(r"--system\.(\S+) (\w+)", words))
    assert flags
    changes = {k.replace("-", "_"): int(v) if v.isdigit() else v for k, v in flags.items()}
    assert refusal(monkeypatch, name, gib, Processes(0, 0, 1, CPU), **{"micro_batch": size, **changes}) == ""


# ---- the plan ----


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.source)
def test_published_speeds_are_predicted(published):
    assert predict(published) == pytest.approx(published.batch_tokens / published.tokens_per_second, rel=0.15)


def test_the_plan_takes_the_time_of_its_step():
    plan = make_plan(Options("gpt2-124m", gpus=8, hardware="a100"))
    assert (plan.setup.micro_batch, plan.setup.micro_steps) == (64, 1)  # as published: 64 × 1024 × 8
    llm_c = next(p for p in PUBLISHED if p.source.startswith("llm.c"))
    assert plan.step_time.total == pytest.approx(predict(llm_c), rel=0.01)
    slow = make_plan(Options("gpt2-124m", gpus=8, hardware="a100", node_gb_per_s=1.0)).step_time
    assert slow.communication > 0.2 and slow.products == plan.step_time.products


def test_more_work_or_a_slower_card_takes_longer():
    base = make_plan(Options("gpt2-124m", gpus=8, hardware="h100")).step_time.total
    for options in (
        Options("gpt2-124m", gpus=8, hardware="a100"),
        Options("gpt2-124m", gpus=4, hardware="h100"),
        Options("gpt2-124m", gpus=8, hardware="h100", recompute="block"),
        Options("gpt2-medium", gpus=8, hardware="h100"),
        Options("gpt2-124m", gpus=8, hardware="h100", precision="tf32"),
    ):
        assert make_plan(options).step_time.total > 1.1 * base


@pytest.mark.parametrize("hardware", ["a100", "rtx-3090", "h200"])
@pytest.mark.parametrize("level", RECOMPUTE)
@pytest.mark.parametrize("zero", range(4))
def test_the_micro_batch_is_the_largest_that_fits(hardware, zero, level):
    plan = make_plan(Options("gpt2-large", gpus=8, hardware=hardware, zero=zero, recompute=level))
    size = plan.setup.micro_batch
    assert memory(plan.config, plan.setup).total <= plan.budget < 0.91 * HARDWARE[hardware].memory_gib * 2**30
    assert size * plan.setup.micro_steps == plan.sequences
    if size < plan.sequences:
        double = dataclasses.replace(plan.setup, micro_batch=2 * size, micro_steps=plan.setup.micro_steps // 2)
        assert memory(plan.config, double).total > plan.budget


@pytest.mark.parametrize(
    "options",
    [
        Options("gpt2-124m"),
        Options("gpt2-xl", hardware="h100"),
        Options("gpt2-124m", gpus=1, hardware="rtx-3090"),
        Options("d84", hardware="h200", gpus=256, zero=3, recompute="block"),
        Options("demo", hardware="t4", gpus=1),
    ],
    ids=lambda options: options.name,
)
def test_the_report_fits_a_terminal(options):
    lines = report(make_plan(options)).split("\n")
    assert max(map(len, lines)) <= 100
    assert sum(line.lstrip().startswith("→") for line in lines) == (2 if options.gpus == 1 else 3)


def test_the_command_prints_the_plan():
    out = run_python("-m", "gpt2", "plan", "gpt2-124m", "--gpus", "8", "--hardware", "a100").stdout
    for piece in (
        "124,439,808",
        "8.55e+18 FLOPs",
        "1.67 h predicted",
        "20 GB of tokens, 1.49 GB per checkpoint",
        "19,073",
    ):
        assert piece in out


def test_tokens_change_the_steps():
    plan = make_plan(Options("gpt2-xl", hardware="h100", tokens=100_000_000_000, batch_tokens=2**20))
    assert plan.steps == 95_368 and plan.tokens >= 100_000_000_000


REFUSED = {
    "unknown model": (Options("gpt5"), r"'gpt5'.*d12.*gpt2-xl.*presets: gpt2-124m"),
    "unknown hardware": (Options("d12", hardware="a1000"), r"'a1000'.*a100.*rtx-3090"),
    "no GPU": (Options("d12", gpus=0), r"--gpus 0 "),
    "negative price": (Options("d12", price_per_gpu_hour=-1.0), r"--price-per-gpu-hour -1.0"),
    "no bf16": (Options("d12", hardware="v100", precision="bf16"), r"v100 has no bf16; give --precision fp16"),
    "GPUs that do not divide": (Options("d12", gpus=3), r"3 GPU.*--batch-tokens 525312"),
    "micro-batch that does not divide": (Options("d12", micro_batch=48), r"48 .* 64 sequences.*--micro-batch 32"),
    "micro-batch too big": (Options("d12", hardware="t4", micro_batch=64), r"GiB.*give --micro-batch 16$"),
    "needs ZeRO": (Options("gpt2-xl", hardware="rtx-3090"), r"GiB.*give --zero 1$"),
    "needs recompute": (Options("gpt3:c2048", hardware="rtx-2080-ti"), r"give --zero 3 --recompute gelu\b"),
    "needs others": (Options("d84", hardware="t4"), r"--hardware \S+ --gpus \d+ --zero 3 --recompute block\b"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_with_what_could(case):
    options, words = REFUSED[case]
    with pytest.raises(UserError, match=words):
        make_plan(options)


@pytest.mark.parametrize("case", ["micro-batch too big", "needs ZeRO", "needs recompute", "needs others"])
def test_the_advice_of_a_refusal_fits(case):
    options = REFUSED[case][0]
    with pytest.raises(UserError) as refusal:
        make_plan(options)
    words = str(refusal.value).split("give ")[-1].split()
    advice = {
        k[2:].replace("-", "_"): int(v) if v.isdigit() else v for k, v in zip(words[::2], words[1::2], strict=True)
    }
    plan = make_plan(dataclasses.replace(options, **advice))
    assert memory(plan.config, plan.setup).total <= plan.budget


def test_a_refusal_is_one_line_and_status_2():
    done = run_python("-m", "gpt2", "plan", "gpt5", check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


if __name__ == "__main__":
    measure_stages()
