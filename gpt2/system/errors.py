"""Users' mistakes: one sentence with the offending value and how to mend it, and exit status 2."""

import os
import sys
from collections.abc import Callable

CLOSED_PIPE = 141  # the status of a shell command that SIGPIPE ended


class UserError(Exception):
    """A mistake that the user can mend. The message names the value, and the command or flag that mends it.

    `everywhere`: every process of a run meets this mistake, so the first process alone reports it.
    """

    def __init__(self, message: str, everywhere: bool = True):
        super().__init__(message)
        self.everywhere = everywhere


def is_first_on_machine() -> bool:
    """Whether this process prints what all processes of this machine have to say: under torchrun, local rank 0."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def run_command(main: Callable[[], None]) -> None:
    """Run `main`. A UserError becomes one line on stderr and exit status 2, Ctrl-C status 130, a closed pipe 141."""
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        if is_first_on_machine() or not error.everywhere:
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        discard_stdout()
        sys.exit(CLOSED_PIPE)


def discard_stdout() -> None:
    """Drop what is printed from now on, since no one can read it: a pipe's other end, or the terminal, is closed.

    Without this, Python flushes stdout once more at its exit, and reports that this fails.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
