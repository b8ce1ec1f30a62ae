"""The parts of a decoder, one choice each: what `gpt2/modern/model.py` builds, as data. Built in notebook 15."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from gpt2.system.errors import UserError
from gpt2.system.ranges import check_ranges


@dataclass(frozen=True)
class Parts:
    """The choice of every part of the network. Every default is GPT-2's choice."""

    norm: Literal["layer", "rms", "rms-plain"] = "layer"
    """layer: LayerNorm with weight and bias. rms: RMSNorm with a weight (arXiv 1910.07467). rms-plain: without one."""
    norm_embedding: bool = False
    """Also normalise the input of the first block."""
    scale_embedding: bool = False
    """Multiply the token embedding by sqrt(width), as "Attention is all you need" does."""
    position: Literal["learned", "rotary", "none"] = "learned"
    """learned: a position embedding, added to the token embedding. rotary: queries and keys are rotated by an angle
    that grows with their position (arXiv 2104.09864). none: nothing."""
    rotary_base: Annotated[float, Gt(1)] = 10_000.0
    """The slowest pair of a head turns once in about 2π · base positions."""
    yarn_factor: Annotated[float, Ge(1)] = 1.0
    """Stretch rotary positions to a context that is this many times as long (YaRN, arXiv 2309.00071). 1: unchanged."""
    yarn_context: Annotated[int, Ge(1)] = 4096
    """The context length that YaRN stretches."""
    kv_heads: Annotated[int | None, Ge(1)] = None
    """Heads of keys and values, each shared by a group of query heads (arXiv 2305.13245) [as many as query heads]."""
    head_size: Annotated[int | None, Ge(1)] = None
    """Width of an attention head [n_embd / n_head]."""
    bias: bool = True
    """Biases in attention and MLP."""
    qk_norm: bool = False
    """Normalise every query and key, so that a score is a cosine times sqrt(head size) (arXiv 2010.04245)."""
    windows: Annotated[tuple[int | Literal["full"], ...], Ge(1)] = ("full",)
    """How many positions a layer sees, the current one included: a pattern that repeats over the layers."""
    sinks: bool = False
    """A learned logit per head that takes part in the softmax and is then dropped: a head can attend to nothing."""
    mlp: Literal["gelu", "relu2", "mp-silu", "swiglu", "swiglu-clamped"] = "gelu"
    """gelu: in its tanh form. relu2: ReLU² (arXiv 2109.08668). mp-silu: SiLU of unit magnitude (arXiv 2312.02696).
    swiglu: arXiv 2002.05202. swiglu-clamped: gpt-oss's SwiGLU, which clamps its factors."""
    mlp_width: Annotated[int | None, Ge(1)] = None
    """Width inside the MLP, or inside each expert [4 · n_embd]."""
    experts: Annotated[int, Ge(0)] = 0
    """MLPs per layer, of which a router chooses a few for every token (arXiv 1701.06538). 0: one MLP for all tokens."""
    experts_per_token: Annotated[int, Ge(1)] = 2
    """Experts that the router chooses for each token."""
    balance: Annotated[float, Ge(0)] = 0.01
    """Weight of the load-balancing loss, which keeps the experts equally busy (arXiv 2101.03961)."""
    init: Literal["gpt2", "languini", "zero"] = "gpt2"
    """gpt2: std 0.02, divided by sqrt(2 · layers) for projections into the residual stream. languini: the division is
    for the MLP's projection only. zero: these projections and the untied head are zero,
    other linear layers uniform up to 1 / sqrt(inputs), embeddings of std 1, as in modded-nanogpt."""
    normalised_weights: bool = False
    """Every row of every matrix keeps one magnitude, in use and after every step (EDM2, arXiv 2312.02696)."""
    residual: Literal["add", "magnitude"] = "add"
    """add: x + f(x). magnitude: a weighted sum of unit magnitude (EDM2). The input of a block and the weighted mean of
    values in attention are scaled to unit magnitude first."""
    residual_mix: Annotated[float, Gt(0), Lt(1)] = 0.3
    """The weight t of f(x) in ((1 - t) x + t f(x)) / sqrt((1 - t)² + t²)."""
    gain: bool = False
    """Multiply logits by a learned number that starts at zero (EDM2)."""
    tied: bool = True
    """The output head is the token embedding."""
    fp32_logits: bool = False
    """Compute logits in fp32, whatever the precision of the rest."""

    def check(self, n_head: int, n_embd: int) -> None:
        """Raise ValueError for values out of range, or that make no sense together or in a network of this size."""
        try:
            check_ranges(self, prefix="")
        except UserError as error:
            raise ValueError(str(error)) from None
        kv_heads, head_size = self.kv_heads or n_head, self.head_size or n_embd // n_head
        if n_head % kv_heads:
            divisors = ", ".join(str(d) for d in range(1, n_head + 1) if n_head % d == 0)
            raise ValueError(f"kv_heads {kv_heads} does not divide n_head {n_head}; give one of {divisors}")
        if self.position == "rotary" and head_size % 2:
            raise ValueError(f"head_size {head_size} is odd, but rotary positions rotate pairs; give an even head_size")
        if self.position != "rotary" and (self.yarn_factor, self.rotary_base) != (1.0, 10_000.0):
            raise ValueError(f"position {self.position} does not use rotary_base or yarn_factor; give position rotary")
        if not self.windows:
            raise ValueError("windows () names no window; give a number of positions from 1, or full")
        if 0 < self.experts < self.experts_per_token:
            raise ValueError(f"experts_per_token {self.experts_per_token} is out of range; give 1 to {self.experts}")
        if self.init == "zero" and self.normalised_weights:
            raise ValueError("init zero does not go with normalised_weights: rows of zeros stay zero; give init gpt2")
