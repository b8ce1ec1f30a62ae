"""What a run is, as data: a tree of frozen dataclasses. A preset gives the defaults, the command line overrides them.

It imports no torch, so that `train_gpt2.py --help` answers at once. Built in notebook 12.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from gpt2.modern.parts import Parts

Precision = Literal["auto", "bf16", "fp16", "tf32", "fp32"]
Compile = Literal["auto", "on", "off"]
Device = Literal["auto", "cuda", "mps", "cpu"]
ScheduleKind = Literal["cosine", "linear", "constant", "wsd", "trapezoid", "inverse-sqrt", "languini"]


@dataclass(frozen=True)
class Model:
    """The network. A size that is not given follows from `init`."""

    init: str = "d12"
    """Random weights of a size: d6 … d84 (d12 is GPT-2 124M), gpt3:c384 … gpt3:c12288. Or weights to start from: gpt2 …
    gpt2-xl (OpenAI's), a folder (RUN/model), llm.c's gpt2_124M.bin, or a name on the hub."""
    vocab_size: int = 50257
    """The tokenizer's, 257 to 50257."""
    block_size: int | None = None
    """The longest sequence, and the length T of the sequences that are trained on [1024]."""
    n_layer: int | None = None
    n_head: int | None = None
    n_embd: int | None = None


@dataclass(frozen=True)
class Data:
    """The text, as token shards."""

    shards: str = "data/fineweb-edu"
    """Folder that fineweb.py filled, or a glob pattern of train shards (quote it)."""
    val_shards: str | None = None
    """Folder or glob pattern of val shards [those in --data.shards]."""
    batch_tokens: int = 524_288
    """Tokens per optimiser step, over all processes and micro-steps."""
    seed: int | None = None
    """Shuffle the sequences of every epoch with this seed [file order]."""
    overfit: bool = False
    """Train on the batch of the first step again and again: a model that can't memorise it has a bug."""


@dataclass(frozen=True)
class Optim:
    """The optimiser, and which steps it skips."""

    kind: Literal["adamw", "muon"] = "adamw"
    """adamw for all parameters; or muon for the matrices of the blocks, and adamw for the rest."""
    lr: Annotated[float, Ge(0)] = 6e-4
    """Largest learning rate."""
    embedding_lr: Annotated[float | None, Ge(0)] = None
    """Learning rate of the token and position embeddings [lr]."""
    head_lr: Annotated[float | None, Ge(0)] = None
    """Learning rate of an untied output head [lr]."""
    vector_lr: Annotated[float | None, Ge(0)] = None
    """Learning rate of biases, norms and scalars [lr]."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.95
    """Nesterov momentum of Muon."""
    weight_decay: Annotated[float, Ge(0)] = 0.1
    betas: Annotated[tuple[float, float], Ge(0), Lt(1)] = (0.9, 0.95)
    eps: Annotated[float, Ge(0)] = 1e-8
    clip: Annotated[float, Ge(0)] = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    skip_loss_z: Annotated[float, Ge(0)] = 0.0
    """Skip a step whose loss is more than so many standard deviations above the mean of the last 128. 0: never."""
    skip_norm_z: Annotated[float, Ge(0)] = 0.0
    """The same for the gradient norm."""
    max_skips: Annotated[int, Ge(1)] = 10
    """The run stops after so many skipped steps in a row (a loss or gradient that is not finite counts too)."""


@dataclass(frozen=True)
class Schedule:
    """The learning-rate schedule."""

    steps: Annotated[int, Ge(1)] = 19_073
    epochs: Annotated[float | None, Gt(0), Lt(math.inf)] = None
    """Train for so many passes over the train shards, in whole steps [--schedule.steps]."""
    kind: ScheduleKind = "cosine"
    """wsd, trapezoid: constant, then decaying like 1 - sqrt, or linearly. inverse-sqrt: constant, then proportional to
    1 / sqrt(step). languini: a cosine from step 0 on, times the warm-up."""
    warmup: Annotated[int, Ge(0)] = 715
    """Steps of linear warm-up."""
    final_fraction: Annotated[float, Ge(0)] = 0.1
    """The last learning rate, as a fraction of the largest."""
    plateau: Annotated[float, Ge(0), Le(1)] = 0.8
    """Fraction of the steps after which wsd, trapezoid and inverse-sqrt start to decay."""


@dataclass(frozen=True)
class Eval:
    """What is measured during training."""

    every: int = 250
    """Steps between validations; the last step is always validated. 0: never."""
    tokens: Annotated[int, Ge(1)] = 10_485_760
    """Validation tokens, always the same ones (fewer if the val shards hold fewer)."""
    last_n: Annotated[int | None, Ge(1)] = None
    """Also measure on overlapping windows, n tokens apart. Only the last n targets of each count: all have a long
    context."""
    accuracy: bool = False
    """Also measure top-1 and top-10 accuracy."""
    hellaswag_every: int = 0
    """Steps between HellaSwag evaluations. 0: never."""
    hellaswag: str = "Rowan/hellaswag"
    """The items of HellaSwag: a .jsonl file, or a dataset on the hub."""
    hellaswag_items: Annotated[int | None, Ge(1)] = None
    """Score only the first N items [all]."""
    sample_every: int = 250
    """Steps between samples. 0: never."""
    samples: Annotated[int, Ge(1)] = 4
    sample_tokens: int = 32
    """Length of a sample, including its prompt."""
    prompt: str = "Hello, I'm a language model,"


@dataclass(frozen=True)
class Log:
    """What is written, and kept."""

    folder: str = "runs/gpt2-124m"
    """Run folder: log.txt, config.json, checkpoints step_…/, model/, DONE."""
    overwrite: bool = False
    """Replace the run that the folder holds."""
    save_every: int = 250
    """Steps between checkpoints. One is always saved at the end, and when the run is stopped. 0: only then."""
    keep: Annotated[int, Ge(1)] = 2
    """How many of the newest checkpoints are kept."""
    keep_every: int = 0
    """Checkpoints whose step this number divides are kept for good. 0: none."""
    gpu_every: int = 0
    """Steps between lines with utilisation, temperature and memory of the GPU. 0: never."""
    norms_every: int = 0
    """Steps between lines with three norms of every layer: of gradient, weights, and the optimiser's step. 0: never."""
    tensorboard: bool = False
    """Write TensorBoard files into the run folder."""
    wandb: bool = False
    """Log to Weights & Biases (WANDB_MODE=offline: into the run folder)."""


@dataclass(frozen=True)
class System:
    """The machine, and the seed. Nothing here changes which tokens a step sees."""

    micro_batch: Annotated[int | Literal["auto"], Ge(1)] = "auto"
    """Sequences that a process computes at a time; auto: the most that fit."""
    precision: Precision = "auto"
    """auto: bf16 where the hardware has instructions for it, else fp16 on CUDA, else fp32."""
    weights: Literal["fp32", "bf16", "bf16-master", "bf16-cast"] = "fp32"
    """Storage of weights and gradients. bf16-master: the optimiser keeps fp32 copies and updates those; gradients are
    summed in bf16, as in llm.c. bf16-cast:
    linear maps are fp32 and are cast in use, without autocast."""
    fp8: bool = False
    """The linear maps of the blocks are multiplied in FP8, by torchao: on H100, RTX 4090 and newer, weights in fp32."""
    small_gpu: bool = False
    """For GPUs without bf16 or FlexAttention (RTX 2080): fp16 with loss scaling, fp32 weights, windows and sinks by the
    plain formula, MLPs recomputed in backward."""
    compile: Compile = "auto"
    """torch.compile for training and validation. auto: if there is a compiler, and the run is long enough to gain."""
    zero: Literal[0, 1, 2, 3] = 0
    """ZeRO stage: 0 divides nothing (DDP), 1 the optimiser state over processes, 2 gradients too, 3 weights too."""
    attention: Literal["auto", "cudnn", "flash", "efficient", "plain"] = "auto"
    """The kernel of attention on a GPU. auto: PyTorch chooses. Try flash if cuDNN's gives a loss that is not finite."""
    recompute: Literal["none", "gelu", "mlp", "block"] = "none"
    """What is recomputed in backward instead of being kept: less memory, more time. gelu: the results of the activation
    functions."""
    device: Device = "auto"
    seed: int = 1337
    """Seed of the initial weights and of the samples."""


@dataclass(frozen=True)
class Languini:
    """Languini's compute classes (arXiv 2309.11197): hours of a reference accelerator determine the number of steps."""

    hours: Annotated[float | None, Gt(0)] = None
    """Train on as many tokens as the reference accelerator would in so many hours [--schedule.steps]."""
    tokens_per_second: Annotated[float | None, Gt(0)] = None
    """Throughput of the reference accelerator. An RTX 3090 reached 55,416 with small, and 16,618 with medium."""


@dataclass(frozen=True)
class Run:
    """A run of train_gpt2.py: everything that determines what is computed."""

    model: Model = field(default_factory=Model)
    parts: Parts = field(default_factory=Parts)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    eval: Eval = field(default_factory=Eval)
    log: Log = field(default_factory=Log)
    system: System = field(default_factory=System)
    languini: Languini = field(default_factory=Languini)
    resume: str = "auto"
    """auto: resume from the newest intact checkpoint of the run folder; never: start at step 0; PATH: resume from the
    checkpoint, or the run folder, at PATH."""
    allow_changes: bool = False
    """Resume with settings that change the run."""


def to_json(run: Run) -> str:
    """The run as JSON, every leaf written out."""
    return json.dumps(dataclasses.asdict(run), indent=2) + "\n"


def from_json(text: str) -> Run:
    """What `to_json` wrote, as a Run. Raises TypeError or ValueError where it isn't one."""

    def build(kind: Any, values: dict[str, Any]) -> Any:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    parts = {f.name: f.default_factory for f in dataclasses.fields(Run)}
    leaves = json.loads(text)
    return Run(**{k: build(parts[k], v) if isinstance(v, dict) else v for k, v in leaves.items()})
