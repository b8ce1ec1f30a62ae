"""AdamW, Muon, and weights on a sphere or on the Stiefel manifold: three seeds each, at equal steps and at equal time.

    python benchmarks/magnitudes.py            7 minutes of one core; a run that is there is not made again

Every run trains the same small model on the bytes of the stories, from the same orthogonal matrices, with the same
AdamW for the embedding and the output head. Only the rule for the matrices of the blocks differs. Seed 0 chooses the
learning rate of each rule, and three other seeds judge it. One process makes all runs with one thread and counts the
seconds that it computes. Other programs still disturb these times, so short runs of all rules in turn measure them, and
the fastest counts. Notebook 16 reads magnitudes.json.
"""

import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from experiments import write
from torch import Tensor, nn

from gpt2.data.sources import stories
from gpt2.modern.model import Modern, ModernConfig
from gpt2.modern.parts import Parts
from gpt2.optim.muon import orthogonalise
from gpt2.system.errors import run_command
from gpt2.system.machine import processor_name

RESULTS = Path(__file__).resolve().with_suffix(".json")
FORMAT, STEPS, SEEDS = 1, 300, (1, 2, 3)  # another format: other runs, which notebook 16 can't read
# rule → learning rates. AdamW's is the step of a number; the others' is the step of a matrix or row of length about 1
RATES = {
    "AdamW": (1e-3, 3e-3, 1e-2, 3e-2),
    "Muon": (0.01, 0.03, 0.1),
    "Stiefel": (0.01, 0.03, 0.1),
    "sphere": (0.003, 0.01, 0.03),
}
PARTS = Parts(norm="rms-plain", norm_embedding=True, position="rotary", bias=False, qk_norm=True, tied=False)
CONFIG = ModernConfig(block_size=32, vocab_size=257, n_layer=2, n_head=2, n_embd=64, parts=PARTS)
BATCH, EVERY, CHAPTERS = 16, 25, 36


