"""Several processes as one run: how they meet, what they agree on, how they end.

Each process is called a host, whichever machine it is on. All run the same program on
the same arguments; the first alone writes.
"""

import contextlib
import os
import pathlib
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ntk_privacy import sharding

__all__ = [
    "agreed",
    "all_fail_together",
    "fail",
    "is_first",
    "join",
    "leave",
    "of_first",
    "path_of_first",
    "throws_away",
    "tree_on_host",
]

_LONGEST = 1000  # bytes of a message
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_DONE = b"done"  # as long as the number of a host
# What collectives say where another process is gone, and seconds to learn which.
_OF_OTHERS = (
    "Gloo",
    "NCCL",
    "RCCL",
    "coordination service",
    "heartbeat",
    "UNAVAILABLE",
)
_PATIENCE = 30.0
# Seconds that an error of the first host's own has to be told, not another's end;
# that hosts have to meet, and one has to say who it is.
_GRACE, _MEETING, _GREETING = 2.0, 120.0, 10.0
# Lines to the other hosts, of the first one; to the first, of all others.
_LINES: list[socket.socket] = []
_ENDING = threading.Lock()
_THROWN_AWAY: list[pathlib.Path] = []


def is_first() -> bool:
    """Whether this process is the one that writes.

    Example:
      >>> from ntk_privacy import hosts
      >>> hosts.is_first()  # a process by itself is
      True
    """
    return jax.process_index() == 0


@contextlib.contextmanager
def all_fail_together() -> Iterator[None]:
    """What fails here on one host fails on all: none waits for it for ever.

    Raises:
      ValueError: another host failed; what fails on this one is raised as it is.

    Example:
      >>> from ntk_privacy import hosts
      >>> with hosts.all_fail_together():
      ...     raise ValueError("the folder is another one here")
      Traceback (most recent call last):
      ValueError: the folder is another one here
    """
    error = None
    try:
        yield
    except Exception as caught:
        error = caught
    if jax.process_count() > 1:
        text = b"" if error is None else str(error).encode()[:_LONGEST] or b"?"
        codes = np.zeros(_LONGEST, np.int32)
        codes[: len(text)] = list(text)
        told = np.asarray(multihost_utils.process_allgather(codes))
        failed = np.flatnonzero(told.any(axis=1))
        if error is None and len(failed):
            text = bytes(told[failed[0]].astype(np.uint8)).rstrip(b"\0")
            raise ValueError(
                f"Host {failed[0]} stopped: {text.decode(errors='replace')}"
            )
    if error is not None:
        raise error


def of_first(x: np.ndarray) -> np.ndarray:
    """Returns what the first host has; waits for it.

    Args:
      x: integers of at most 32 bits, of the same shape on every host.

    Example:
      >>> import numpy as np
      >>> from ntk_privacy import hosts
      >>> hosts.of_first(np.asarray([3, 1]))
      array([3, 1])
    """
    if jax.process_count() == 1:
        return np.array(x)
    # Numbers of a wider type would need x64.
    small = np.asarray(x, np.int32)
    return np.asarray(multihost_utils.broadcast_one_to_all(small))


def path_of_first(path: pathlib.Path) -> pathlib.Path:
    """Returns the path that the first host has.

    Args:
      path: this host's own.

    Raises:
      ValueError: it is longer than 1,000 bytes.

    Example:
      >>> import pathlib
      >>> from ntk_privacy import hosts
      >>> hosts.path_of_first(pathlib.Path("runs/kernel.npy")).name
      'kernel.npy'
    """
    if jax.process_count() == 1:
        return path
    text = str(path.absolute()).encode()
    with all_fail_together():
        if len(text) > _LONGEST:
            raise ValueError(
                f"{path} has {len(text)} bytes: give a path of at most {_LONGEST}."
            )
    codes = of_first(np.frombuffer(text.ljust(_LONGEST, b"\0"), np.uint8))
    return pathlib.Path(bytes(codes.astype(np.uint8)).rstrip(b"\0").decode())


