"""Step → learning rate.

Holds:    `learning_rate`.
Built in: notebook 08.
Imports:  the standard library.
"""

import math

KINDS = ("cosine", "linear", "constant", "wsd")
WSD_DECAY = 0.2  # wsd decays over the last fifth of the steps, as llm.c does


def learning_rate(
    step: int, max_lr: float, steps: int, warmup: int = 0, kind: str = "cosine", final_fraction: float = 0.1
) -> float:
    """The learning rate of `step` (0 … steps - 1): linear warm-up, then `kind` down to `final_fraction` of `max_lr`.

    Warm-up step s has max_lr · (s + 1) / warmup. cosine and linear fall from the end of warm-up to `steps`; constant
    stays; wsd (warm-up, stable, decay) stays until 80 % and then takes max_lr · (f + (1 - f)(1 - sqrt(r))) for r from
    0 to 1 (Hägele et al., arXiv 2405.18392; f is `final_fraction`). After `steps` the last value stays.
    Raises ValueError for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown schedule {kind!r}; known: {', '.join(KINDS)}")
    if step < warmup:
        return max_lr * (step + 1) / warmup
    start = (1 - WSD_DECAY) * steps if kind == "wsd" else warmup
    r = min(1.0, max(0.0, (step - start) / max(1, steps - start)))  # how far into the decay
    height = {
        "cosine": 0.5 * (1 + math.cos(math.pi * r)),
        "linear": 1 - r,
        "constant": 1.0,
        "wsd": 1 - math.sqrt(r),
    }[kind]
    return max_lr * (height if kind == "constant" else final_fraction + (1 - final_fraction) * height)
