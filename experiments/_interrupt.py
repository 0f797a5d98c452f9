"""What an interrupt does while a binary is imported, which takes seconds."""

import os
import signal
import sys


def interrupted(*_: object) -> None:
    """Ends the process: nothing is to be kept yet."""
    sys.stderr.write("error: interrupted.\n")
    os._exit(130)


if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # `python -m experiments.NAME`. An exception could end in one of JAX's callbacks,
    # unseen.
    signal.signal(signal.SIGINT, interrupted)
