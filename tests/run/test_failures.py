"""The exit code of a program that an error ends: 2 where the same command ends in the same way, 1
where another try may help."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tensorstore
from support.tiny_runs import ROOT, environment

from scope_jax.devices import watch
from scope_jax.run import STOPPED, Checkpoints, NoRoom, Stopped, StorageError, failures


@pytest.fixture(autouse=True)
def not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process may have had a run in it."""
    monkeypatch.setattr(failures, "_begun", False)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


PASSING = [
    NoRoom("runs/one"),
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    StorageError("gs://bucket/run: a checkpoint could not be read"),
    OSError(errno.EIO, os.strerror(errno.EIO)),
    OSError(errno.ESTALE, os.strerror(errno.ESTALE)),
    TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)),
    ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)),
    ValueError("UNAVAILABLE: CURL error Couldn't resolve host name"),
    ValueError("FAILED_PRECONDITION: Failed to write [os_error_code='5']"),
    caused(ValueError("--distributed=auto: no cluster found"), TimeoutError()),
]
FINAL = [
    ValueError("config.steps = 0 must be at least 1"),
    RuntimeError("step 7: 5 updates in a row were not finite and were skipped"),
    ValueError("runs/one/checkpoints: no checkpoint can be read (3: ValueError: DATA_LOSS: ...)"),
]
INPUT = [
    FileNotFoundError("nowhere: no such model directory"),
    PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
]


def codes(*errors: Exception) -> list[int]:
    return [failures.ending(error)[1] for error in errors]


def test_bad_input_and_a_run_that_gave_up_are_final():
    assert codes(*FINAL, *INPUT) == [2] * 5
    assert codes(*PASSING) == [1] * len(PASSING)


def test_once_the_loop_has_begun_no_file_is_bad_input():
    failures.begun()
    assert codes(*FINAL) == [2] * 3
    assert codes(*INPUT, *PASSING) == [1] * (2 + len(PASSING))


def test_what_the_devices_say_is_a_crash():
    gloo = "UNKNOWN: Gloo AllGather failed: Connection closed by peer [127.0.0.1]:1"
    crashes = (ValueError(gloo), jax.errors.JaxRuntimeError(gloo), KeyError("x"), TypeError("x"))
    assert [failures.ending(error) for error in crashes] == [(None, 1)] * 4
    others = (*FINAL, *INPUT, StorageError("x"), NoRoom("x"), caused(Exception("x"), PASSING[1]))
    assert all((failures.ending(error)[0] or "").startswith("error: ") for error in others)


def test_each_ending_is_one_line():
    assert failures.ending(Stopped("run: told\nto stop")) == ("stopped: run: told to stop", STOPPED)
    full = (
        "error: runs/one: no room to write (disk or quota is full); earlier checkpoints are intact"
    )
    assert failures.ending(caused(ValueError("Orbax"), PASSING[1]), "runs/one") == (
        f"{full}: make room and start the same command again",
        1,
    )
    assert failures.ending(NoRoom("gs://b"), "runs/one")[0].startswith("error: gs://b: no room")


def test_the_documentation_shows_the_table_of_exit_codes():
    text = (ROOT / "docs" / "resuming.md").read_text()
    assert all(f"| {code} | {what} |\n" in text for code, what in failures.EXIT_CODES.items())
    assert {STOPPED, watch.LOST} <= {int(c) for c in failures.EXIT_CODES if c.isdecimal()}


def test_a_sweep_records_a_run_that_would_fail_again_and_no_other():
    memory = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")
    assert not any(map(failures.says_nothing_of_the_run, (*FINAL, INPUT[0], memory)))
    device = jax.errors.JaxRuntimeError("INTERNAL: a chip failed")
    assert all(map(failures.says_nothing_of_the_run, (*PASSING, INPUT[1], device)))


PROGRAM = """
import shutil, sys
from pathlib import Path
import jax.numpy as jnp
from scope_jax import cli
from scope_jax.configuration import TrainConfig
from scope_jax.run import Checkpoints

def entry(config, workdir, _):
    folder = Path(workdir) / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, {"w": jnp.arange(9.0)}, {})
        checkpoints.wait()
        shutil.rmtree(folder)
        folder.write_text("in the way")
        checkpoints.save(2, {"w": jnp.arange(9.0)}, {})

cli.run(entry, TrainConfig, file="run.py")
"""


def test_storage_that_fails_is_one_line_and_exit_code_1(tmp_path: Path):
    config = tmp_path / "config.py"
    config.write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict()\n"
    )
    arguments = [
        sys.executable,
        "-c",
        PROGRAM,
        f"--config={config}",
        f"--workdir={tmp_path / 'run'}",
    ]
    done = subprocess.run(
        arguments,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr[-3000:]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        f"error: {tmp_path / 'run' / 'checkpoints'}: a checkpoint could not be written: "
    )
    assert "Traceback" not in done.stderr


def test_what_tensorstore_says_of_a_failed_write_is_a_storage_error(tmp_path: Path):
    (tmp_path / "file").touch()
    place = tensorstore.KvStore.open({"driver": "file", "path": f"{tmp_path / 'file'}/"}).result()
    with (
        Checkpoints(tmp_path / "c") as checkpoints,
        pytest.raises(
            StorageError,
            match=r"c: a checkpoint could not be written: ValueError: FAILED_PRECONDITION: ",
        ),
        checkpoints._writing(),
    ):
        place.write("x", b"1").result()


@pytest.mark.parametrize(
    "error",
    [TimeoutError("timed out"), OSError(errno.EIO, os.strerror(errno.EIO)), PermissionError("403")],
)
def test_a_storage_that_does_not_answer_is_no_damage(tmp_path: Path, error: Exception):
    """Neither is an older checkpoint taken, nor is the newest one deleted."""
    state = {"w": jnp.arange(9.0)}
    with Checkpoints(tmp_path / "c") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state, {})
    with Checkpoints(tmp_path / "c") as checkpoints:
        own = checkpoints._read_state

        def read(step, like):
            if step == 2:
                raise error
            return own(step, like)

        checkpoints._read_state = read  # type: ignore[method-assign]
        with pytest.raises(StorageError, match=r"c: a checkpoint could not be read: "):
            checkpoints.restore(state)
        assert checkpoints.steps() == [1, 2]
        shutil.rmtree(tmp_path / "c" / "2" / "state")
        checkpoints._read_state = own  # type: ignore[method-assign]
        assert checkpoints.restore(state)[0] == 1 and checkpoints.steps() == [1]  # that is damage
