"""Workers that do not come up: killed by the system (started again) or ended by themselves (bad
input)."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scope_jax.run import MachineError, failures
from scope_jax.tasks import Problem, worker_pool
from scope_jax.tasks.graders import Grader
from scope_jax.tasks.verify_math import FunctionVerifier, MathVerifier

REAL = worker_pool._WORKER
# Counts its starts; those whose number is in DOOMED end with ENDING, the others are real workers.
PROGRAM = """
import os, runpy, signal, sys, time
from pathlib import Path

starts = Path({starts!r})
with open(starts, "a") as file:
    file.write(".")
if starts.stat().st_size - 1 in {doomed}:
    {ending}
sys.argv[0] = {real!r}
runpy.run_path({real!r}, run_name="__main__")
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"


class Starts:
    """Workers of which some do not come up."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.path, self.program = folder / "starts", folder / "worker.py"
        monkeypatch.setattr(worker_pool, "_WORKER", self.program)
        monkeypatch.setattr(worker_pool, "_PAUSE", 0.05)

    def doom(self, numbers: range | tuple[int, ...], ending: str = KILL) -> None:
        self.path.write_text("")
        self.program.write_text(
            PROGRAM.format(
                starts=str(self.path), doomed=repr(numbers), ending=ending, real=str(REAL)
            )
        )

    def __len__(self) -> int:
        return self.path.stat().st_size


@pytest.fixture
def starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Starts:
    return Starts(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "ending",
    [
        KILL,
        "print('warming up', file=sys.stderr, flush=True); " + KILL,  # words, but not the last ones
        "raise MemoryError",
        "raise OSError(12, os.strerror(12))",
    ],
)
def test_a_worker_that_the_system_kills_while_it_starts_is_started_again(starts, ending):
    starts.doom(range(4), ending)
    with MathVerifier(workers=1, seconds=20.0) as pool:
        pool.start()
        assert len(starts) == 5
        assert pool.verify([r"\boxed{1}", r"\boxed{2}"], ["1", "1"]) == [True, False]
        assert pool.counts == {"judged": 2} and len(starts) == 5


def test_a_worker_that_takes_the_place_of_another_may_be_killed_too(starts):
    starts.doom((1, 2, 4, 5, 6))  # five in all, but never five in a row
    with MathVerifier(workers=1, seconds=20.0, items_per_worker=1) as pool:
        assert pool.verify([r"\boxed{1}"] * 3, ["1", "2", "1"]) == [True, False, True]
    assert len(starts) == 8


def test_workers_that_start_side_by_side_may_all_be_killed(starts):
    starts.doom(range(6))
    with MathVerifier(workers=3, seconds=20.0) as pool:
        assert pool.verify([r"\boxed{1}"] * 6, list("123456")) == [True] + [False] * 5


@pytest.mark.parametrize("way", ["start", "verify"])
def test_where_every_start_is_cut_short_the_machine_is_blamed(starts, way):
    starts.doom(range(100))
    with MathVerifier(workers=1) as pool:
        for times in (1, 2):  # a second call tries again
            with pytest.raises(MachineError) as caught:
                pool.start() if way == "start" else pool.verify([r"\boxed{1}"], ["1"])
            assert len(starts) == 5 * times and pool._pool == []
    line, code = failures.ending(caught.value)
    assert code == 1 and failures.says_nothing_of_the_run(caught.value)
    assert line == (
        "error: MathVerifier: no worker can be started, 5 tries in a row (the last one: killed by"
        " signal 9 (Killed)): the machine may be out of memory; start the same command again"
    )


def test_a_machine_without_processes_is_tried_again_too(monkeypatch):
    real, tries = subprocess.Popen, []

    def popen(*args, **kwargs):
        tries.append(1)
        if len(tries) <= refused:
            raise OSError(12, os.strerror(12))
        return real(*args, **kwargs)

    monkeypatch.setattr(worker_pool, "_PAUSE", 0.01)
    monkeypatch.setattr(worker_pool.subprocess, "Popen", popen)
    refused = 2
    with MathVerifier(workers=1, seconds=20.0) as pool:
        assert pool.verify([r"\boxed{1}"], ["1"]) == [True]
    refused = 100
    with MathVerifier(workers=1) as pool, pytest.raises(MachineError, match="Cannot allocate"):
        pool.start()


FUNCTIONS = {
    "no_such_name": "def other(): ...",
    "syntax": "def syntax(:",
    "raises": "raise ValueError('no key for the judge')",
    "leaves": "import sys; sys.exit('set JUDGE_KEY first')",
    "leaves_silently": "import os; os._exit(3)",
    "long": "import sys; sys.stderr.write('x' * 1_000_000 + '\\n'); raise KeyError('y' * 100_000)",
    "child": "import subprocess; subprocess.Popen(['sleep', '20']); raise KeyError('z')",
}
REASONS = {
    "no_such_name": "AttributeError: module 'judge_no_such_name' has no attribute 'no_such_name'",
    "syntax": "SyntaxError",
    "raises": "ValueError: no key for the judge",
    "leaves": "set JUDGE_KEY first",
    "leaves_silently": "exit code 3",
    "long": "KeyError: 'yyyy",
    "child": "KeyError: 'z'",
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_cannot_be_imported_is_bad_input_at_once(tmp_path, monkeypatch, name):
    monkeypatch.syspath_prepend(tmp_path)
    imports = f"from pathlib import Path\nwith open({str(tmp_path / 'n')!r}, 'a') as f:\n"
    body = FUNCTIONS[name] if name == "syntax" else f"{imports}    f.write('.')\n{FUNCTIONS[name]}"
    (tmp_path / f"judge_{name}.py").write_text(f"{body}\n")
    begin = time.monotonic()
    with (
        Grader(f"judge_{name}:{name}", workers=2) as grader,
        pytest.raises(RuntimeError, match="FunctionVerifier: a worker did not start: ") as caught,
    ):
        grader.start()
    assert REASONS[name] in str(caught.value) and len(str(caught.value)) < 400
    assert failures.ending(caught.value)[1] == 2 and time.monotonic() - begin < 30
    assert name == "syntax" or (tmp_path / "n").read_text() == "."  # tried once


def test_an_import_that_never_ends_is_waited_for_once(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "judge_sleeps.py").write_text("import time\ntime.sleep(100)\n")
    with (
        FunctionVerifier("judge_sleeps:f", workers=1, start_seconds=1.0) as pool,
        pytest.raises(MachineError, match=r"did not start within 1 s: the machine is busy, or an"),
    ):
        pool.start()


def test_one_that_hangs_after_others_came_up_is_started_again(starts, monkeypatch):
    """The second one gets no more time than it takes to begin to hang; the others have plenty."""
    starts.doom((1,), "time.sleep(100)")
    own = worker_pool._Worker

    def impatient(*arguments):
        before = len(starts)
        made = own(*arguments)
        if before == 1:
            while len(starts) == 1:
                time.sleep(0.01)
            made.deadline = time.monotonic()
        return made

    monkeypatch.setattr(worker_pool, "_Worker", impatient)
    with MathVerifier(workers=1, seconds=20.0, items_per_worker=1, start_seconds=60.0) as pool:
        assert pool.verify([r"\boxed{1}"] * 2, ["1", "2"]) == [True, False]
    assert len(starts) == 3


def test_the_command_line_ends_with_1(starts, tmp_path):
    starts.doom(range(100))
    body = (
        "from pathlib import Path\n"
        "from scope_jax.run import failures\n"
        "from scope_jax.tasks import worker_pool\n"
        "from scope_jax.tasks.graders import Grader\n"
        f"worker_pool._WORKER = Path({str(starts.program)!r})\n"
        "worker_pool._PAUSE = 0.01\n"
        "failures.run_main(lambda: str(Grader('math', workers=1).start()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", body], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 1 and done.stderr.startswith("error: MathVerifier: no worker can be")
    assert done.stderr.count("\n") == 1


def test_what_a_function_started_ends_with_its_worker(tmp_path, monkeypatch):
    (tmp_path / "spawning.py").write_text(
        "import subprocess\n"
        "def reward(fields, completion):\n"
        "    child = subprocess.Popen(['sleep', '60'])\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "    return 1.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with Grader("spawning:reward", workers=1) as grader:
        assert grader.scores([Problem("1", "2+2", "4")], ["4"]) == [1.0]
        child = int((tmp_path / "pid").read_text())
        os.kill(child, 0)  # it runs
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":  # ended; nobody reaps an orphan here
            return
        time.sleep(0.05)
    raise AssertionError(f"process {child} outlives the worker that started it")
