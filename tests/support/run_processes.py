"""Programs by several processes on this machine, each with CPU devices of its own, as tests of
`scope_jax.devices.hosts` start them."""

import socket
import subprocess
import time
from pathlib import Path

from support.tiny_runs import ROOT, environment
from support.workers import COUNT, NUMBER


def free_port() -> int:
    """A port that nobody listens at, and that no other worker of the tests is given."""
    while True:
        with socket.socket() as sock:
            sock.bind(("localhost", 0))
            port = sock.getsockname()[1]
        if port % COUNT == NUMBER % COUNT:
            return port


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
