"""The processes that do the measuring, seen from the one that hands out the work: it imports no
jax, so that whatever happens to a worker, it goes on."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
READY = 120.0  # seconds that a worker may take to find its device


class WorkerDied(RuntimeError):
    """A worker ended, or was ended, before its part did. The words say how."""


class Worker:
    """One process that measures. Parts of one `process` of the plan share it. Raises WorkerDied
    where it cannot be started."""

    def __init__(self, name: str, size: str, python: str):
        self.name, self.size = name, size
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._last = ""
        kind = "torch" if name == "torch" else "jax"
        read, write = os.pipe()
        try:
            self._process = subprocess.Popen(
                [python, "-u", str(HERE / "worker.py"), str(write), size, kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(write,),
                env=environment(),
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            os.close(read)
            raise WorkerDied(f"{python} does not start: {error.strerror}") from None
        finally:
            os.close(write)
        for follow in (lambda: self._follow(read), self._listen):
            threading.Thread(target=follow, daemon=True).start()

    def _follow(self, descriptor: int) -> None:
        with os.fdopen(descriptor, errors="replace") as channel:
            for line in channel:
                self._lines.put(line)
        self._lines.put(None)

    def _listen(self) -> None:
        """What else the process prints goes to standard error; its last words say why it died."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._last = line.strip() or self._last
            print(f"  {self.name}: {line.rstrip()}", file=sys.stderr, flush=True)

    def messages(self, seconds: float) -> Iterator[dict[str, Any]]:
        """What the worker sends in the next `seconds`. Raises TimeoutError after them, WorkerDied
        where the process ended."""
        end = time.monotonic() + seconds
        while True:
            try:
                line = self._lines.get(timeout=max(end - time.monotonic(), 0.0))
            except queue.Empty:
                raise TimeoutError from None
            if line is None:
                raise WorkerDied(self.end())
            yield json.loads(line)

    def until_ready(self, seconds: float) -> str:
        """The size that it measures. Raises WorkerDied where it does not come up."""
        try:
            for message in self.messages(min(seconds, READY)):
                if "broken" in message:
                    raise WorkerDied(message["broken"])
                self.size = message["ready"]
                return self.size
        except TimeoutError:
            self.end(patience=0.5)
            raise WorkerDied(f"no device found in {min(seconds, READY):.0f} s") from None
        raise AssertionError("messages end by an exception alone")

    def ask(self, order: dict[str, Any]) -> None:
        """Begin a part. Raises WorkerDied where the process has ended."""
        assert self._process.stdin is not None
        self._last = ""
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise WorkerDied(self.end()) from None

    def end(self, patience: float = 10.0) -> str:
        """Ends the process, and what it started; how it ended, in words. It ends by itself when its
        input does, and is killed where it has not in `patience` seconds."""
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            code = self._process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            code = self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"the process ended with {how}" + (f": {self._last[:200]}" if self._last else "")


def environment() -> dict[str, str]:
    """Of a worker: this checkout, one device, no network."""
    paths = [ROOT, HERE.parent, ROOT / "tests"]
    before = os.environ.get("PYTHONPATH")
    env = {
        # The chip alone: torch and jax are never there at the same time.
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9",
        "CUDA_VISIBLE_DEVICES": "0",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "PYTHONSAFEPATH": "1",  # the folder of the script is no place to look for packages
    }
    path = os.pathsep.join([*map(str, paths), *([before] if before else [])])
    return env | os.environ | {"PYTHONPATH": path}


def play(
    worker: Worker, order: dict[str, Any], most: float, heard: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """The record of one part: {"status", "why", "seconds", "rows", "about"}, and "trace" where it
    failed. `most`: seconds after
    which the worker is ended. `heard` is told what the worker says."""
    record: dict[str, Any] = {"status": "failed", "why": "", "rows": [], "about": {}}
    begin = time.monotonic()
    try:
        worker.ask(order)
        for message in worker.messages(most):
            if "row" in message:
                record["rows"].append(message["row"])
            if "about" in message:
                record["about"] = message["about"]
            if "end" in message:
                record |= {"status": message.pop("end")} | message
                break
            heard(message)
    except TimeoutError:
        worker.end(patience=0.5)
        record["why"] = f"given up after {most:.0f} s"
    except WorkerDied as died:
        record["why"] = str(died)
    return record | {"seconds": time.monotonic() - begin}
