"""The named runs, as data: a run is a tree of frozen dataclasses, a preset is its defaults, the command line the rest.

Holds:    `Run` and its parts, `PRESETS`, `check`, `to_json`, `from_json`.
Built in: notebook 12.
Imports:  gpt2.errors, the standard library (so that `train_gpt2.py --help` answers at once).
"""

import dataclasses
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gpt2.errors import UserError


@dataclass(frozen=True)
class Model:
    """The network. A size that isn't given comes from the descriptor."""

    init: str = "d12"
    """Descriptor d6 … d84 or gpt2 … gpt2-xl: random weights of that size. Weights to start from: a folder
    (RUN/model), or a name on the hub (openai-community/gpt2)."""
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


@dataclass(frozen=True)
class Optim:
    """AdamW."""

    lr: float = 6e-4
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
    kind: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup: int = 715
    """Steps of linear warm-up."""
    final_fraction: float = 0.1
    """Last learning rate over the largest."""


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
    """auto: bf16 where the hardware has matrix units for it, else fp16 on CUDA, else fp32."""
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
class Run:
    """A run of train_gpt2.py: everything that decides what is computed."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    eval: Eval = field(default_factory=Eval)
    log: Log = field(default_factory=Log)
    system: System = field(default_factory=System)
    resume: str = "auto"
    """auto: go on from the newest intact checkpoint of the run folder; never: start at step 0; PATH: go on from the
    checkpoint, or the run folder, at PATH."""
    allow_changes: bool = False
    """Go on with settings that change the run."""


# name → (what it is: model, data, tokens, FLOPs, time; the run). The first is the default.
PRESETS: dict[str, tuple[str, Run]] = {
    "gpt2-124m": (
        "GPT-2 124M on 10 B tokens of FineWeb-Edu: 8.6e18 FLOPs, published at 1.06 M tokens/s on 8 A100 (2.6 h)",
        Run(eval=Eval(hellaswag_every=250)),
    ),
    "demo": (
        "1.1 M parameters on the Python standard library, 4.1 M tokens: 2.9e13 FLOPs, two minutes on two CPU cores",
        Run(
            model=Model(init="d6", vocab_size=2048, block_size=128, n_layer=4, n_head=4, n_embd=128),
            data=Data(shards="data/stdlib-2048", batch_tokens=2048, seed=1),
            optim=Optim(lr=5e-3),
            schedule=Schedule(steps=2000, warmup=100, final_fraction=0.0),
            log=Log(folder="runs/demo", save_every=500),
            eval=Eval(every=250, tokens=65_536, sample_every=1000, samples=1, sample_tokens=96, prompt="def "),
            system=System(micro_batch=8, compile="auto"),
        ),
    ),
}


def check(run: Run) -> None:
    """Raise UserError for a value that can't be, and make the run folder, or say why it can't be written to."""
    micro_batch = run.system.micro_batch
    last_n, items = run.eval.last_n, run.eval.hellaswag_items
    ranges = {
        "schedule.steps": (run.schedule.steps, 1),
        "schedule.warmup": (run.schedule.warmup, 0),
        "schedule.final-fraction": (run.schedule.final_fraction, 0),
        "optim.lr": (run.optim.lr, 0),
        "optim.eps": (run.optim.eps, 0),
        "optim.weight-decay": (run.optim.weight_decay, 0),
        "optim.clip": (run.optim.clip, 0),
        "optim.skip-loss-z": (run.optim.skip_loss_z, 0),
        "optim.skip-norm-z": (run.optim.skip_norm_z, 0),
        "optim.max-skips": (run.optim.max_skips, 1),
        "eval.tokens": (run.eval.tokens, 1),
        "eval.samples": (run.eval.samples, 1),
        "eval.last-n": (1 if last_n is None else last_n, 1),
        "eval.hellaswag-items": (1 if items is None else items, 1),
        "log.keep": (run.log.keep, 1),
        "system.micro-batch": (1 if micro_batch == "auto" else micro_batch, 1),
    }
    for name, (value, low) in ranges.items():
        if not low <= value:
            raise UserError(f"--{name} {value} is out of range; give {low} or more")
    if not 0 <= min(run.optim.betas) <= max(run.optim.betas) < 1:
        raise UserError(f"--optim.betas {run.optim.betas} are out of range; give two numbers from 0 to below 1")
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
