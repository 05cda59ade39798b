"""Checkpoints of a run: saved atomically, verified when read, restored onto any mesh."""

import contextlib
import json
import os
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from scope_jax.devices.hosts import exchange, is_main
from scope_jax.devices.mesh import to_device_memory
from scope_jax.devices.programs import program
from scope_jax.errors import StorageError
from scope_jax.run import failures
from scope_jax.run.workdir import write_atomically

PyTree = Any

# What the system says of a folder in which something is missing. Its other errors are of the
# storage, not of the checkpoint.
_MISSING = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)


class Checkpoints:
    """The newest `keep` checkpoints under `directory` (a local folder, or a bucket address that
    Orbax can write).

    Each checkpoint holds the state (a pytree of arrays) and `extra` (JSON: counters, data
    position), together with one checksum per array. A checkpoint appears under its final name only
    when it is complete, so a process killed while it saves leaves the checkpoints before it
    untouched; what it left half-written is removed in the background, before the first save at the
    latest. With several processes every one of them calls every method, in the same order. With
    `keep=1` there is nothing to fall back on.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 3):
        import orbax.checkpoint as ocp  # Costs over a second: not at import time.

        if keep < 1:
            raise ValueError(f"keep is {keep}: at least 1 checkpoint has to be kept")
        path = os.fspath(directory)
        self.directory = path if "://" in path else os.path.abspath(path)
        failures.quiet_threads()
        self._args = ocp.args
        # A folder that cannot be made is the fault of whoever named it.
        with failures.storage(self.directory, "it could not be opened", only_passing=True):
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=ocp.checkpoint_managers.LatestN(n=keep),
                    cleanup_tmp_directories=True,
                    enable_async_checkpointing=True,
                ),
            )
        # Reads by itself: a process that cannot read its part must not leave the others waiting
        # for it in the middle of Orbax.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(),
            active_processes={jax.process_index()},
            barrier_sync_key_prefix=f"scope_jax_{jax.process_index()}",
        )
        self._reader = ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(
                composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
                state=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
                record=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
            ),
            multiprocessing_options=alone,
        )

    @property
    def folder(self) -> Any:
        """Where they lie, as a path with pathlib's methods that a bucket has too."""
        return self._manager.directory

    def write_beside(self, name: str, text: str) -> None:
        """Write a file of this name beside the checkpoints, whole or not at all; process 0 does.
        Raises NoRoom or StorageError."""
        if not is_main():
            return
        with failures.storage(self.directory, f"{name} could not be written"):
            if "://" in self.directory:
                (self.folder / name).write_text(text)  # objects of a bucket appear whole
            else:
                write_atomically(self.folder / name, text)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending (one being written is not among them)."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: PyTree, extra: dict[str, Any]) -> bool:
        """Saves `state` and `extra` as `step`; False, and nothing done, where that step is saved
        already.

        Returns once the arrays are copied to the host (they may then be donated); the files are
        written in the background. If that fails, the next `save`, `wait` or `close` raises NoRoom
        (the disk is full) or StorageError; earlier checkpoints are intact, and the process should
        end by `failures.leave`. `state` has jax or numpy arrays as leaves (no typed PRNG keys).
        Raises ValueError where `extra` is not JSON.
        """
        try:
            # Through text and back, so that what is summed is what will be read (tuples are lists,
            # keys are strings).
            extra = json.loads(json.dumps(extra))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"checkpoint {step}: extra must be JSON (numbers, strings, lists, dicts): {error}"
            ) from None
        self.wait()
        if step in self._manager.all_steps():
            return False
        state = to_device_memory(state)
        leaves = _describe(state)
        record = {"extra": extra, "leaves": leaves, "sum": _text_sum(extra, leaves)}
        items = self._args.Composite(
            state=self._args.StandardSave(state), record=self._args.JsonSave(record)
        )
        with self._writing():
            return bool(self._manager.save(step, args=items, force=True))

    def restore(self, like: PyTree) -> tuple[int, PyTree, dict[str, Any]] | None:
        """The newest readable checkpoint as (step, state, extra); None if there is none.

        `like` is a pytree of `jax.ShapeDtypeStruct` with shardings, or of arrays: the state has
        its structure, and its arrays are placed by its shardings, which need not be those of the
        mesh that saved. The bits are those that were saved. A damaged checkpoint (unreadable, or a
        checksum that differs) is left out with a warning, and deleted as soon as an older one has
        been read. Raises ValueError where the checkpoint is sound but of another state than `like`
        (names and shapes are given; nothing is deleted), and where every checkpoint is damaged;
        StorageError where it is the storage that does not answer.
        """
        self.wait()
        like = jax.tree.map(_abstract, like)
        damaged: dict[int, str] = {}
        # Each process has looked into the folder by itself.
        for step in sorted(set.intersection(*map(set, exchange(self.steps()))), reverse=True):
            record, reason = self._attempt(self._read_record, step)
            if record is not None:
                _check_layout(record["leaves"], like, f"{self.directory}/{step}")
                state, reason = self._attempt(self._read_state, step, like)
                if state is not None:
                    reason = _difference(state, record["leaves"])
                if not reason:
                    with self._writing():
                        for bad in damaged:
                            self._manager.delete(bad)
                    return step, state, record["extra"]
            damaged[step] = reason
            logging.warning(
                "checkpoint %s/%d is damaged, trying the one before it: %s",
                self.directory,
                step,
                reason,
            )
        if damaged:
            raise ValueError(
                f"{self.directory}: no checkpoint can be read"
                f" ({'; '.join(f'{s}: {r}' for s, r in damaged.items())}); bring the files back, or"
                " move the folder away to start afresh"
            )
        return None

    def wait(self) -> None:
        """Blocks until what was saved is on disk."""
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Waits for what is being written, then releases the writer's threads."""
        self.wait()
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        # Closing waits for all processes: one that failed alone has to tell the others first.
        if kind is None or jax.process_count() == 1:
            self.close()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return failures.storage(self.directory, "a checkpoint could not be written")

    def _attempt(self, read: Callable[..., Any], *args: Any) -> tuple[Any, str]:
        """(result of `read(*args)`, "") or (None, why not); the same verdict on all processes.
        `read` must not wait for other processes. Raises StorageError where the storage of any
        process does not answer."""
        result, reason, passing = None, "", False
        try:
            result = read(*args)
        except jax.errors.JaxRuntimeError:
            raise  # the device failed; the checkpoint may be sound
        except Exception as error:  # json, Orbax, TensorStore and the system all have their own
            reason = failures.in_short(error)
            passing = failures.is_passing(error) or (
                isinstance(error, OSError) and not isinstance(error, _MISSING)
            )
        for number, (why, may_pass) in enumerate(exchange([reason, passing])):
            if may_pass:
                raise StorageError(f"{self.directory}: a checkpoint could not be read: {why}")
            if why and not reason:
                result, reason = None, f"process {number} could not read it: {why}"
        return result, reason

    def _read_record(self, step: int) -> dict[str, Any]:
        items = self._args.Composite(record=self._args.JsonRestore())
        record = self._reader.restore(self._manager.directory / str(step), args=items)["record"]
        if record["sum"] != _text_sum(record["extra"], record["leaves"]):
            raise ValueError("the checksum of its record differs")
        return record

    def _read_state(self, step: int, like: PyTree) -> PyTree:
        items = self._args.Composite(state=self._args.StandardRestore(like))
        return self._reader.restore(self._manager.directory / str(step), args=items)["state"]


