"""What a bug does to the loss, and what the log says of it: a tiny GPT-2 per bug and seed, on the bytes of the stories.

    python benchmarks/silent_bugs.py                     all runs: ten minutes of one core; a run that is there is kept
    python benchmarks/silent_bugs.py --only no-mask      the runs of one bug

`Run` is the right training. A bug is a subclass that changes one method. Every run measures two losses on the same
held-out text: `printed` is what the buggy program itself reports, and `true` is measured by right code. Several
processes are simulated in one, by several models that exchange their gradients. Notebook 18 reads silent_bugs.json.
"""

import copy
import itertools
import json
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import small_run as small
import torch
import tyro
from experiments import make_stories, write
from small_run import Run, TwoRanks, adds_ones, rows_of, sees_all
from torch.nn import functional as F

from gpt2 import kernels
from gpt2.model import GPT
from gpt2.system.errors import run_command
from gpt2.system.machine import available_cores, processor_name

RESULTS = Path(__file__).resolve().parent / "silent_bugs.json"
BUGS: dict[str, type[Run]] = {"right": Run}


def bug(kind: type[Run]) -> type[Run]:
    """Register a bug under the words of its name: NotDivided → "not divided"."""
    BUGS[re.sub(r"(?<!^)(?=[A-Z])", " ", kind.__name__).lower()] = kind
    return kind


@bug
class TargetsNotShifted(Run):
    def cut(self, rows):
        return rows[:, :-1], rows[:, :-1]


@bug
class TargetsShiftedTwice(Run):
    def cut(self, rows):
        return rows[:, :-2], rows[:, 2:]


@bug
class NoMask(Run):
    attend = staticmethod(sees_all)


@bug
class MaskOfFloats(Run):
    attend = staticmethod(adds_ones)


@bug
class SoftmaxTwice(Run):
    def loss(self, model, x, y):
        return F.cross_entropy(model(x).softmax(-1).flatten(0, 1), y.flatten())


@bug
class Padded(Run):  # not a bug: sequences end early, and the padding does not count
    padded, parts = True, small.MICRO


@bug
class PaddingCounted(Padded):
    def cut(self, rows):
        x, y = super().cut(rows)
        return x, y.masked_fill(y == kernels.IGNORED, 0)


@bug
class MeanOfMeans(Padded):
    def shares(self, counts):
        return [1 / len(counts)] * len(counts)


@bug
class NotDivided(Run):
    parts = small.MICRO

    def shares(self, counts):
        return [1.0] * len(counts)


@bug
class GradientsNotCleared(Run):
    def clear(self):
        pass


@bug
class ClippedBeforeUnscaling(Run):
    def clip(self):
        gradients = [p.grad for p in self.models[0].parameters()]
        torch._foreach_mul_(gradients, 65536.0)  # as the loss scaler's factor does
        norm = super().clip()
        torch._foreach_div_(gradients, 65536.0)
        return norm


@bug
class SchedulePerMicroBatch(Run):
    def rate(self, step):
        return super().rate(small.MICRO * step)


@bug
class NoBiasCorrection(Run):
    def rate(self, step):  # the correction is a factor of the rate, but for epsilon
        return super().rate(step) * (1 - small.BETAS[0] ** (step + 1)) / math.sqrt(1 - small.BETAS[1] ** (step + 1))


@bug
class EverythingDecays(Run):
    def groups(self, model):
        return [{"params": list(model.parameters()), "weight_decay": 0.1}]


@bug
class SyncTooLate(TwoRanks):
    averaged = 1


@bug
class SaltedSeed(TwoRanks):
    def start(self):
        torch.manual_seed(1000 + self.seed)
        self.models.append(GPT(small.CONFIG))


@bug
class SameTextOnEveryRank(Run):
    parts = 2

    def micro_batches(self, position):
        return 2 * super().micro_batches(position)[:1]


@bug
class FileOrder(Run):
    def make_order(self):
        return np.arange(len(self.train_rows))


@bug
class ShardEndsLost(Run):
    def make_order(self):
        order = super().make_order()
        return order[order % 50 < 32]  # shards of 50 sequences, of which 2 steps of 16 are read


