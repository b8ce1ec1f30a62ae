"""Three optimiser steps of published programs beside ours: the same weights, the same tokens, at a small size, in fp32.

    python benchmarks/published.py --clone modded-nanogpt llm.c languini-kitchen      folders of their clones

A program's classes and functions are taken from the named commit and run as they are, except that they run on a CPU,
and that the fp32 form of modded-nanogpt does not round to bf16. Its script, which trains on import, is not run. Prints
the largest differences: of logits before the first step, of losses, of the blocks' weights after the third step, and of
learning rates over the whole published run, as a fraction of the largest rate. The weights of embedding and head differ
by the mean that is printed. Adam divides by the gradient's size, so where a gradient is near zero its rounding errors
become whole steps.
"""

import ast
import inspect
import math
import os
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2.config.presets import PRESETS
from gpt2.config.run import Run
from gpt2.formats.build import build, make_config
from gpt2.optim import muon
from gpt2.optim.optimizer import make_optimizer
from gpt2.optim.schedule import learning_rate
from gpt2.system.errors import UserError, run_command
from gpt2.training.distributed import cast_in_use, clip_gradients

LAYERS, HEADS, WIDTH, VOCAB, T, BATCH, STEPS = 3, 2, 64, 512, 64, 4, 3
RECORD_8, RECORD_10 = "11e39fb", "6671ed1"  # of modded-nanogpt: the architecture, and its bf16 weights


@dataclass(frozen=True)
class Options:
    """Published programs beside this one, step by step."""

    clone: tuple[Path, ...]
    """Clones of modded-nanogpt, llm.c or languini-kitchen; each is recognised by its files."""


@dataclass
class Published:
    """A published model with its optimisers; `renamed` gives its weights under our names."""

    name: str
    run: Run
    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    logits: Callable[[Tensor], Tensor]
    renamed: Callable[[], dict[str, Tensor]]
    optimizers: list[torch.optim.Optimizer]
    rates: list[float]  # of every step, as a fraction of the largest
    orthogonalise: Callable[[Tensor], Tensor] | None = None


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1"}
    torch.set_float32_matmul_precision("highest")
    found = [published for clone in options.clone for published in programs(clone)]
    print("| program | logits | losses | blocks | embedding and head | learning rates |\n|---|---|---|---|---|---|")
    for published in found:
        print(f"| {published.name} | {' | '.join(f'{value:.1e}' for value in compare(published))} |", flush=True)


def programs(clone: Path) -> list[Published]:
    """The programs of a clone. Raises UserError where it holds none."""
    if source(clone, RECORD_8, "train_gpt2.py"):
        forms = ("fp32", "fp32, our bound", "bf16-cast")
        return [modded_nanogpt(clone, form) for form in forms]
    if text := source(clone, "HEAD", "languini/projects/gpt/model.py"):
        return [languini(clone, text)]
    if text := source(clone, "HEAD", "train_gpt2.py"):
        return [llmc(text)]
    raise UserError(f"{clone} is not a clone of modded-nanogpt, llm.c or languini-kitchen; give one that git made")


def source(clone: Path, commit: str, path: str) -> str:
    """The text of a file in a commit; empty if there is none."""
    command = ["git", "-C", str(clone), "show", f"{commit}:{path}"]
    return subprocess.run(command, capture_output=True, text=True).stdout


def definitions(text: str, names: Iterable[str], given: dict[str, Any]) -> SimpleNamespace:
    """The named classes and functions of a program, wherever they stand in it, without their decorators but dataclass.

    They see the `given` names.
    """
    scope = {"torch": torch, "nn": nn, "F": F, "math": math, "os": os, "np": np, "dataclass": dataclass, **given}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name in names:
            node.decorator_list = [d for d in node.decorator_list if isinstance(d, ast.Name) and d.id == "dataclass"]
            exec(compile(ast.Module([node], []), node.name, "exec"), scope)
    return SimpleNamespace(**scope)


