"""A model by name: `from_pretrained` opens every format that this project reads.

Built in notebooks 03 and 04.
"""

from pathlib import Path
from types import ModuleType

from gpt2.formats import checkpoint, gpt_oss, huggingface, llmc
from gpt2.formats.build import OPENAI
from gpt2.model import GPT, GPTConfig
from gpt2.modern.model import Modern
from gpt2.system.errors import UserError

NOVELS = Path(__file__).parent / "novels"  # trained by the preset of this name; the folder says how


def is_pretrained(name: str) -> bool:
    """Whether a name stands for weights (a folder, a .bin file, the hub), not for random ones of a size (`d12`)."""
    return name in (*OPENAI, NOVELS.name) or "/" in name or Path(name).exists()


def from_pretrained(name: str | Path) -> GPT | Modern:
    """The model of a run folder, a Hugging Face folder (of GPT-2 or gpt-oss), a .bin file of llm.c, or the hub.

    On the hub it is a GPT-2: `gpt2`, `owner/name`. `novels` is the one that comes with this package. The weights of an
    unfinished run are those of its newest intact checkpoint. Raises UserError where there is no model, or one of
    another architecture.
    """
    reader, path = _reader_of(str(name))
    return reader.read_model(path)


def pretrained_config(name: str | Path) -> GPTConfig:
    """The configuration of the model that `from_pretrained` would read; weights are not read. Raises UserError."""
    reader, path = _reader_of(str(name))
    return reader.read_config(path)


def _reader_of(name: str) -> tuple[ModuleType, Path]:
    """The module that reads this model, and the path to read."""
    if name.endswith(".bin"):
        return llmc, Path(name)
    if name == NOVELS.name and not (NOVELS / "model.safetensors").exists():
        raise UserError(
            f"the weights of {name} are not in this copy of the package; get them (git checkout -- gpt2/formats/novels)"
            ", train them (torchrun --standalone --nproc_per_node=2 train_gpt2.py novels), or name another model: gpt2"
        )
    folder = NOVELS if name == NOVELS.name else Path(name) if Path(name).is_dir() else huggingface.download(name)
    if (folder / "model" / "config.json").exists():  # a complete run
        return huggingface, folder / "model"
    if not (folder / "config.json").exists():
        raise UserError(f"{name} holds no model; give a run folder, or one that save_pretrained wrote")
    if (folder / "log.txt").exists():
        return checkpoint, folder
    return (gpt_oss if Path(name).is_dir() and gpt_oss.is_gpt_oss(folder) else huggingface), folder
