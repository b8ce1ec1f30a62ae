"""Step → learning rate.

Built in notebook 08.
"""

import math

KINDS = ("cosine", "linear", "constant", "wsd", "trapezoid", "inverse-sqrt", "languini")


def learning_rate(
    step: int,
    max_lr: float,
    steps: int,
    warmup: int = 0,
    kind: str = "cosine",
    final_fraction: float = 0.1,
    plateau: float = 0.8,
) -> float:
    """The learning rate of `step` (0 … steps - 1): linear warm-up, then `kind` down to `final_fraction` of `max_lr`.

    Warm-up step s has max_lr · (s + 1) / warmup. After it, with f the `final_fraction` and r from 0 to 1:

    - cosine, linear: fall from the end of warm-up to `steps`;
    - constant: stays;
    - wsd (warm-up, stable, decay): stays until `plateau` · steps, then max_lr · (f + (1 - f)(1 - sqrt(r))) (Hägele
      et al., arXiv 2405.18392); trapezoid: the same with 1 - r (modded-nanogpt);
    - inverse-sqrt: stays until `plateau` · steps, then max_lr / sqrt(step / (plateau · steps)), and f has no part in
      it (EDM2, arXiv 2312.02696);
    - languini: a cosine over all the steps, times the warm-up (Languini, arXiv 2309.11197).

    After `steps` the last value stays. Raises ValueError for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown schedule {kind!r}; known: {', '.join(KINDS)}")
    rise = min(1.0, (step + 1) / max(1, warmup))
    if rise < 1 and kind != "languini":
        return max_lr * rise
    stable = round(plateau * steps)
    if kind == "inverse-sqrt":
        return max_lr / math.sqrt(max(1.0, min(step, steps) / max(1, stable)))
    start = {"wsd": stable, "trapezoid": stable, "languini": 0}.get(kind, warmup)
    r = min(1.0, max(0.0, (step - start) / max(1, steps - start)))  # how far into the decay
    height = {
        "cosine": 0.5 * (1 + math.cos(math.pi * r)),
        "languini": 0.5 * (1 + math.cos(math.pi * r)),
        "linear": 1 - r,
        "trapezoid": 1 - r,
        "constant": 1.0,
        "wsd": 1 - math.sqrt(r),
    }[kind]
    return max_lr * (height if kind == "constant" else rise * (final_fraction + (1 - final_fraction) * height))
