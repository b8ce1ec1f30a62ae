"""What a user's mistake looks like: one sentence, the offending value, how to mend it, exit status 2.

Holds:    `UserError`, `speaks`, and the wrapper of every command-line entry point.
Imports:  the standard library.
"""

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake that the user can mend. The message names the value and the command or flag that mends it.

    `everywhere`: every process of a run meets it, so one of them is enough to say it.
    """

    def __init__(self, message: str, everywhere: bool = True):
        super().__init__(message)
        self.everywhere = everywhere


def speaks() -> bool:
    """Whether this process says what all processes of this machine have to say: under torchrun, the first."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def run_command(main: Callable[[], None]) -> None:
    """Run `main`; a UserError becomes one line on stderr and exit status 2, Ctrl-C exit status 130."""
    try:
        main()
    except UserError as error:
        if speaks() or not error.everywhere:
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