def agreed(answer: bool) -> bool:
    """Returns what the first host answers: clocks differ, and all must stop at once.

    Args:
      answer: this host's own.

    Example:
      >>> import time
      >>> from ntk_privacy import hosts
      >>> end = time.monotonic() + 60
      >>> hosts.agreed(time.monotonic() >= end)
      False
    """
    return answer if jax.process_count() == 1 else bool(of_first(np.asarray(answer)))


def tree_on_host(tree: Any) -> Any:
    """Returns arrays of NumPy, whole, where there are several hosts.

    Args:
      tree: pytree of arrays, which hosts may share; all hosts have to ask.

    Example:
      >>> import jax.numpy as jnp
      >>> from ntk_privacy import hosts
      >>> hosts.tree_on_host({"images": jnp.ones((2, 8, 8, 1))})["images"].shape
      (2, 8, 8, 1)
    """
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(
        lambda leaf: sharding.on_host(leaf) if isinstance(leaf, jax.Array) else leaf,
        tree,
    )


def join() -> None:
    """Meets the other hosts, before JAX computes anything.

    Every host sets JAX_COORDINATOR_ADDRESS (the first one's, host:port),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID, from 0; where none is set, JAX asks the
    cluster, such as Slurm. From then on a host that ends before `leave` ends the others
    with a sentence.

    Raises:
      ValueError: some variables are not set or no numbers, or there is no cluster.

    Example:
      A run of one host, which needs a process that has not computed anything:

      >>> import os, socket, subprocess, sys
      >>> with socket.create_server(("127.0.0.1", 0)) as free:
      ...     port = free.getsockname()[1]
      >>> of_host_0 = {
      ...     "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
      ...     "JAX_NUM_PROCESSES": "1",
      ...     "JAX_PROCESS_ID": "0",
      ... }
      >>> program = (
      ...     "import jax; from ntk_privacy import hosts; hosts.join(); "
      ...     "print(hosts.is_first(), jax.process_count()); hosts.leave()"
      ... )
      >>> subprocess.check_output(
      ...     [sys.executable, "-c", program], env=os.environ | of_host_0, text=True
      ... ).split()
      ['True', '1']
    """
    found = {name: os.environ.get(name) for name in _VARIABLES}
    missing = [name for name, value in found.items() if not value]
    told = f"set {', '.join(_VARIABLES)} for every process"
    if missing and len(missing) < len(found):
        raise ValueError(f"distributed: {' and '.join(missing)} is not set: {told}.")
    address = found[_VARIABLES[0]]
    for name in _VARIABLES[1:] if address else ():
        if not str(found[name]).isdecimal():
            raise ValueError(f"{name}={found[name]} is no whole number from 0.")
    with contextlib.suppress(AttributeError):  # versions without it
        # Else SIGTERM is only noted, for a checkpoint that nobody asks JAX for.
        jax.config.update("jax_enable_preemption_service", False)
    try:
        count, own = (int(found[v] or 0) if address else None for v in _VARIABLES[1:])
        jax.distributed.initialize(address, count, own)
    except (ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"distributed: {first} ({told})") from error
    if jax.process_count() > 1:
        _open_lines((address or "").rpartition(":")[0].strip("[]"))