def _difference(state: PyTree, leaves: dict[str, dict]) -> str:
    """Which array does not have the bits that were saved; empty where all have. All processes call
    it."""
    old = any(isinstance(leaf["sum"], int) for leaf in leaves.values())
    differing = [
        name
        for name, found in _describe(state, old=old).items()
        if found["sum"] != leaves[name]["sum"]
    ]
    return f"ValueError: the checksum of {differing[0]} differs" if differing else ""


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(
        jax.local_devices()[0]
    )
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _describe(state: PyTree, *, old: bool = False) -> dict[str, dict]:
    """{path: {shape, dtype, sum}} of each array. The sum is 16 hexadecimal digits; `old`: a number,
    as in older checkpoints, which are still read."""
    named = jax.tree_util.tree_leaves_with_path(state)
    sums = jax.device_get([(_array_sum if old else _array_hash)(leaf) for _, leaf in named])
    return {
        jax.tree_util.keystr(path): {
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
            "sum": int(total) if old else "".join(f"{part:08x}" for part in total.tolist()),
        }
        for (path, leaf), total in zip(named, sums, strict=True)
    }


@program
def _array_hash(array: jax.Array) -> jax.Array:
    """uint32[2]: a 64-bit checksum of an array's bits.

    Each element's bits are mixed with its place, in two ways, and each is added up modulo 2**32.
    Addition commutes, so the sum is the same on every mesh, and it is one read of the array where
    it lies; a CRC would need the whole array, in order, on one host. The mixing is a bijection, so
    any one changed element is seen for certain; other changes are missed once in 2**64 times.
    """
    bits = _bits(array)
    mixed = _mixed(bits ^ (_places(bits.shape) * np.uint32(0x9E3779B9)))
    again = (mixed ^ (mixed >> 15)) * np.uint32(0x2C1B3C6D)
    return jnp.stack([jnp.sum(mixed, dtype=jnp.uint32), jnp.sum(again, dtype=jnp.uint32)])


def _mixed(x: jax.Array) -> jax.Array:
    """Every bit of a uint32 made to depend on all of its bits (the finaliser of MurmurHash3)."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


@program
def _array_sum(array: jax.Array) -> jax.Array:
    """uint32[]: sum of the elements' bits, each times an odd number of its own, modulo 2**32. It
    misses two flipped sign bits."""
    bits = _bits(array)
    return jnp.sum(bits * (2 * _places(bits.shape) + 1), dtype=jnp.uint32)


def _bits(array: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    width = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(array, width).astype(jnp.uint32)


def _places(shape: tuple[int, ...]) -> jax.Array:
    """uint32: the place of each element in the array's order, modulo 2**32."""
    place, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        place += along * np.uint32(stride % 2**32)
        stride *= shape[axis]
    return place


def _text_sum(extra: dict[str, Any], leaves: dict[str, dict]) -> int:
    return zlib.crc32(json.dumps([extra, leaves], sort_keys=True).encode())


def _check_layout(leaves: dict[str, dict], like: PyTree, where: str) -> None:
    """Raises ValueError, naming up to five arrays, where those saved are not those of `like`."""
    wanted = {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(like)
    }
    saved = {name: f"{leaf['dtype']}{leaf['shape']}" for name, leaf in leaves.items()}
    differing = [
        f"{name}: saved {saved.get(name, 'nothing')}, wanted {wanted.get(name, 'nothing')}"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    if differing:
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise ValueError(
            f"{where}: saved by a run with another model or optimiser"
            f" ({'; '.join(differing[:5])}{more}); use the config that wrote it, or another workdir"
        )
