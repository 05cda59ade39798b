"""One process at a time in a workdir."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scope_jax.run.lock import NAME, locked

HOLDER = """
import sys, time
from scope_jax.run.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(workdir: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(workdir)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_holder_is_named_and_a_dead_one_does_not_count(tmp_path):
    process = holder(tmp_path / "run")
    try:
        with pytest.raises(ValueError) as error, locked(tmp_path / "run", patience=0.3):
            raise AssertionError("two processes have the lock")
        said = str(error.value)
        assert said.startswith(
            f"{tmp_path / 'run'}: process {process.pid} on {socket.gethostname()}, since 20"
        )
        assert said.endswith("works in it; wait for it, or use another workdir")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert str(process.pid) in (tmp_path / "run" / NAME).read_text()
    with locked(tmp_path / "run", patience=0):
        assert str(os.getpid()) in (tmp_path / "run" / NAME).read_text()
    assert not (tmp_path / "run" / NAME).exists()


def test_a_holder_that_is_about_to_end_is_waited_for(tmp_path):
    process = holder(tmp_path)
    begun = time.monotonic()
    subprocess.Popen(["sh", "-c", f"sleep 0.7; kill -9 {process.pid}"])
    with locked(tmp_path, patience=30):
        assert 0.5 < time.monotonic() - begun < 20
    process.wait()


def test_the_lock_is_let_go_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path):
        raise RuntimeError
    assert not (tmp_path / NAME).exists()
    with locked(tmp_path, patience=0):
        pass
