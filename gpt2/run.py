"""What a run is, as data: a tree of frozen dataclasses. A preset gives the defaults, the command line the rest.

Holds:    `Run` and its groups, `complete`, `check`, `to_json`, `from_json`.
Built in: notebook 12.
Imports:  gpt2.errors, gpt2.parts, the standard library (so that `train_gpt2.py --help` answers at once).
"""

import dataclasses
import json
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from gpt2.errors import UserError
from gpt2.parts import Parts


@dataclass(frozen=True)
class Model:
    """The network. A size that isn't given comes from the descriptor."""

    init: str = "d12"
    """Descriptor d6 … d84, gpt2 … gpt2-xl or gpt3:c384 … gpt3:c12288: random weights of that size. Weights to start
    from: a folder (RUN/model), llm.c's gpt2_124M.bin, or a name on the hub (openai-community/gpt2)."""
    vocab_size: int = 50257
    """The tokenizer's, 257 to 50257."""
    block_size: int | None = None
    """Longest sequence, and the length T of the sequences trained on [1024]."""
    n_layer: int | None = None
    n_head: int | None = None
    n_embd: int | None = None


@dataclass(frozen=True)
class Data:
    """The text, as token shards."""

    shards: str = "data/fineweb-edu"
    """Folder that fineweb.py filled, or a glob pattern of train shards (quote it)."""
    val_shards: str | None = None
    """Glob pattern of val shards [the val shards of --data.shards, a folder]."""
    batch_tokens: int = 524_288
    """Tokens in one optimiser step, over all processes and micro-steps."""
    seed: int | None = None
    """Shuffle the sequences of every epoch with this seed [file order]."""
    overfit: bool = False
    """Train on the first step's batch again and again: a model that can't learn it by heart has a mistake in it."""


@dataclass(frozen=True)
class Optim:
    """The optimiser, and which steps it does not make."""

    kind: Literal["adamw", "muon"] = "adamw"
    """adamw for everything; or muon for the matrices of the blocks and adamw for the rest."""
    lr: float = 6e-4
    """Largest learning rate."""
    embedding_lr: float | None = None
    """That of the token and position tables [lr]."""
    head_lr: float | None = None
    """That of an untied head [lr]."""
    vector_lr: float | None = None
    """That of biases, norms and single numbers [lr]."""
    momentum: float = 0.95
    """Muon's, of Nesterov's kind."""
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    clip: float = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    skip_loss_z: float = 0.0
    """Skip a step whose loss lies so many standard deviations above the mean of the last 128. 0: never."""
    skip_norm_z: float = 0.0
    """The same for the gradient norm."""
    max_skips: int = 10
    """Skipped steps in a row (for this, or a loss or gradient that isn't finite) after which the run stops."""


@dataclass(frozen=True)
class Schedule:
    """The learning rate over the steps."""

    steps: int = 19_073
    kind: Literal["cosine", "linear", "constant", "wsd", "trapezoid", "inverse-sqrt", "languini"] = "cosine"
    """wsd, trapezoid: constant, then down in the form of 1 - sqrt, or of a line. inverse-sqrt: constant, then as
    1 / sqrt(step). languini: a cosine from step 0 on, times the warm-up."""
    warmup: int = 715
    """Steps of linear warm-up."""
    final_fraction: float = 0.1
    """Last learning rate over the largest."""
    plateau: float = 0.8
    """Part of the steps after which wsd, trapezoid and inverse-sqrt leave the largest rate."""


@dataclass(frozen=True)
class Eval:
    """What is measured on the way."""

    every: int = 250
    """Steps between validations; the last step is always validated. 0: never."""
    tokens: int = 10_485_760
    """Validation tokens, always the same ones (fewer if val has fewer)."""
    last_n: int | None = None
    """Also score only the last n targets of windows shifted by n: every target then has a long context."""
    accuracy: bool = False
    """Also measure top-1 and top-10 accuracy."""
    hellaswag_every: int = 0
    """Steps between HellaSwag evaluations. 0: never."""
    hellaswag: str = "Rowan/hellaswag"
    """HellaSwag's items: a .jsonl file, or a dataset of the hub."""
    hellaswag_items: int | None = None
    """Only the first so many items."""
    sample_every: int = 250
    """Steps between samples. 0: never."""
    samples: int = 4
    sample_tokens: int = 32
    """Length of a sample, its prompt included."""
    prompt: str = "Hello, I'm a language model,"


@dataclass(frozen=True)
class Log:
    """What is kept."""

    folder: str = "runs/gpt2-124m"
    """Run folder: log.txt, config.json, checkpoints step_…/, model/, DONE."""
    overwrite: bool = False
    """Replace the run that the folder holds."""
    save_every: int = 250
    """Steps between checkpoints; there is always one at the end, and when the run is stopped. 0: only then."""
    keep: int = 2
    """Checkpoints kept: the newest so many."""
    keep_every: int = 0
    """Checkpoints of every so many steps are kept for good. 0: none."""
    gpu_every: int = 0
    """Steps between lines with the GPU's utilisation, temperature and memory. 0: never."""
    norms_every: int = 0
    """Steps between lines with the gradient and weight norm of every layer. 0: never."""
    tensorboard: bool = False
    """Write TensorBoard files into the run folder."""
    wandb: bool = False
    """Log to Weights & Biases (WANDB_MODE=offline: into the run folder)."""


