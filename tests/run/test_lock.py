"""One process at a time in a workdir."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scope_jax.run.lock import NAME, locked, refuse_busy

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


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (b"[" * 5000, "another process works"),
        (b"[1]", "another process works"),
        (b'{"process": 1, "host": ["x"], "since": "now"}', "another process works"),
        (b"\xff\xfe", "another process works"),
        (
            b'{"process": 1, "host": "a\\n\\nb\\u2028\\u001b[31m", "since": "now"}',
            "process 1 on a b ?[31m, since now, works",
        ),
    ],
)
def test_whatever_the_lock_file_says_the_refusal_is_one_line(tmp_path, said, shown):
    with locked(tmp_path):
        (tmp_path / NAME).write_bytes(said)
        with pytest.raises(ValueError) as error, locked(tmp_path, patience=0):
            raise AssertionError("two have the lock")
    assert shown in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "make",
    [
        os.mkdir,
        os.mkfifo,
        lambda path: os.symlink(path, path),
        lambda path: os.symlink("nowhere", path),
    ],
    ids=["folder", "fifo", "loop", "nowhere"],
)
def test_a_lock_that_is_no_file_is_named(tmp_path, make):
    make(tmp_path / NAME)
    with (
        pytest.raises(ValueError, match=r"\.lock: not a file.*remove it"),
        locked(tmp_path, patience=0),
    ):
        raise AssertionError("nothing was locked")


def test_a_busy_folder_is_refused_before_models_are_read(tmp_path):
    refuse_busy(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    process = holder(tmp_path / "run")
    try:
        with pytest.raises(ValueError, match=f"process {process.pid} on .* works in it"):
            refuse_busy(tmp_path / "run", patience=0.3)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    refuse_busy(tmp_path / "run", patience=0)
    with locked(tmp_path / "run", patience=0):
        pass
