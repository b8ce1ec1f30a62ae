"""Learning-rate schedules: step → learning rate.

Built in notebook 08.
"""

import math
from typing import get_args

from gpt2.config.run import Schedule, ScheduleKind

KINDS = get_args(ScheduleKind)


def learning_rate(step: int, max_lr: float, schedule: Schedule) -> float:
    """The learning rate of `step` (0 … steps - 1): linear warm-up, then down to `final_fraction` of `max_lr`.

    Warm-up step s has max_lr · (s + 1) / warmup. After it, by kind, with f = `final_fraction` and r going from 0 to 1:

    - cosine, linear: decay from the end of warm-up to `steps`;
    - constant: no decay;
    - wsd (warm-up, stable, decay): constant until `plateau` · steps, then max_lr · (f + (1 - f)(1 - sqrt(r))) (Hägele
      et al., arXiv 2405.18392); trapezoid: the same with 1 - r (modded-nanogpt);
    - inverse-sqrt: constant until `plateau` · steps, then max_lr / sqrt(step / (plateau · steps)), without f (EDM2,
      arXiv 2312.02696);
    - languini: a cosine over all steps, multiplied by the warm-up (Languini, arXiv 2309.11197).

    After `steps`, the last value remains. Raises ValueError for an unknown kind.
    """
    kind, steps, warmup, final_fraction = schedule.kind, schedule.steps, schedule.warmup, schedule.final_fraction
    if kind not in KINDS:
        raise ValueError(f"unknown schedule {kind!r}; known: {', '.join(KINDS)}")
    rise = min(1.0, (step + 1) / max(1, warmup))
    if rise < 1 and kind != "languini":
        return max_lr * rise
    stable = round(schedule.plateau * steps)
    if kind == "constant":
        return max_lr
    if kind == "inverse-sqrt":
        return max_lr / math.sqrt(max(1.0, min(step, steps) / max(1, stable)))
    start = {"cosine": warmup, "linear": warmup, "wsd": stable, "trapezoid": stable, "languini": 0}[kind]
    past = step - start + (kind == "languini")  # Languini counts its steps from 1
    r = min(1.0, max(0.0, past / max(1, steps - start)))  # the fraction of the decay that is over
    if kind in ("cosine", "languini"):
        decay = 0.5 * (1 + math.cos(math.pi * r))
    else:
        decay = 1 - (math.sqrt(r) if kind == "wsd" else r)
    return max_lr * (rise * (final_fraction + (1 - final_fraction) * decay))
