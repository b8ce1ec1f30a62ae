"""Every diagram of the suite. Each function returns a `Diagram`, which a notebook cell shows; `save` writes the SVG.

diagrams.pipeline(stage="02")
diagrams.attention_matrix(words, weights)
"""

from .attention import (
    attention_matrix,
    masked_softmax,
    memory_hierarchy,
    multi_head,
    one_query,
    tiled_softmax,
    view_permute,
)
from .drawing import Diagram
from .model import gpt2, gradient_flow, kv_cache, mlp, residual_block, sampling_rules
from .parallel import ddp_timeline, ring_all_reduce, zero_stages
from .runs import bits_per_byte, checkpoint, data_pipeline, hellaswag, resume_timeline, standard_error_of_difference
from .text import bpe_merges, cross_entropy, pipeline, prerequisites, shifted_targets, text_to_logits
from .training import accumulation, adam_averages, loader_line, number_formats, roofline, schedule, training_loop

__all__ = [
    "Diagram",
    "accumulation",
    "adam_averages",
    "attention_matrix",
    "bits_per_byte",
    "bpe_merges",
    "checkpoint",
    "cross_entropy",
    "data_pipeline",
    "ddp_timeline",
    "gpt2",
    "gradient_flow",
    "hellaswag",
    "kv_cache",
    "loader_line",
    "masked_softmax",
    "memory_hierarchy",
    "mlp",
    "multi_head",
    "number_formats",
    "one_query",
    "pipeline",
    "prerequisites",
    "residual_block",
    "resume_timeline",
    "ring_all_reduce",
    "roofline",
    "sampling_rules",
    "schedule",
    "shifted_targets",
    "standard_error_of_difference",
    "text_to_logits",
    "tiled_softmax",
    "training_loop",
    "view_permute",
    "zero_stages",
]
