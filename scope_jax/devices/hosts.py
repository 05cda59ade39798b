"""Several processes as one program: who does which host work, and who writes.

Every process runs the same program over the same mesh. Arrays are laid out over all devices; host
work (decoding text, verdicts, cutting into steps) is done by each process for its own share of the
rows, and the results, which are small, are exchanged, so that all decide the same. Files are
written by process 0. With one process nothing here does anything.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from scope_jax.devices import watch
from scope_jax.devices.shapes import message_bytes


def connect(where: str | None) -> None:
    """Join the other processes, before the first device is asked for. `where`: None (one process),
    "auto" (TPU slices, Slurm, and what else `jax.distributed.initialize` finds by itself) or
    "HOST:PORT/N/I" (N processes, this is number I, from 0; number 0 listens at that address).

    Raises ValueError for another form, and where "auto" finds nothing.
    """
    if where is None:
        return
    # The network for collectives between processes on CPUs.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    silence = float(os.environ.get("SCOPE_JAX_HOST_TIMEOUT", watch.SILENCE))
    # Longer than our own watch waits: that one says more.
    patience = int(2 * silence) + 10
    if where == "auto":
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=patience)
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"--distributed=auto: no cluster found ({error}); give HOST:PORT/N/I"
            ) from error
    else:
        found = re.fullmatch(r"(\S+:\d+)/(\d+)/(\d+)", where)
        if found is None or not int(found[3]) < int(found[2]):
            raise ValueError(
                f"--distributed={where}: expected auto or HOST:PORT/N/I with I from 0 to N - 1"
            )
        jax.distributed.initialize(
            found[1], int(found[2]), int(found[3]), heartbeat_timeout_seconds=patience
        )
    if jax.process_count() > 1:
        watch.start(silence)


def is_main() -> bool:
    """Whether this process writes the files of the run and speaks on the terminal."""
    return jax.process_index() == 0


def own_share(rows: int) -> slice:
    """The part of `rows` rows that this process works on: consecutive ones, in the order of the
    processes, as the devices of a mesh hold them."""
    return _share(rows, jax.process_index(), jax.process_count())


def _share(rows: int, process: int, processes: int) -> slice:
    return slice(rows * process // processes, rows * (process + 1) // processes)


def by_share(function: Callable[..., Sequence[Any]], *rows: Sequence[Any]) -> list[Any]:
    """`function(*rows)`, one result per row, each process calling it with its own share of the
    rows only; every process gets all results. Results are what JSON can hold (tuples come back as
    lists). All processes call it, with the same rows."""
    if jax.process_count() == 1:
        return list(function(*rows))
    own = own_share(len(rows[0]))
    done = list(function(*(x[own] for x in rows))) if own.stop > own.start else []
    parts = exchange(done)
    return [result for part in parts for result in part]


def exchange(value: Any) -> list[Any]:
    """The `value` (JSON) of each process, in their order. All processes call it."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.array(text.size, np.int32))).reshape(
        -1
    )
    padded = np.pad(text, (0, message_bytes(int(lengths.max())) - text.size))
    every = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths), -1)
    return [
        json.loads(row[:length].tobytes().decode())
        for row, length in zip(every, lengths, strict=True)
    ]


def from_main(value: Any) -> Any:
    """The `value` (JSON) of process 0, on every process; the others' is ignored. All processes call
    it."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value if is_main() else None).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.array(text.size, np.int32)))
    padded = np.zeros(message_bytes(length), np.uint8)
    if is_main():
        padded[:length] = text
    return json.loads(
        np.asarray(multihost_utils.broadcast_one_to_all(padded))[:length].tobytes().decode()
    )


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process. All processes call it."""
    return any(exchange(bool(flag)))


def wait_for_all(name: str) -> None:
    """Return once every process has called this."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def finish() -> None:
    """The run is over for this process, and its silence from now on is no failure. All processes
    call it."""
    if watch.is_on():
        wait_for_all("scope_jax/finish")
        watch.leave()
