"""A model by name: `from_pretrained` opens every format that this project reads.

Built in notebooks 03 and 04.
"""

from pathlib import Path

from gpt2.formats import checkpoint, huggingface, llmc
from gpt2.formats.build import OPENAI
from gpt2.model import GPT, GPTConfig
from gpt2.modern.model import Modern
from gpt2.system.errors import UserError


def is_pretrained(name: str) -> bool:
    """Whether a name stands for weights (a folder, a .bin file, the hub), not for random ones of a size (`d12`)."""
    return name in OPENAI or "/" in name or Path(name).exists()


def from_pretrained(name: str | Path) -> GPT | Modern:
    """The model of a run folder, a Hugging Face folder, a .bin file of llm.c, or the hub (`gpt2`, `owner/name`).

    A run that has not ended has its weights in checkpoints; the newest intact one is read. Raises UserError where
    there is no model, or one of another architecture.
    """
    if str(name).endswith(".bin"):
        return llmc.read_model(Path(name))
    folder = _model_folder(str(name))
    return checkpoint.read_model(folder) if _is_unfinished_run(folder) else huggingface.read_model(folder)


def pretrained_config(name: str | Path) -> GPTConfig:
    """The configuration of the model that `from_pretrained` would read; weights are not read. Raises UserError."""
    if str(name).endswith(".bin"):
        return llmc.read_config(Path(name))
    folder = _model_folder(str(name))
    return from_pretrained(name).config if _is_unfinished_run(folder) else huggingface.read_config(folder)


def _model_folder(name: str) -> Path:
    if not Path(name).is_dir():
        return huggingface.download(name)
    folder = Path(name, "model") if Path(name, "model", "config.json").exists() else Path(name)
    if not (folder / "config.json").exists():
        raise UserError(f"{name} holds no model; give a run folder, or one that save_pretrained wrote")
    return folder


def _is_unfinished_run(folder: Path) -> bool:
    return (folder / "log.txt").exists()
