"""A process that measures: reads one part a line from standard input, sends what it finds as lines
of JSON into the file descriptor that its first argument names.

    python worker.py FD SIZE jax|torch

SIZE "auto": the smallest on a CPU, else the full one. What it sends: {"ready": size}, then for each
part any number of {"say"}, {"row"} and {"about"}, and at last {"end": status, "why", "trace"}.
"""

import gc
import importlib
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

from accelerator_parts import plan
from accelerator_parts.work import Skip, Work, one_line

PARTS = {part.name: part for part in plan.PARTS}


def main() -> None:
    channel = os.fdopen(int(sys.argv[1]), "w", buffering=1)
    size, kind = sys.argv[2], sys.argv[3]

    def send(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    try:
        if kind == "jax":
            from accelerator_parts import device

            device.start(chosen=size != "auto")
            size = size if size != "auto" else "tiny" if device.is_cpu() else "full"
            work = Work(plan.SIZES[size], send)
            work.free_bytes, work.peak_bytes = device.free_bytes, device.peak_bytes
        else:
            work = Work(plan.SIZES[size], send)
    except Exception as error:
        send({"broken": one_line(error)})
        raise
    send({"ready": size})
    for line in orders():
        send(measured(work, json.loads(line)))


def orders() -> Iterator[str]:
    """The lines of standard input. When it ends, so does the process, whatever it is doing: nobody
    waits for it any more."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield lines.get()


def measured(work: Work, order: dict[str, Any]) -> dict[str, Any]:
    """Do one part; what is sent at its end. `order`: "part", "allowed" seconds, "found" records of
    parts before, "simulate" a fault or None."""
    part = PARTS[order["part"]]
    work.begin(part, order["allowed"], order["found"])
    work.pretend_large = order["simulate"] == "large"
    try:
        pretend(order["simulate"])
        importlib.import_module(f"accelerator_parts.{part.module}").run(part, work)
        return {"end": "done", "why": ""}
    except Skip as skip:
        return {"end": "skipped", "why": str(skip)}
    except Exception as error:
        lines = traceback.format_exc().splitlines()
        print("\n".join(lines[-8:]), file=sys.stderr, flush=True)
        work.kept.clear()
        return {"end": "failed", "why": one_line(error), "trace": lines[-60:]}
    finally:
        work.pretend_large = False
        gc.collect()


def pretend(fault: str | None) -> None:
    """For the tests: fail as a part may fail."""
    if fault == "failure":
        raise RuntimeError("simulated failure")
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hang":
        time.sleep(3600)


if __name__ == "__main__":
    main()
