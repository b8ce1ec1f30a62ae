"""Users' mistakes: one sentence with the offending value and its remedy, and exit status 2."""

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake that the user can mend. The message names the value, and the command or flag that mends it.

    `everywhere`: every process of a run meets this mistake, so the first process alone reports it.
    """

    def __init__(self, message: str, everywhere: bool = True):
        super().__init__(message)
        self.everywhere = everywhere


def is_first_on_machine() -> bool:
    """Whether this process, the one of local rank 0, prints the messages that all processes of this machine share."""
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
        sys.exit(141)  # the status of a shell command that SIGPIPE ended


def discard_stdout() -> None:
    """Drop all further output to stdout, because the other end of the pipe, or the terminal, is closed.

    Otherwise Python flushes stdout once more when it exits, and reports that the flush failed.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
