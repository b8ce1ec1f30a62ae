"""What a user's mistake looks like: one sentence, the offending value, how to mend it, exit status 2.

Holds:    `UserError` and the wrapper of every command-line entry point.
Imports:  the standard library.
"""

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake that the user can mend. The message names the value and the command or flag that mends it."""


def run_command(main: Callable[[], None]) -> None:
    """Run `main`; a UserError becomes one line on stderr and exit status 2, Ctrl-C exit status 130.

    Under torchrun every process meets the same mistake, so only the first of each machine says it.
    """
    try:
        main()
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