def small(name: str, **system: Any) -> Run:
    """A preset with the sizes of this comparison."""
    run = PRESETS[name][1]
    sizes = {"init": "d6", "vocab_size": VOCAB, "block_size": T, "n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH}
    parts = replace(run.parts, head_size=None)
    return replace(run, model=replace(run.model, **sizes), parts=parts, system=replace(run.system, **system))


def modded_nanogpt(clone: Path, form: str) -> Published:
    """Record 8, with the weights of record 10 in its bf16 form. Our Newton-Schulz steps start from another bound."""
    text = source(clone, RECORD_8, "train_gpt2.py").replace("device='cuda'", "device='cpu'")
    cast = form == "bf16-cast"
    names = ["Rotary", "apply_rotary_emb", "CausalSelfAttention", "MLP", "Block", "GPTConfig", "GPT", "Muon", "get_lr"]
    names.append("zeropower_via_newtonschulz5")
    if cast:
        casted = definitions(source(clone, RECORD_10, "train_gpt2.py"), ["CastedLinear"], {}).CastedLinear
        text = text.replace("nn.Linear(", "CastedLinear(")
    else:
        casted, text = nn.Linear, text.replace(".bfloat16()", "").replace("dtype=torch.bfloat16", "")
    run = small("speedrun", weights="bf16-cast" if cast else "fp32")
    schedule = run.schedule
    args = SimpleNamespace(num_iterations=schedule.steps, warmup_iters=0, warmdown_iters=1308)
    dist = SimpleNamespace(all_reduce=lambda *_, **__: None, ReduceOp=SimpleNamespace(SUM=None))
    backends: dict[str, Any] = {}
    given = {"CastedLinear": casted, "args": args, "dist": dist, "zeropower_backends": backends}
    theirs = definitions(text, names, given)
    backends["newtonschulz5"] = theirs.zeropower_via_newtonschulz5
    torch.manual_seed(0)
    model = theirs.GPT(theirs.GPTConfig(VOCAB, LAYERS, HEADS, WIDTH))
    with torch.no_grad():  # what begins at zero would hide differences behind it
        for p in model.parameters():
            if not p.any():
                p.normal_(std=0.05)
    if cast:
        model.bfloat16()
        for module in model.modules():
            if isinstance(module, casted):
                module.float()
    rates = run.optim
    adam = [(model.transformer.wte.weight, rates.embedding_lr), (model.lm_head.weight, rates.head_lr)]
    optimizers = [torch.optim.Adam([p], lr=lr, betas=rates.betas) for p, lr in adam]
    optimizers.append(theirs.Muon(model.transformer.h.parameters(), lr=rates.lr, momentum=rates.momentum))

    def orthogonalise(matrices: Tensor) -> Tensor:
        return torch.stack([theirs.zeropower_via_newtonschulz5(matrix, steps=5) for matrix in matrices])

    return Published(
        f"modded-nanogpt {RECORD_8}, {form}",
        run,
        model,
        loss=lambda x, y: model(x, y)[1],
        logits=lambda x: model(x, x)[0],
        renamed=lambda: from_modded_nanogpt(model),
        optimizers=optimizers,
        rates=[theirs.get_lr(step) for step in range(schedule.steps)],
        orthogonalise=None if form == "fp32, our bound" else orthogonalise,
    )


def from_modded_nanogpt(model: nn.Module) -> dict[str, Tensor]:
    """Its weights under our names.

    It rotates by the opposite angle, which exchanging the halves of every head of q and k makes good.
    """
    state, half = dict(model.named_parameters()), WIDTH // HEADS // 2
    ours = {name: state[name] for name in ("transformer.wte.weight", "lm_head.weight")}
    for block in (f"transformer.h.{i}." for i in range(LAYERS)):
        q, k = (
            state[f"{block}attn.c_{name}.weight"].view(HEADS, 2 * half, WIDTH).roll(half, 1).flatten(0, 1)
            for name in "qk"
        )
        ours[f"{block}attn.c_attn.weight"] = torch.cat([q, k, state[f"{block}attn.c_v.weight"]])
        for name in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            ours[f"{block}{name}.weight"] = state[f"{block}{name}.weight"]
    return ours


def llmc(text: str) -> Published:
    """`train_gpt2.py` of llm.c, with the hyperparameters of its 124M run."""
    run = small("llmc-124m")
    schedule, settings = run.schedule, run.optim
    args = SimpleNamespace(
        learning_rate=1.0,
        learning_rate_decay_frac=schedule.final_fraction,
        warmup_iters=schedule.warmup,
        num_iterations=schedule.steps,
    )
    names = ["NewGELU", "CausalSelfAttention", "MLP", "Block", "GPTConfig", "GPT", "get_lr"]
    given = {"FLASH": 0, "args": args, "inspect": inspect, "print0": lambda *_: None}
    theirs = definitions(text, names, given)
    model = theirs.GPT(theirs.GPTConfig(T, VOCAB, LAYERS, HEADS, WIDTH))
    return Published(
        "llm.c, train_gpt2.py",
        run,
        model,
        loss=lambda x, y: model(x, y)[1],
        logits=lambda x: model(x, x)[0],
        renamed=lambda: dict(model.named_parameters()),
        optimizers=[model.configure_optimizers(settings.weight_decay, settings.lr, settings.betas, "cpu", 0)],
        rates=[theirs.get_lr(step) for step in range(schedule.steps)],
    )


def languini(clone: Path, text: str) -> Published:
    """Languini's GPT baseline with the hyperparameters of `small`, Adam without weight decay or clipping."""
    run = small("languini-small")
    schedule, settings = run.schedule, run.optim
    nothing = {"check": lambda *_: None, "log_stats_and_dist": lambda *_: None, "check_config": lambda *_: None}
    parts = definitions(
        source(clone, "HEAD", "languini/projects/gpt/lib.py"),
        ["gelu", "LayerNorm", "CausalSelfAttention", "MLP", "Block"],
        nothing,
    )
    theirs = definitions(text, ["Model"], {**nothing, **vars(parts), "DEFAULT_CONFIG": {}})
    rates = definitions(
        source(clone, "HEAD", "languini/train_lib/lr_schedules.py"),
        ["lr_exponential_decay", "lr_cosine_decay", "CosineLR"],
        {"lr_scheduler": torch.optim.lr_scheduler},
    )
    sizes = {"vocab_size": VOCAB, "h_dim": WIDTH, "n_layers": LAYERS, "mlp_dim": 4 * WIDTH, "n_heads": HEADS}
    sizes |= {"head_dim": WIDTH // HEADS, "use_flash": False, "seq_len": T, "device": torch.device("cpu")}
    torch.manual_seed(0)
    model = theirs.Model(SimpleNamespace(**sizes))
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, betas=settings.betas, eps=settings.eps)
    scheduler = rates.CosineLR(
        torch.optim.SGD([torch.zeros(1)], lr=1.0),
        warmup_steps=schedule.warmup,
        max_lr=1.0,
        min_lr=schedule.final_fraction,
        max_steps=schedule.steps,
        decay_after=False,
    )
    fractions = []
    for _ in range(schedule.steps):
        fractions.append(float(scheduler.get_last_lr()[0]))
        scheduler.optimizer.step()
        scheduler.step()

    def renamed() -> dict[str, Tensor]:
        state = dict(model.named_parameters())
        ours = {"transformer.wte.weight": state["input_embedding.weight"], "lm_head.weight": state["linear.weight"]}
        ours["transformer.wpe.weight"] = state["position_embedding.weight"]
        for kind in ("weight", "bias"):
            ours[f"transformer.ln_f.{kind}"] = state[f"ln_f.{kind}"]
            for i in range(LAYERS):
                old, new = f"layers.{i}.", f"transformer.h.{i}."
                qkv = [state[f"{old}attn.linear_{name}.{kind}"] for name in "QKV"]
                ours[f"{new}attn.c_attn.{kind}"] = torch.cat(qkv)
                ours[f"{new}attn.c_proj.{kind}"] = state[f"{old}attn.linear_O.{kind}"]
                for theirs_name, name in (("ln1", "ln_1"), ("ln2", "ln_2"), ("mlp.c_fc",) * 2, ("mlp.c_proj",) * 2):
                    ours[f"{new}{name}.{kind}"] = state[f"{old}{theirs_name}.{kind}"]
        return ours

    return Published(
        "Languini, GPT baseline",
        run,
        model,
        loss=lambda x, y: F.cross_entropy(model(x, None)[0].flatten(0, 1), y.flatten()),
        logits=lambda x: model(x, None)[0],
        renamed=renamed,
        optimizers=[optimizer],
        rates=fractions,
    )


def compare(published: Published) -> tuple[float, float, float, float, float]:
    """The differences of logits, losses, blocks' weights after the last step, other weights, and learning rates."""
    run = published.run
    ours = build(make_config(run.model, run.parts))
    ours.load_state_dict({name: p.detach().float().clone() for name, p in published.renamed().items()})
    if run.system.weights == "bf16-cast":
        ours.bfloat16()
        ours.load_state_dict(published.renamed())
        cast_in_use(ours)
        ours.load_state_dict(published.renamed())
        torch.set_float32_matmul_precision("high")  # so that Muon rounds to bf16, as theirs does
    optimizer = make_optimizer(ours, run.optim, run.system.weights)
    own, muon.orthogonalise = muon.orthogonalise, published.orthogonalise or muon.orthogonalise
    generator = torch.Generator().manual_seed(1)
    batches = torch.randint(VOCAB, (STEPS, 2, BATCH, T), generator=generator)
    with torch.no_grad():
        logits = float((ours(batches[0, 0]) - published.logits(batches[0, 0])).abs().max())
    losses, rates = 0.0, published.rates
    initial = [[group["lr"] for group in one.param_groups] for one in published.optimizers]
    for step, (x, y) in enumerate(batches):
        pair = ours(x, y), published.loss(x, y)
        losses = max(losses, abs(pair[0].item() - pair[1].item()))
        for loss, model in zip(pair, (ours, published.model), strict=True):
            loss.backward()
            if run.optim.clip:
                clip_gradients(model, run.optim.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, run.optim.lr, run.schedule) * group["ratio"]
        for one, lrs in zip(published.optimizers, initial, strict=True):
            for group, lr in zip(one.param_groups, lrs, strict=True):
                group["lr"] = lr * rates[step]
        for one in (optimizer, *published.optimizers):
            one.step()
            one.zero_grad()
    muon.orthogonalise = own
    torch.set_float32_matmul_precision("highest")
    after = published.renamed()
    differences = {name: (p.detach() - after[name]).abs().float() for name, p in ours.named_parameters()}
    blocks = max(d.max().item() for name, d in differences.items() if ".h." in name)
    ends = max(d.mean().item() for name, d in differences.items() if ".h." not in name)
    rate = max(abs(learning_rate(step, 1.0, run.schedule) - theirs) for step, theirs in enumerate(rates))
    return logits, losses, blocks, ends, rate


if __name__ == "__main__":
    run_command(main)