@bug
class IdsWrapped(Run):
    def cut(self, rows):
        return super().cut(rows % 64)


@bug
class Dropout(Run):  # not a bug: the model has dropout
    dropout = 0.1


@bug
class ValidatedInTrainingMode(Dropout):
    def printed(self, model):
        return super().printed(model.train())


@bug
class ValidationTextMovesOn(Run):
    def printed(self, model):
        seen = 8 * len(self.log["printed"])
        return self.loss(model, *self.cut(self.val_rows[seen % small.HELD_OUT :][:8])).item()


@bug
class ValidatedOnTrainingText(Run):
    sequences = 64

    def printed(self, model):
        return self.loss(model, *self.cut(torch.from_numpy(self.train_rows))).item()


@bug
class PositionsBeginAgain(Run):
    def printed(self, model):
        again = copy.deepcopy(model)  # as if the later half came after a cache, and its positions from 0
        again.transformer.wpe.weight[small.T // 2 :] = again.transformer.wpe.weight[: small.T // 2].clone()
        return super().printed(again)


@bug
class ResumedWithoutOptimizer(Run):
    def resume(self):
        self.optimizers = [self.make_optimizer(self.models[0])]


@bug
class ResumedAtTheFirstText(Run):
    def position(self, step):
        return step % (small.STEPS // 2)


@bug
class ResumedAtTheFirstRate(Run):
    def rate(self, step):
        return super().rate(step % (small.STEPS // 2))


@bug
class ResidualsGrown(Run):
    def start(self):
        with torch.no_grad():
            for block in self.models[0].transformer.h:
                block.attn.c_proj.weight *= 2 * small.CONFIG.n_layer
                block.mlp.c_proj.weight *= 2 * small.CONFIG.n_layer


@bug
class NoLossScaling(Run):
    """The gradients of the logits and of the weights are stored in fp16, and nothing multiplies the loss before."""

    def loss(self, model, x, y):
        logits = model(x)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: gradient.half().float())
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())

    def clip(self):
        for p in self.models[0].parameters():
            p.grad = p.grad.half().float()
        return super().clip()


@bug
class WeightsInBf16(Run):
    @torch.no_grad()
    def update(self, rate):
        super().update(rate)
        for p in self.models[0].parameters():
            p.copy_(p.bfloat16())


@bug
class LastMicroBatchLogged(Run):
    parts = small.MICRO

    def gradients(self, batches):
        pairs = [self.cut(rows) for rows in batches]
        for x, y in pairs:
            loss = self.loss(self.models[0], x, y)
            (loss / len(pairs)).backward()
        return loss.item()


@dataclass(frozen=True)
class Options:
    """What each bug does to the loss."""

    only: str = ""
    """Make the runs of this bug only, such as no-mask [all]."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    make_stories()
    train, val = rows_of("train"), rows_of("val")
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}}
    settings = {"steps": small.STEPS, "every": small.EVERY, "bytes per step": small.BATCH * small.T, "seconds": 0.0}
    kept = settings | kept | {"machine": processor_name(), "date": time.strftime("%Y-%m-%d")}
    runs = [*itertools.product((0, 1), BUGS), *((seed, "right") for seed in range(2, 6)), *((2, name) for name in BUGS)]
    for seed, name in runs:
        if f"{name} · {seed}" in kept["runs"] or options.only.replace("-", " ") not in ("", name):
            continue
        started = time.process_time()
        log = BUGS[name](seed, train, val).train()
        kept["runs"][f"{name} · {seed}"] = {what: " ".join(f"{v:.3f}" for v in log[what]) for what in log}
        kept["seconds"] = round(kept["seconds"] + time.process_time() - started, 1)
        write(RESULTS, kept)
        print(f"{log['true'][-1]:.3f} true, {log['printed'][-1]:.3f} printed: {name}, seed {seed}", flush=True)
    print(f"{kept['seconds']:.0f} CPU seconds on one of {available_cores()} cores")


if __name__ == "__main__":
    run_command(main)
