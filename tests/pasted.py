"""What a command of the pages runs, written out by a shell in which nothing runs."""

import functools
import shutil
import subprocess

_STUBS = 'python() { shift; printf "%s\\n" "$*"; }; chromium() { :; }; '


@functools.cache
def lines(command: str) -> list[str]:
    """Returns modules with their arguments, in order; loops are gone through.

    Args:
      command: of the shell. Of programs it may name python (-m) and chromium; of
        others, such as scripts, nothing is returned.
    """
    if not command.startswith(("python -m ", "for ")):
        return []
    done = subprocess.run(
        [shutil.which("bash") or "bash", "-euc", _STUBS + command],
        capture_output=True,
        text=True,
        check=True,
        # No program is found but those above.
        env={"PATH": ""},
    )
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()