def read_windows() -> tuple[Tensor, Tensor]:
    """All stretches of 33 bytes of 36 chapters, to train on, and of the next one, which is held out."""
    texts = stories().read(0)
    train, held_out = "".join(next(texts) for _ in range(CHAPTERS)), next(texts)
    first, second = (torch.tensor(list(text.encode())).unfold(0, 33, 1) for text in (train, held_out))
    return first, second[:: len(second) // 256][:256]


def maps(model: nn.Module) -> list[Tensor]:
    """The linear maps of the blocks, as views of the weights: queries, keys and values are three of them."""
    found: list[Tensor] = []
    for name, p in model.named_parameters():
        if ".h." in name:
            found += p.detach().chunk(3) if name.endswith("c_attn.weight") else [p.detach()]
    return found


def scale_of(w: Tensor) -> float:
    """The factor of an orthogonal map at which an input of unit magnitude gives an output of unit magnitude."""
    return max(1.0, w.size(0) / w.size(1)) ** 0.5


def new_model(seed: int) -> Modern:
    """The model of a seed, whose maps start orthogonal."""
    torch.manual_seed(seed)
    model = Modern(CONFIG)
    for w in maps(model):
        w.copy_(nn.init.orthogonal_(torch.empty_like(w)) * scale_of(w))
    return model


def retract(w: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns (or rows), for a matrix close to it: two Newton–Schulz steps."""
    x = w if w.size(0) >= w.size(1) else w.mT
    for _ in range(2):
        x = 1.5 * x - 0.5 * x @ (x.mT @ x)
    return x if w.size(0) >= w.size(1) else x.mT


def stiefel(w: Tensor, g: Tensor, lr: float) -> Tensor:
    """One step on the Stiefel manifold (times the scale of w): tangent projection, orthogonal step, retraction."""
    scale, wide = scale_of(w), w.size(0) < w.size(1)
    q, g = (w.mT, g.mT) if wide else (w / scale, g)
    inner = q.mT @ g
    tangent = g - q @ (inner + inner.mT) / 2
    q = retract(q - lr * orthogonalise(tangent[None])[0])
    return q.mT if wide else q * scale


def sphere(w: Tensor, g: Tensor, lr: float) -> Tensor:
    """One step of every row on its sphere: tangent projection, a step of lr times the row's length, retraction."""
    length = w.norm(dim=1, keepdim=True)
    unit = w / length
    tangent = g - (g * unit).sum(1, keepdim=True) * unit
    moved = unit - lr * tangent / tangent.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return length * moved / moved.norm(dim=1, keepdim=True)


def muon(w: Tensor, g: Tensor, lr: float) -> Tensor:
    """One step of Muon, without weight decay."""
    return w - lr * scale_of(w) * orthogonalise(g[None])[0]


RULES = {"Muon": muon, "sphere": sphere, "Stiefel": stiefel}


def schedule(step: int, steps: int) -> float:
    """The part of the learning rate: ten steps of warm-up, a plateau, and a line down to 0 over the last 60 %."""
    return min(1.0, (step + 1) / 10, (steps - step) / (0.6 * steps))


def train(
    rule: str, lr: float, seed: int, steps: int, windows: tuple[Tensor, Tensor], stop: int | None = None
) -> dict[str, Any]:
    """One run, or its beginning until step `stop`.

    The result has its losses, the held-out losses, the milliseconds of a step, and the root mean square of the maps.
    """
    model = new_model(seed)
    weights = maps(model)
    momenta = [torch.zeros_like(w) for w in weights]
    blocks = [p for name, p in model.named_parameters() if ".h." in name]
    others = [p for name, p in model.named_parameters() if ".h." not in name]
    groups: list[dict[str, Any]] = [{"params": others, "lr": 1e-2, "weight_decay": 0.0}]
    if rule == "AdamW":
        groups.append({"params": blocks, "lr": lr, "weight_decay": 0.1})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    rates = [group["lr"] for group in groups]
    random = torch.Generator().manual_seed(seed)
    losses, times, held_out = [], [], []
    for step in range(stop or steps):
        rows = windows[0][torch.randint(len(windows[0]), (BATCH,), generator=random)]
        started, part = time.process_time(), schedule(step, steps)
        loss = model(rows[:, :-1], rows[:, 1:])
        loss.backward()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * part
        optimizer.step()
        if rule != "AdamW":
            with torch.no_grad():
                for w, g, momentum in zip(weights, gradients(blocks), momenta, strict=True):
                    momentum.lerp_(g, 0.05)
                    w.copy_(RULES[rule](w, g.lerp(momentum, 0.95), lr * part))
        model.zero_grad()
        times.append(time.process_time() - started)
        losses.append(loss.item())
        if (step + 1) % EVERY == 0:
            with torch.no_grad():
                held_out.append(round(model(windows[1][:, :-1], windows[1][:, 1:]).item(), 4))
    return {
        "steps": steps,
        "loss": [round(statistics.mean(losses[i : i + EVERY]), 4) for i in range(0, len(losses), EVERY)],
        "held_out": held_out,
        "milliseconds": round(1e3 * statistics.median(times), 2),
        "rms": round(torch.cat([w.flatten() for w in weights]).square().mean().sqrt().item(), 4),
    }


def measure_pace(rates: dict[str, float], windows: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Milliseconds per step of each rule: the fastest of six short runs, which the rules make in turn."""
    found: dict[str, list[float]] = {rule: [] for rule in rates}
    for _ in range(6):
        for rule, lr in rates.items():
            found[rule].append(train(rule, lr, 0, STEPS, windows, stop=10)["milliseconds"])
    return {rule: min(times) for rule, times in found.items()}


def gradients(blocks: list[nn.Parameter]) -> Iterator[Tensor]:
    """The gradients of `maps`, in their order."""
    for p in blocks:
        assert p.grad is not None
        yield from p.grad.chunk(3) if p.size(0) == 3 * p.size(1) else [p.grad]


def main() -> None:
    torch.set_num_threads(1)
    windows = read_windows()
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if kept.get("format") != FORMAT:
        kept = {"format": FORMAT, "steps": STEPS, "seeds": SEEDS, "every": EVERY, "runs": {}}

    def result(rule: str, lr: float, seed: int, steps: int = STEPS, name: str = "") -> dict[str, Any]:
        name = f"{rule} · lr {lr:g} · seed {seed}{name}"
        if name not in kept["runs"]:
            kept["runs"][name] = {"rule": rule, "lr": lr, "seed": seed, **train(rule, lr, seed, steps, windows)}
            kept.update(machine=f"{processor_name()}, 1 thread", date=time.strftime("%Y-%m-%d"))
            write(RESULTS, kept)
            print(f"{name}: {kept['runs'][name]['held_out'][-1]:.3f}", flush=True)
        return kept["runs"][name]

    best = {}
    for rule, rates in RATES.items():
        runs = [result(rule, lr, 0) for lr in rates]
        best[rule] = min(runs, key=lambda run: run["held_out"][-1])["lr"]
        for seed in SEEDS:
            result(rule, best[rule], seed)
    # equal time: the steps that each rule makes while the slowest one makes STEPS
    kept["best"] = best
    if "equal_time" not in kept:
        pace = kept["milliseconds"] = measure_pace(best, windows)
        kept["equal_time"] = {rule: round(STEPS * max(pace.values()) / ms / EVERY) * EVERY for rule, ms in pace.items()}
    for rule, steps in kept["equal_time"].items():
        for seed in SEEDS:
            result(rule, best[rule], seed, steps, "" if steps == STEPS else f" · {steps} steps")
    write(RESULTS, kept)


if __name__ == "__main__":
    run_command(main)
