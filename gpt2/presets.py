"""The named runs, as data: a run is a tree of frozen dataclasses, a preset is its defaults, the command line the rest.

Holds:    `Run` and its parts, `PRESETS`, `to_json`, `from_json`.
Built in: notebook 12.
Imports:  the standard library (so that `train_gpt2.py --help` answers at once).
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal


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
    """Run folder: log.txt, config.json, model/."""
    overwrite: bool = False
    """Replace the run that the folder holds."""
    save_every: int = 5000
    """Steps between saves of the weights; they are always saved at the end. 0: only then."""


@dataclass(frozen=True)
class System:
    """The machine, and the random numbers. Nothing here changes which tokens a step sees."""

    micro_batch: int | Literal["auto"] = "auto"
    """Sequences a process computes at a time; auto: the largest that fits."""
    precision: Literal["auto", "bf16", "fp16", "tf32", "fp32"] = "auto"
    """auto: bf16 where the hardware has matrix units for it, else fp16 on CUDA, else fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile for training and validation. auto: where a compiler is found and the run is long enough to gain."""
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


# name → (what it is: model, data, tokens, FLOPs, time; the run). The first is the default.
PRESETS: dict[str, tuple[str, Run]] = {
    "gpt2-124m": (
        "GPT-2 124M on 10 B tokens of FineWeb-Edu: 8.6e18 FLOPs, published at 1.06 M tokens/s on 8 A100 (2.6 h)",
        Run(),
    ),
    "demo": (
        "1.1 M parameters on the Python standard library, 4.1 M tokens: 2.9e13 FLOPs, two minutes on two CPU cores",
        Run(
            model=Model(init="d6", vocab_size=2048, block_size=128, n_layer=4, n_head=4, n_embd=128),
            data=Data(shards="data/stdlib-2048", batch_tokens=2048, seed=1),
            optim=Optim(lr=5e-3),
            schedule=Schedule(steps=2000, warmup=100, final_fraction=0.0),
            log=Log(folder="runs/demo"),
            eval=Eval(every=250, tokens=65_536, sample_every=1000, samples=1, sample_tokens=96, prompt="def "),
            system=System(micro_batch=8, compile="auto"),
        ),
    ),
}


def to_json(run: Run) -> str:
    """The run as JSON, every leaf written out."""
    return json.dumps(dataclasses.asdict(run), indent=2) + "\n"


def from_json(text: str) -> Run:
    """What `to_json` wrote, as a Run. Raises TypeError or ValueError where it isn't one."""

    def build(kind: Any, values: dict[str, Any]) -> Any:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    parts = {f.name: f.default_factory for f in dataclasses.fields(Run)}
    return Run(**{name: build(parts[name], values) for name, values in json.loads(text).items()})
