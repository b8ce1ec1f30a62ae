"""The command line of `train_gpt2.py`: a preset, and flags that override any of its settings."""

import sys
from collections.abc import Sequence

import tyro

from gpt2.config.presets import PRESETS
from gpt2.config.run import Run
from gpt2.system.errors import is_first_on_machine


def read_command_line(words: Sequence[str] | None = None, description: str | None = None) -> Run:
    """The preset that `words` (default: those of this process) name, by default the first, with their flags applied.

    Prints the help and exits where it is asked for; exits with status 2 for a preset or a flag that does not exist.
    """
    words = list(sys.argv[1:] if words is None else words)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words = [next(iter(PRESETS)), *words]
    return tyro.extras.overridable_config_cli(
        PRESETS, args=words, description=description, console_outputs=is_first_on_machine()
    )