def _open_lines(name: str) -> None:
    """Connects every host with the first one, for each to notice the other's end."""
    token, first = secrets.token_bytes(16), is_first()
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(_server()) if first else None
        port = 0 if listening is None else listening.getsockname()[1]
        # No name is known where the cluster was asked.
        text = (name or socket.gethostname()).encode().ljust(256)
        numbers = of_first(np.asarray([port, *token, *text]))
        token, text = (bytes(a.astype(np.uint8)) for a in np.split(numbers[1:], [16]))
        try:
            if listening is None:
                place = text.decode().strip(), int(numbers[0])
                line = socket.create_connection(place, timeout=_MEETING)
                line.sendall(token + jax.process_index().to_bytes(4, "big"))
                _watch(line, 0)
                return
            listening.settimeout(_MEETING)
            while len(_LINES) < jax.process_count() - 1:
                line, _ = listening.accept()
                said = _greeting(line)
                if said[:16] == token:
                    _watch(line, int.from_bytes(said[16:], "big"))
                else:  # others have no business here
                    line.close()
        except OSError as error:
            raise ValueError(
                f"distributed: hosts do not reach each other ({error}): the first one "
                "must be reachable by the name in JAX_COORDINATOR_ADDRESS, or by its "
                "own, at any port."
            ) from error


def _server() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", 0), family=socket.AF_INET6, dualstack_ipv6=True
        )
    return socket.create_server(("", 0))


def _greeting(line: socket.socket) -> bytes:
    line.settimeout(_GREETING)
    try:
        return line.recv(20, socket.MSG_WAITALL)
    except OSError:
        return b""


def _watch(line: socket.socket, host: int) -> None:
    # A machine that is gone closes nothing.
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"):
        if hasattr(socket, option):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), 5)
    line.settimeout(None)
    _LINES.append(line)

    def wait() -> None:
        try:
            said = line.recv(4, socket.MSG_WAITALL)
        except OSError:
            said = b""
        if said == _DONE:
            return
        lost = said if len(said) == 4 else host.to_bytes(4, "big")
        if is_first():
            for other in _LINES:
                with contextlib.suppress(OSError):
                    other.sendall(lost)
            # The cause may be this host's too, and its own sentence, which people
            # read here, says more. Without the first host JAX aborts the others.
            time.sleep(_GRACE)
        told = f"host {int.from_bytes(lost, 'big')} ended before the run did"
        _end(f"error: {told}: start all hosts again.", 1)

    threading.Thread(target=wait, daemon=True).start()


def leave() -> None:
    """Tells the other hosts that this one has done its part.

    Example:
      >>> from ntk_privacy import hosts
      >>> hosts.leave()  # alone: nobody to tell
    """
    for line in _LINES:
        with contextlib.suppress(OSError):  # the others have left already
            line.sendall(_DONE)


def fail(message: str, code: int) -> None:
    """Ends this process where it is one of several, and so the others.

    Args:
      message: for stderr, unless the end of another host is why.
      code: of the process.

    Example:
      >>> from ntk_privacy import hosts
      >>> hosts.fail("error: the disk is full.", 1)  # alone: told by who called
    """
    if not _LINES:
        return
    if any(word in message for word in _OF_OTHERS):
        time.sleep(_PATIENCE)  # who waits at a line will say it better
    _end(message, code)


def throws_away(folder: pathlib.Path) -> None:
    """Removes a folder when this process is ended by another host's end, too.

    Args:
      folder: that nobody has a use for after this process.

    Example:
      >>> import pathlib, tempfile
      >>> from ntk_privacy import hosts
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     hosts.throws_away(pathlib.Path(folder))
      ...     # What `folder` holds is removed here, or by another host's end.
    """
    _THROWN_AWAY.append(folder)


def _end(message: str, code: int) -> None:
    # JAX would wait for the others at the end, and they for this one; and without the
    # first host it aborts soon, and says much.
    with _ENDING:
        with contextlib.suppress(Exception):
            told, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            sys.stdout.flush()
            os.write(told, f"{message}\n".encode())
        with contextlib.suppress(Exception):
            if _THROWN_AWAY:
                remove = (
                    "import shutil, sys; [shutil.rmtree(p, 1) for p in sys.argv[1:]]"
                )
                subprocess.Popen(
                    [sys.executable, "-c", remove, *map(str, _THROWN_AWAY)],
                    start_new_session=True,
                )
        os._exit(code)
