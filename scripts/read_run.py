"""Print the folder of a run, for the scripts beside this file: `python scripts/read_run.py PRESET --flag value …`.

What the trainer refuses before it starts is refused here too, once and without torchrun.
"""

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpt2.config.checks import check, resolve
from gpt2.config.command_line import read_command_line
from gpt2.data.shards import find_shards
from gpt2.system.errors import UserError, run_command


def main() -> None:
    """Read the flags of train_gpt2.py. Raises UserError for mistakes, and for flags that forget earlier attempts."""
    with contextlib.redirect_stdout(sys.stderr):  # --help
        run = resolve(read_command_line())
    if run.log.overwrite or run.resume == "never":
        flag = "--log.overwrite" if run.log.overwrite else "--resume never"
        raise UserError(
            f"{flag} would train from step 0 after every restart; name another --log.folder, or delete {run.log.folder}"
        )
    if not Path(run.log.folder, "DONE").exists():
        check(run)
        find_shards(run.data.shards, "train", run.model.vocab_size)
        find_shards(run.data.val_shards or run.data.shards, "val", run.model.vocab_size)
    print(run.log.folder)


if __name__ == "__main__":
    sys.argv[0] = "train_gpt2.py"
    run_command(main)
