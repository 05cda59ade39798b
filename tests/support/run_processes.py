"""Programs by several processes on this machine, each with CPU devices of its own, as tests of
`scope_jax.devices.hosts` start them."""

import itertools
import os
import socket
import subprocess
import time
from pathlib import Path

from support.tiny_runs import ROOT, environment
from support.workers import NUMBER

_NEXT = itertools.count(os.getpid())  # so that two sessions hardly meet


def free_port() -> int:
    """A port that nobody listens at, and that no other worker of the tests is given: below those
    that the system hands out by itself, a thousand for each worker."""
    for number in itertools.islice(_NEXT, 1000):
        port = 20000 + 1000 * NUMBER + number % 1000
        with socket.socket() as sock:
            try:
                sock.bind(("localhost", port))
            except OSError:
                continue
        return port
    raise OSError(f"no free port among the thousand of worker {NUMBER}")


def start(
    arguments: list[str],
    folder: Path,
    processes: int,
    devices: int,
    more: dict[str, str] | None = None,
) -> list[subprocess.Popen]:
    """The same program `processes` times, with `devices` CPU devices each; what they print goes to
    `folder`/said_<number>."""
    address = f"localhost:{free_port()}"
    folder.mkdir(parents=True, exist_ok=True)
    running = []
    for number in range(processes):
        where = [f"--distributed={address}/{processes}/{number}"] if processes > 1 else []
        with open(folder / f"said_{number}", "w") as file:
            running.append(
                subprocess.Popen(
                    [*arguments, *where],
                    env=environment(folder, devices) | (more or {}),
                    cwd=ROOT,
                    stdout=file,
                    stderr=file,
                )
            )
    return running


def wait(
    running: list[subprocess.Popen], folder: Path, seconds: float
) -> tuple[list[int], list[str]]:
    """(exit codes, what each process said) when all have ended; none is left behind, whatever
    happens."""
    end = time.monotonic() + seconds
    try:
        codes = [process.wait(max(end - time.monotonic(), 0.1)) for process in running]
    finally:
        for process in running:
            process.kill()
    return codes, [(folder / f"said_{number}").read_text() for number in range(len(running))]
