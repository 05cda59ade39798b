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
from support.tiny_runs import environment

from scope_jax import cli
from scope_jax.run import Checkpoints, NoRoom
from scope_jax.run.checkpoints import StorageError


@pytest.fixture(autouse=True)
def not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process may have had a run in it."""
    monkeypatch.setattr(cli, "_begun", False)


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


def test_bad_input_and_a_run_that_gave_up_are_final():
    assert [cli.exit_code(error) for error in (*FINAL, *INPUT)] == [2] * 5
    assert [cli.exit_code(error) for error in PASSING] == [1] * len(PASSING)


def test_once_the_loop_has_begun_no_file_is_bad_input():
    cli.begun()
    assert [cli.exit_code(error) for error in FINAL] == [2] * 3
    assert [cli.exit_code(error) for error in (*INPUT, *PASSING)] == [1] * (2 + len(PASSING))


def test_what_the_devices_say_is_a_crash():
    gloo = "UNKNOWN: Gloo AllGather failed: Connection closed by peer [127.0.0.1]:1"
    assert all(
        map(
            cli.is_crash,
            (ValueError(gloo), jax.errors.JaxRuntimeError(gloo), KeyError("x"), TypeError("x")),
        )
    )
    assert not any(
        map(
            cli.is_crash,
            (*FINAL, *INPUT, StorageError("x"), NoRoom("x"), caused(Exception("x"), PASSING[1])),
        )
    )


PROGRAM = """
import shutil, sys
from pathlib import Path
import jax.numpy as jnp
from scope_jax import cli
from scope_jax.run import Checkpoints

def entry(config, workdir, _):
    folder = Path(workdir) / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, {"w": jnp.arange(9.0)}, {})
        checkpoints.wait()
        shutil.rmtree(folder)
        folder.write_text("in the way")
        checkpoints.save(2, {"w": jnp.arange(9.0)}, {})

cli.run(entry)
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
        checkpoints._one_line(),
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