@dataclass(frozen=True)
class System:
    """The machine, and the random numbers. Nothing here changes which tokens a step sees."""

    micro_batch: int | Literal["auto"] = "auto"
    """Sequences a process computes at a time; auto: the largest that fits."""
    precision: Literal["auto", "bf16", "fp16", "tf32", "fp32"] = "auto"
    """auto: bf16 where the hardware has instructions for it, else fp16 on CUDA, else fp32."""
    weights: Literal["fp32", "bf16", "bf16-master"] = "fp32"
    """What weights and gradients are stored as. bf16-master: the optimiser keeps fp32 copies, which it updates."""
    small_gpu: bool = False
    """For cards without bf16 or FlexAttention (RTX 2080): fp16 with loss scaling, fp32 weights, plain windows and
    sinks, MLPs computed again in backward."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile for training and validation. auto: where a compiler is found and the run is long enough to gain."""
    zero: Literal[0, 1, 2, 3] = 0
    """What is divided over the processes: 0 nothing (DDP), 1 the optimiser's state, 2 gradients too, 3 weights too."""
    recompute: Literal["none", "mlp", "block"] = "none"
    """What is computed again in backward instead of being kept: less memory, more time."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    seed: int = 1337
    """Of the initial weights and the samples."""


@dataclass(frozen=True)
class Languini:
    """Languini's compute classes (arXiv 2309.11197): hours of a reference accelerator decide the number of steps."""

    hours: float | None = None
    """Train on as many tokens as the reference accelerator would have in so many hours [--schedule.steps]."""
    tokens_per_second: float | None = None
    """Its best measured throughput of this model: an RTX 3090 reached 55,416 with small, 16,618 with medium."""


@dataclass(frozen=True)
class Run:
    """A run of train_gpt2.py: everything that decides what is computed."""

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
    """auto: go on from the newest intact checkpoint of the run folder; never: start at step 0; PATH: go on from the
    checkpoint, or the run folder, at PATH."""
    allow_changes: bool = False
    """Go on with settings that change the run."""


SMALLEST = {  # what a setting may be at least; None and "auto" are always allowed
    "schedule": {"steps": 1, "warmup": 0, "final_fraction": 0, "plateau": 0},
    "optim": {
        "embedding_lr": 0,
        "head_lr": 0,
        "vector_lr": 0,
        "momentum": 0,
        "lr": 0,
        "eps": 0,
        "weight_decay": 0,
        "clip": 0,
        "skip_loss_z": 0,
        "skip_norm_z": 0,
        "max_skips": 1,
    },
    "eval": {"tokens": 1, "samples": 1, "last_n": 1, "hellaswag_items": 1},
    "log": {"keep": 1},
    "system": {"micro_batch": 1},
}


def complete(run: Run) -> Run:
    """The run with what its compute class and a small GPU decide. Raises UserError for a class without a throughput."""
    if run.system.small_gpu:
        recompute = "mlp" if run.system.recompute == "none" else run.system.recompute
        system = replace(run.system, precision="fp16", weights="fp32", recompute=recompute)
        run = replace(run, system=system)
    hours, speed = run.languini.hours, run.languini.tokens_per_second
    if hours is None:
        return run
    if speed is None:
        raise UserError(
            f"--languini.hours {hours:g} needs the reference accelerator's throughput of this model; add "
            "--languini.tokens-per-second (python -m gpt2.flops --sweep measures it)"
        )
    if not (hours > 0 and speed > 0):
        raise UserError(f"--languini.hours {hours:g} at {speed:g} tokens/s is out of range; give more than 0 of both")
    steps = max(1, round(hours * 3600 * speed / run.data.batch_tokens))
    return replace(run, schedule=replace(run.schedule, steps=steps))


def check(run: Run) -> None:
    """Raise UserError for a value that can't be, and make the run folder, or say why it can't be written to."""
    for group, names in SMALLEST.items():
        for name, least in names.items():
            value = getattr(getattr(run, group), name)
            if value not in (None, "auto") and not value >= least:
                flag = f"--{group}.{name.replace('_', '-')}"
                raise UserError(f"{flag} {value} is out of range; give {least} or more")
    if run.optim.momentum >= 1:
        raise UserError(f"--optim.momentum {run.optim.momentum:g} is out of range; give 0 to below 1")
    if not 0 <= min(run.optim.betas) <= max(run.optim.betas) < 1:
        raise UserError(f"--optim.betas {run.optim.betas} are out of range; give two numbers from 0 to below 1")
    if run.schedule.plateau > 1:
        raise UserError(f"--schedule.plateau {run.schedule.plateau:g} is out of range; give a part, 0 to 1")
    if run.parts.normalised_weights and run.system.weights == "bf16-master":
        raise UserError("--parts.normalised-weights does not go with --system.weights bf16-master; give fp32 or bf16")
    folder = Path(run.log.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"can't write to {folder} ({error.strerror}); name another --log.folder") from None


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
