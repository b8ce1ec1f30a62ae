"""The parts of a decoder, one choice each: what `gpt2/modern/model.py` builds, as data.

Built in notebooks 13 and 16.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Parts:
    """What the network is made of, part by part. Every default is GPT-2's choice."""

    norm: Literal["layer", "rms", "rms-plain"] = "layer"
    """LayerNorm with weight and bias; RMSNorm with a weight (arXiv 1910.07467); RMSNorm without."""
    norm_embedding: bool = False
    """Normalise what enters the first block, too."""
    scale_embedding: bool = False
    """Multiply the token embedding by sqrt(width), as "Attention is all you need" does."""
    position: Literal["learned", "rotary", "none"] = "learned"
    """A table added to the embedding; queries and keys turned by their position (arXiv 2104.09864); nothing."""
    rotary_base: float = 10_000.0
    """The slowest pair of a head turns once in about 2π · base positions."""
    yarn_factor: float = 1.0
    """Stretch rotary positions to a context so many times as long (YaRN, arXiv 2309.00071). 1: as they are."""
    yarn_context: int = 4096
    """The context that YaRN stretches."""
    kv_heads: int | None = None
    """Heads of keys and values, each shared by a group of query heads (arXiv 2305.13245) [as many as query heads]."""
    head_size: int | None = None
    """Width of a head [n_embd / n_head]."""
    bias: bool = True
    """Biases in attention and MLP."""
    qk_norm: bool = False
    """Normalise every query and key: attention by cosine, times sqrt(head size) (arXiv 2010.04245)."""
    windows: tuple[int | Literal["full"], ...] = ("full",)
    """How many positions a layer sees, itself included: a pattern that is repeated over the layers."""
    sinks: bool = False
    """A learned logit a head that takes part in the softmax and is then dropped, so that a head may look nowhere."""
    mlp: Literal["gelu", "relu2", "mp-silu", "swiglu", "swiglu-clamped"] = "gelu"
    """GELU (tanh form); ReLU² (arXiv 2109.08668); SiLU of unit magnitude (arXiv 2312.02696); SwiGLU (arXiv
    2002.05202); gpt-oss's SwiGLU, which clamps what it multiplies."""
    mlp_width: int | None = None
    """Width inside the MLP, or inside each expert [4 · n_embd]."""
    experts: int = 0
    """MLPs a layer, of which a router chooses for every token (arXiv 1701.06538). 0: one MLP for all tokens."""
    experts_per_token: int = 2
    """How many the router chooses."""
    balance: float = 0.01
    """Weight of the loss that keeps the experts equally busy (arXiv 2101.03961)."""
    init: Literal["gpt2", "languini", "zero"] = "gpt2"
    """Std 0.02, and smaller by sqrt(2 · layers) for what adds to the residual stream: all of it; the MLP's part alone;
    or that and the untied head at zero."""
    normalised_weights: bool = False
    """Every row of every matrix keeps one magnitude, in use and after every step (EDM2, arXiv 2312.02696)."""
    residual: Literal["add", "magnitude"] = "add"
    """x + f(x); or a weighted sum of unit magnitude (EDM2), x and attention's mean of values being scaled to it."""
    residual_mix: float = 0.3
    """The weight t of f(x) in ((1 − t) x + t f(x)) / sqrt((1 − t)² + t²)."""
    gain: bool = False
    """Logits times a learned number that starts at zero (EDM2)."""
    tied: bool = True
    """The head is the token table."""
    fp32_logits: bool = False
    """The head's product in fp32, whatever the precision of the rest."""

    def problem(self, n_head: int, n_embd: int) -> str | None:
        """What makes no sense in a network of this size, as `name value …; how to mend it`; None where all does."""
        for name in ("kv_heads", "head_size", "mlp_width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                return f"{name} {value} is out of range; give at least 1"
        size, kv = self.head_size or n_embd // n_head, self.kv_heads or n_head
        if n_head % kv:
            return f"kv_heads {kv} does not divide n_head {n_head}; give one of {_divisors(n_head)}"
        if self.position == "rotary" and size % 2:
            return f"head_size {size} is odd, and rotary positions turn pairs; give an even one"
        if not self.windows or any(w != "full" and w < 1 for w in self.windows):
            return f"windows {self.windows}: a layer sees at least itself; give numbers from 1, or full"
        if self.experts < 0:
            return f"experts {self.experts} is out of range; give 0 for none, or at least 1"
        if self.experts and not 1 <= self.experts_per_token <= self.experts:
            return f"experts_per_token {self.experts_per_token} is not from 1 to the {self.experts} experts there are"
        if self.balance < 0:
            return f"balance {self.balance:g} is out of range; give 0 or more"
        if self.yarn_factor < 1 or self.yarn_context < 1 or self.rotary_base <= 1:
            return (
                f"yarn_factor {self.yarn_factor:g}, yarn_context {self.yarn_context}, rotary_base "
                f"{self.rotary_base:g}: give at least 1, at least 1, more than 1"
            )
        if self.position != "rotary" and (self.yarn_factor, self.rotary_base) != (1.0, 10_000.0):
            return f"position {self.position} has no use for rotary_base or yarn_factor; give position rotary"
        if not 0 < self.residual_mix < 1:
            return f"residual_mix {self.residual_mix:g} is out of range; give a number between 0 and 1"
        if self.init == "zero" and self.normalised_weights:
            return "init zero does not go with normalised_weights: a row of zeros has no direction; give init gpt2"
        return None


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
