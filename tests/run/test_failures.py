"""How a program ends: exit code 2 where the same command ends in the same way, 1 where another try
may help; and what a storage raised, as one clear error."""

import asyncio
import errno
import gc
import logging as python_logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
import tensorstore
from support.tiny_runs import ROOT, environment

from scope_jax.devices import watch
from scope_jax.run import STOPPED, Checkpoints, NoRoom, Stopped, StorageError, failures


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


# ---- kinds of errors

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def raised_from(outer: Exception, cause: Exception) -> Exception:
    """`outer` as it is caught where `cause` was being handled."""
    try:
        try:
            raise cause
        except Exception:
            raise outer  # noqa: B904  Its context is what is looked at.
    except Exception as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        OSError(errno.EDQUOT, "quota"),
        OSError(errno.EFBIG, "limit"),
        NoRoom("x"),
        ValueError(f"Orbax: {os.strerror(errno.ENOSPC)} [source]"),  # only the system's words
        caused(ValueError("x"), FULL),
        raised_from(RuntimeError("x"), caused(ValueError("y"), FULL)),
    ],
)
def test_a_full_disk_is_known_by_its_number_or_its_words_wherever_it_stands(error):
    assert failures.is_full(error)


def test_other_errors_are_no_full_disk():
    assert not any(map(failures.is_full, (None, OSError(errno.EIO, "x"), *FINAL, *INPUT)))


def test_errors_that_lead_to_each_other_are_looked_at_once():
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert not failures.is_full(one) and not failures.is_passing(other)


class OfAnotherModule(Exception):
    """As a client of a bucket raises it."""


@pytest.mark.parametrize(
    ("module", "passing"), [("google.auth.transport", True), ("google.authors", False)]
)
def test_clients_of_buckets_are_known_by_their_modules(module, passing, monkeypatch):
    monkeypatch.setattr(OfAnotherModule, "__module__", module)
    assert failures.is_passing(OfAnotherModule("x")) is passing
    assert failures.is_passing(caused(KeyError("x"), OfAnotherModule("x"))) is passing


def test_words_of_a_storage_must_stand_at_a_boundary():
    words = "DEADLINE_EXCEEDED: the bucket did not answer"
    assert failures.is_passing(ValueError(words))
    assert not failures.is_passing(ValueError(f"x{words}"))
    for number, passing in ((errno.ESTALE, True), (errno.ENOENT, False)):
        assert failures.is_passing(ValueError(f"[os_error_code='{number}']")) is passing


# ---- what a storage raises


def test_what_a_storage_raises_becomes_one_clear_error():
    cause = ValueError("\n  NOT_FOUND: no such key  \nsource: a.cc")
    with pytest.raises(StorageError) as caught, failures.storage("runs/one", "not read"):
        raise cause
    assert str(caught.value) == "runs/one: not read: ValueError: NOT_FOUND: no such key"
    assert caught.value.__cause__ is cause
    with pytest.raises(NoRoom, match="runs/one: no room"), failures.storage("runs/one", "x"):
        raise FULL


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("INTERNAL: a chip failed"),
        TypeError("x"),
        AssertionError("x"),
        ValueError("UNKNOWN: Gloo AllGather failed"),
    ],
)
def test_devices_and_mistakes_are_not_blamed_on_the_storage(error):
    with pytest.raises(type(error)) as caught, failures.storage("runs/one", "not read"):
        raise error
    assert caught.value is error


def test_what_was_asked_for_in_vain_may_stay_what_it_is():
    """Only a storage that does not answer is one, where that is said."""
    wrong, silent = PermissionError(errno.EACCES, "no"), OSError(errno.EIO, "x")
    for error, kind in ((wrong, PermissionError), (silent, StorageError), (FULL, NoRoom)):
        with pytest.raises(kind), failures.storage("a", "b", only_passing=True):
            raise error
    with pytest.raises(StorageError), failures.storage("a", "b"):
        raise wrong


def test_an_error_in_short():
    assert failures.in_short(ValueError("\n\n  one \n two")) == "ValueError: one"
    assert failures.in_short(KeyError()) == "KeyError: "
    assert failures.in_short(ValueError("x" * 300)) == "ValueError: " + "x" * 188


# ---- the end of a program


def test_a_program_prints_what_it_returns(capsys: pytest.CaptureFixture[str]):
    failures.run_main(lambda: "done\n")
    failures.run_main(lambda: "done")
    assert capsys.readouterr() == ("done\ndone\n", "")


def test_an_error_is_its_line_and_its_code(capsys: pytest.CaptureFixture[str]):
    def main() -> str:
        raise ValueError("config.steps = 0\nmust be at least 1")

    with pytest.raises(SystemExit) as ended:
        failures.run_main(main)
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", "error: config.steps = 0 must be at least 1\n")


def test_a_crash_keeps_its_traceback(capsys: pytest.CaptureFixture[str]):
    def main() -> str:
        raise KeyError("x")

    with pytest.raises(KeyError):
        failures.run_main(main)
    assert capsys.readouterr() == ("", "")


# ---- background threads


class Writer(threading.Thread):
    """A thread of TensorBoard's."""

    __module__ = "tensorboard.summary.writer"


def ended(kind: type[threading.Thread], error: Exception) -> None:
    """A thread that ends with `error`."""

    def work() -> None:
        raise error

    thread = kind(target=work)
    thread.start()
    thread.join()


def test_only_failures_that_come_again_in_the_main_thread_are_not_printed(monkeypatch):
    heard: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: heard.append(args.exc_value))
    monkeypatch.setattr(sys, "unraisablehook", lambda args: heard.append(args.exc_value))
    failures.quiet_threads()
    hooks = threading.excepthook, sys.unraisablehook
    failures.quiet_threads()  # a second writer, say
    assert (threading.excepthook, sys.unraisablehook) == hooks
    other, mine = ValueError("of the writer"), OSError(errno.ENOSPC, "full")
    for kind, error in ((Writer, FULL), (Writer, other), (threading.Thread, mine)):
        ended(kind, error)
    assert heard == [other, mine]
    closed, open_ = RuntimeError("Event loop is closed"), RuntimeError("x")
    for error in (closed, open_, ValueError("Event loop is closed")):
        sys.unraisablehook(SimpleNamespace(exc_value=error, thread=threading.current_thread()))
    assert heard[2] is open_ and len(heard) == 4


def test_orbax_does_not_log_what_the_next_save_will_raise():
    def record(path: str, error: Exception | None) -> python_logging.LogRecord:
        trace = None if error is None else (type(error), error, None)
        return python_logging.LogRecord("absl", python_logging.ERROR, path, 1, "failed", (), trace)

    worth = failures._is_worth_logging
    assert not worth(record("site-packages/orbax/a.py", FULL))
    assert worth(record("site-packages/orbax/a.py", TypeError("a mistake")))
    assert worth(record("site-packages/orbax/a.py", None))
    assert worth(record("site-packages/flax/a.py", FULL))


# ---- what reaches the terminal

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


def test_only_the_first_write_of_a_full_disk_is_heard(caplog: pytest.LogCaptureFixture):
    """Tasks whose error nobody asks for are logged by asyncio when they are collected."""
    failures.quiet_threads()

    async def write(error: Exception) -> None:
        raise error

    async def writes() -> None:
        full = ValueError(f"RESOURCE_EXHAUSTED: {os.strerror(errno.ENOSPC)}")
        for error in (full, ValueError("another fault")):
            await asyncio.wait([asyncio.ensure_future(write(error))])
        gc.collect()

    asyncio.run(writes())
    said = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert said == ["another fault"]
