"""Programs on several simulated devices, and on several processes of this machine."""

import os
import pathlib
import socket
import subprocess
import sys

_HOST = """
import os, sys
import jax
jax.distributed.initialize(*sys.argv[1:2], int(sys.argv[2]), int(sys.argv[3]))
"""


def environment(num_devices: int = 1) -> dict[str, str]:
    """Returns that of a process with so many devices."""
    count = f"--xla_force_host_platform_device_count={num_devices}"
    tests = pathlib.Path(__file__).parent
    path = os.pathsep.join(map(str, (tests, tests.parent)))
    own = {"XLA_FLAGS": count, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    return os.environ | own


def free_address() -> str:
    """Returns an address on the loopback that nobody listens to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def on_devices(code: str, *arguments: str, count: int = 8) -> str:
    """Runs a program on so many devices; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=environment(count),
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def on_hosts(code: str, *arguments: str, count: int = 2) -> list[str]:
    """Runs a program as so many processes; returns what each of them prints.

    Its arguments are from `sys.argv[4]` on.
    """
    address, program = free_address(), (sys.executable, "-c", _HOST + code)
    hosts = [
        subprocess.Popen(
            [*program, address, str(count), str(i), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for i in range(count)
    ]
    try:
        found = [host.communicate(timeout=900) for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    for host, (_, error) in zip(hosts, found, strict=True):
        assert host.returncode == 0, error[-3000:]
    # Gloo, which carries what hosts tell one another, greets on stdout.
    return [
        "\n".join(line for line in told.splitlines() if "[Gloo]" not in line)
        for told, _ in found
    ]
