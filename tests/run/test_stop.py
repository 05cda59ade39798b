"""The signal to stop, sent for real: what it leaves, and who has it afterwards."""

import os
import signal
import subprocess
import sys
import threading
from types import ModuleType

import jax
import pytest
from support.tiny_runs import ROOT

from scope_jax.run import StopSignal

pytestmark = pytest.mark.usefixtures("interruptible")


def test_a_signal_leaves_a_note_and_handlers_come_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        with StopSignal() as stop:
            assert not stop.requested() and stop.name == ""
            os.kill(os.getpid(), number)
            assert stop.requested() and stop.name == signal.Signals(number).name
            os.kill(
                os.getpid(), signal.SIGTERM
            )  # SIGTERM may come as often as it likes; the first name stays
            assert stop.name == signal.Signals(number).name
        assert {number: signal.getsignal(number) for number in before} == before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop.requested()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_all_processes_agree():
    asked: list[bool] = []

    def agree(told: bool) -> bool:
        asked.append(told)
        return len(asked) == 2  # as if another process had been told before our second question

    with StopSignal(agree) as stop:
        assert [stop.requested() for _ in range(2)] == [False, True]
    assert asked == [False, False] and stop.name == ""


def test_outside_of_the_main_thread_nothing_is_installed():
    found = []

    def work() -> None:
        with StopSignal() as stop:
            found.append((signal.getsignal(signal.SIGTERM), stop.requested()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(signal.getsignal(signal.SIGTERM), False)]


def test_a_second_interrupt_ends_the_process_inside_a_computation():
    body = "import ctypes, os\nfrom scope_jax.run.stop import StopSignal\n"
    body += (
        "with StopSignal() as stop:\n    os.kill(os.getpid(), 2)\n    print(stop.requested(),"
        " flush=True)\n"
    )
    body += (  # keeps the lock: no Python runs meanwhile
        "    [ctypes.PyDLL(None).sleep(100) for _ in range(9)]\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", body],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert child.stdout is not None and child.stdout.readline() == "True\n"
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=20) == -signal.SIGINT
    assert child.stderr is not None and "SIGINT: the run stops" in child.stderr.read()


def test_jax_has_no_say_in_signals():
    """Nothing below may take the handlers away: looked at after a program has run."""
    with StopSignal() as stop:
        jax.jit(lambda x: x + 1)(1.0).block_until_ready()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested()


def test_the_terminal_is_told_once(capfd: pytest.CaptureFixture[str]):
    with StopSignal():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
    assert capfd.readouterr().err == "SIGTERM: the run stops as soon as it can be gone on with\n"
    with StopSignal():
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == (
        "SIGINT: the run stops as soon as it can be gone on with; again to stop at once\n"
    )


def test_the_own_flag_is_what_other_processes_are_asked_about():
    told: list[bool] = []

    def agree(flag: bool) -> bool:
        told.append(flag)
        return False  # others are not there yet: all stop at the same place, or none

    with StopSignal(agree) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert not stop.requested()
    assert told == [True]


def test_in_a_notebook_a_second_interrupt_ends_the_cell(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested()
        # Asked first: the system's own handler would end this process.
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.name == "SIGINT"


def test_an_error_in_the_block_gives_the_handlers_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with pytest.raises(KeyError), StopSignal():
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
        raise KeyError
    assert {number: signal.getsignal(number) for number in before} == before
