"""A model by name: `from_pretrained` opens every format that this project reads.

Built in notebooks 03 and 04.
"""

from pathlib import Path
from types import ModuleType

import tiktoken

from gpt2.data.tokenizer import GPT2_VOCAB, MIN_VOCAB, get_encoding, gpt2_merges
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
    reader, path = _reader_of(str(name), weights=True)
    return reader.read_model(path)


def pretrained_config(name: str | Path) -> GPTConfig:
    """The configuration of the model that `from_pretrained` would read; weights are not read. Raises UserError."""
    reader, path = _reader_of(str(name))
    return reader.read_config(path)


def encoding_of(name: str | Path) -> tiktoken.Encoding:
    """The encoding of the model that `from_pretrained` would read: GPT-2's, or the first merges of it.

    Raises UserError where there is no model, and for one that comes with another tokenizer.
    """
    reader, path = _reader_of(str(name))
    size = reader.read_config(path).vocab_size
    merges = huggingface.read_merges(path) if path.is_dir() else None
    if not MIN_VOCAB <= size <= GPT2_VOCAB or merges not in (None, gpt2_merges(size)):
        raise UserError(
            f"{name} has another tokenizer than GPT-2's, with {size:,} tokens; "
            f"give a model whose {MIN_VOCAB} to {GPT2_VOCAB:,} tokens are GPT-2's first"
        )
    return get_encoding(size)


def _reader_of(name: str, weights: bool = False) -> tuple[ModuleType, Path]:
    """The module that reads this model, and the path to read. From the hub it fetches weights only if asked to."""
    if name.endswith(".bin"):
        return llmc, Path(name)
    if Path(name).is_file():
        raise UserError(f"{name} is a file; give a run folder, a Hugging Face folder, or a .bin file of llm.c")
    if name == NOVELS.name and not (NOVELS / "model.safetensors").exists():
        raise UserError(
            f"the weights of {name} are not in this copy of the package; get them (git checkout -- gpt2/formats/novels)"
            ", train them (torchrun --standalone --nproc_per_node=2 train_gpt2.py novels), or name another model: gpt2"
        )
    if name == NOVELS.name:
        folder = NOVELS
    else:
        folder = Path(name) if Path(name).is_dir() else huggingface.download(name, weights)
    if (folder / "model" / "config.json").exists():  # a complete run
        return huggingface, folder / "model"
    if not (folder / "config.json").exists():
        raise UserError(f"{name} holds no model; give a run folder, or one that save_pretrained wrote")
    if (folder / "log.txt").exists():
        return checkpoint, folder
    return (gpt_oss if Path(name).is_dir() and gpt_oss.is_gpt_oss(folder) else huggingface), folder
