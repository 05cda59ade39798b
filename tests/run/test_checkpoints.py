"""Checkpoints: bit-exact, on any mesh, after a kill, and with every kind of damage to the newest
one."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from scope_jax.run import checkpoints as checkpoints_module
from scope_jax.run.checkpoints import Checkpoints, _array_hash, _array_sum


def make_state(seed: int, mesh: Mesh):
    values = np.random.default_rng(seed).standard_normal((8, 16)).astype(np.float32)
    values[0, :3] = [
        np.nan,
        -0.0,
        np.float32(1e-42),
    ]  # A denormal, a signed zero and a NaN survive only bit for bit.
    split = NamedSharding(mesh, P("data", None))
    whole = NamedSharding(mesh, P())
    params = {
        "w": jax.device_put(values, split),
        "b": jax.device_put((np.arange(5) * 0.1).astype(ml_dtypes.bfloat16), whole),
    }
    optimiser_state = jax.device_put(optax.adamw(1e-3).init(params), whole)
    return {
        "params": params,
        "opt": optimiser_state,
        "mask": jax.device_put(np.array([True, False]), whole),
    }


def mesh_of(count: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:count]), ("data",))


def as_like(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_same_bits(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_restores_every_bit_onto_another_mesh(tmp_path):
    saved = make_state(1, mesh_of(4))
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.restore(as_like(saved)) is None
        assert checkpoints.save(7, saved, {"prompts": 12, "order": (3, 1)})
        assert not checkpoints.save(7, saved, {"prompts": 13})  # Already there: kept as it was.
    like = as_like(make_state(2, mesh_of(2)))
    with Checkpoints(tmp_path / "c") as checkpoints:
        step, state, extra = checkpoints.restore(like)
    assert (step, extra) == (7, {"prompts": 12, "order": [3, 1]})
    assert_same_bits(state, saved)
    assert state["params"]["w"].sharding == NamedSharding(mesh_of(2), P("data", None))
    assert state["params"]["w"].addressable_shards[0].data.shape == (4, 16)


def test_keeps_the_newest(tmp_path):
    state = {"w": jnp.arange(3.0)}
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        for step in (1, 2, 5, 9):
            checkpoints.save(step, state, {})
        checkpoints.wait()
        assert checkpoints.steps() == [5, 9]


def test_donated_buffers_do_not_change_what_is_saved(tmp_path):
    bump = jax.jit(lambda x: x + 1, donate_argnums=0)
    array = jnp.zeros((256, 256))
    with Checkpoints(tmp_path / "c") as checkpoints:
        for step in range(3):
            checkpoints.save(step, {"w": array}, {"step": step})
            array = bump(array)
        step, state, extra = checkpoints.restore({"w": array})
    assert (step, extra["step"], float(state["w"][5, 5])) == (2, 2, 2.0)


def damages(root):
    """(name, function that damages) for every file of one checkpoint (cut, emptied, removed, one
    bit turned) and every folder in it (removed)."""

    def cut(path):
        os.truncate(path, os.path.getsize(path) // 2)

    def empty(path):
        os.truncate(path, 0)

    def flip(path):
        with open(path, "r+b") as file:
            content = bytearray(file.read())
            content[len(content) // 2] ^= 1
            file.seek(0)
            file.write(content)

    for folder, folders, names in os.walk(root):

        def relative(name: str, folder: str = folder) -> str:
            return os.path.relpath(os.path.join(folder, name), root)

        yield from ((relative(name), shutil.rmtree) for name in folders)
        yield from (
            (relative(name), damage) for name in names for damage in (cut, empty, os.remove, flip)
        )


READER = """
import hashlib, json, os, sys
import jax, jax.numpy as jnp, numpy as np
from scope_jax.run import checkpoints as checkpoints_module
from scope_jax.run.checkpoints import Checkpoints
like = {
    "w": jax.ShapeDtypeStruct((8, 16), jnp.float32),
    "b": jax.ShapeDtypeStruct((5,), jnp.bfloat16),
}
for folder in sorted(os.listdir(sys.argv[1])):
    with Checkpoints(os.path.join(sys.argv[1], folder)) as checkpoints:
        step, state, extra = checkpoints.restore(like)
        raw = b"".join(np.asarray(state[name]).tobytes() for name in ("w", "b"))
        bits = hashlib.sha256(raw).hexdigest()
        found = {"step": step, "extra": extra, "bits": bits, "left": checkpoints.steps()}
        print(json.dumps(found | {"saved": checkpoints.save(20, state, extra)}), flush=True)
"""


def test_any_damage_to_the_newest_is_harmless_or_noticed(tmp_path):
    """Read by a process of its own: where a read fails, Orbax leaves reads pending that pytest
    would report."""
    states = {step: make_state(step, mesh_of(1))["params"] for step in (10, 20)}
    with Checkpoints(tmp_path / "c") as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state, {"prompts": step})
    cases = []
    for relative, damage in damages(tmp_path / "c" / "20"):
        copy = tmp_path / "copies" / f"{len(cases):03d}"
        shutil.copytree(tmp_path / "c", copy)
        damage(copy / "20" / relative)
        cases.append((relative, damage.__name__))
    child = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path / "copies")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = child.stdout.splitlines()
    assert len(lines) == len(cases) > 45, (cases[len(lines) : len(lines) + 1], child.stderr[-2000:])
    fell_back = set()
    for case, line in zip(cases, lines, strict=True):
        found = json.loads(line)
        step = found["step"]
        bits = hashlib.sha256(
            b"".join(np.asarray(states[step][name]).tobytes() for name in ("w", "b"))
        ).hexdigest()
        assert (found["extra"], found["bits"]) == ({"prompts": step}, bits), case
        # After a fall back the damaged step is gone, and can be written again.
        assert (found["left"], found["saved"]) == (
            ([10], True) if step == 10 else ([10, 20], False)
        ), case
        if step == 10:
            fell_back.add(case[0].split(os.sep)[0])
    assert {"state", "record"} <= fell_back


def test_a_turned_bit_inside_an_array_is_noticed(tmp_path, caplog):
    """No layer below sums what large arrays hold: without our own sums this would load as a wrong
    weight."""
    state = {"w": jax.random.normal(jax.random.key(0), (128, 128))}
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.save(2, state, {})
    data = max(
        (tmp_path / "c" / "2").rglob("*"),
        key=lambda path: path.stat().st_size if path.is_file() else 0,
    )
    content = bytearray(data.read_bytes())
    assert (
        len(content) > 32_000
    )  # Random mantissas do not compress: the array is in this file as it is.
    content[1000] ^= 1
    data.write_bytes(content)
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.restore(state)[0] == 1
    assert "the checksum of ['w'] differs" in caplog.text


def test_the_newest_cut_short_is_named_in_one_line(tmp_path, caplog):
    state = {"w": jnp.arange(300.0)}
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.save(2, state, {})
    for folder, _, names in os.walk(tmp_path / "c" / "2"):
        for name in names:
            os.truncate(os.path.join(folder, name), 0)
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.restore(state)[0] == 1
    lines = [
        record.getMessage() for record in caplog.records if "is damaged" in record.getMessage()
    ]
    assert len(lines) == 1 and f"{tmp_path}/c/2 is damaged" in lines[0] and "\n" not in lines[0]


def test_all_damaged_is_an_error_and_deletes_nothing(tmp_path):
    state = {"w": jnp.arange(300.0)}
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state, {})
    shutil.rmtree(tmp_path / "c" / "1" / "state")
    with (
        Checkpoints(tmp_path / "c") as checkpoints,
        pytest.raises(ValueError, match=r"no checkpoint can be read \(1: "),
    ):
        checkpoints.restore(state)
    assert (tmp_path / "c" / "1" / "record").exists()


def test_another_model_is_an_error_that_names_the_array(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, {"w": jnp.zeros((2, 3)), "gone": jnp.zeros(1)}, {})
        message = (
            r"\['gone'\]: saved float32\[1\], wanted nothing; \['w'\]: saved float32\[2, 3\],"
            r" wanted bfloat16\[2, 4\]"
        )
        with pytest.raises(ValueError, match=message):
            checkpoints.restore({"w": jnp.zeros((2, 4), jnp.bfloat16)})
        assert checkpoints.steps() == [1]


def test_extra_must_be_json(tmp_path):
    with (
        Checkpoints(tmp_path / "c") as checkpoints,
        pytest.raises(ValueError, match="extra must be JSON"),
    ):
        checkpoints.save(1, {"w": jnp.zeros(1)}, {"bad": jnp.zeros(1)})


def numpy_hash(array: np.ndarray) -> list[int]:
    """The checksum written down a second time, element by element in Python's own numbers."""
    width = {1: np.uint8, 2: np.uint16}.get(array.dtype.itemsize, np.uint32)
    bits = array.astype(np.uint32) if array.dtype == bool else array.view(width)
    sums = [0, 0]
    for place, x in enumerate(bits.reshape(-1).tolist()):
        x ^= place * 0x9E3779B9 % 2**32
        x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
        x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
        x ^= x >> 16
        sums[0] += x
        sums[1] += (x ^ (x >> 15)) * 0x2C1B3C6D % 2**32
    return [total % 2**32 for total in sums]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int8, np.bool_, np.int32])
@pytest.mark.parametrize("shape", [(), (5,), (3, 7), (2, 3, 4), (0, 3)])
def test_the_checksum_of_arrays_by_python(dtype, shape):
    values = np.random.default_rng(1).standard_normal(shape) * 50
    array = np.asarray(values).astype(dtype)
    assert _array_hash(jnp.asarray(array)).tolist() == numpy_hash(array)


def test_the_checksum_is_the_same_on_every_mesh():
    values = np.random.default_rng(2).standard_normal((16, 8)).astype(np.float32)
    wanted = numpy_hash(values)
    for count, spec in ((1, P()), (4, P("data")), (8, P("data")), (8, P(None, "data"))):
        placed = jax.device_put(values, NamedSharding(mesh_of(count), spec))
        assert _array_hash(placed).tolist() == wanted


def test_no_pair_of_turned_bits_is_missed():
    """Two sign bits cancel in a sum of weighted elements; zeros, swaps and moves change this one
    too."""
    values = np.random.default_rng(3).standard_normal(64).astype(np.float32)
    bits = values.view(np.uint32)
    changed = [np.roll(bits, 1), bits[::-1].copy(), np.where(np.arange(64) < 8, 0, bits)]
    rng = np.random.default_rng(4)
    for n in range(2_000):
        one, other = rng.choice(64, 2, replace=False)
        turned = bits.copy()
        turned[one] ^= np.uint32(1 << (31 if n % 2 else rng.integers(32)))
        turned[other] ^= np.uint32(1 << (31 if n % 2 else rng.integers(32)))
        changed.append(turned)
    found = jax.vmap(_array_hash)(jnp.asarray(np.stack([bits, *changed])).view(jnp.float32))
    assert not (np.asarray(found[1:]) == np.asarray(found[0])).all(axis=1).any()
    signs = jnp.asarray(bits).at[jnp.array([3, 40])].set(bits[[3, 40]] ^ np.uint32(1 << 31))
    assert int(_array_sum(signs)) == int(_array_sum(jnp.asarray(bits)))  # what was missed before


def test_checkpoints_with_sums_of_before_are_read_and_checked(tmp_path, monkeypatch, caplog):
    state = {"w": jax.random.normal(jax.random.key(0), (64, 64)), "b": jnp.ones(3, jnp.bfloat16)}
    new = checkpoints_module._describe
    monkeypatch.setattr(checkpoints_module, "_describe", lambda s, *, old=True: new(s, old=True))
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state, {"place": 7})
        checkpoints.save(2, jax.tree.map(lambda x: x + 1, state), {"place": 8})
    monkeypatch.undo()
    record = next((tmp_path / "c" / "2").rglob("record/*")).read_text()
    assert isinstance(json.loads(record)["leaves"]["['w']"]["sum"], int)
    with Checkpoints(tmp_path / "c") as checkpoints:
        step, found, extra = checkpoints.restore(state)
        assert (step, extra) == (2, {"place": 8})
        assert_same_bits(found, jax.tree.map(lambda x: x + 1, state))
        checkpoints.save(3, state, {})
    record = next((tmp_path / "c" / "3").rglob("record/*")).read_text()
    assert len(json.loads(record)["leaves"]["['w']"]["sum"]) == 16
    for wrong in (1, "0" * 16):
        monkeypatch.setattr(
            Checkpoints, "_read_record", lambda self, at, w=wrong: altered(tmp_path / "c", at, w)
        )
        with (
            Checkpoints(tmp_path / "c") as checkpoints,
            pytest.raises(ValueError, match="checksum"),
        ):
            checkpoints.restore(state)
        monkeypatch.undo()


def altered(folder, step: int, wrong: int | str) -> dict:
    record = json.loads(next((folder / str(step)).rglob("record/*")).read_text())
    for leaf in record["leaves"].values():
        leaf["sum"] = wrong
    return record


def test_array_sum_by_hand():
    # Weights 1, 3, 5, 7: 2 + 3*3 + 5*5 + 7*7 = 85.
    assert int(_array_sum(jnp.array([[2, 3], [5, 7]], jnp.int32))) == 85
    assert int(_array_sum(jnp.array([True, False, True]))) == 1 + 5
    assert int(_array_sum(jnp.array([-1], jnp.int8))) == 255
    assert int(_array_sum(jnp.float32(1.0))) == 0x3F800000
    assert int(_array_sum(jnp.zeros((0, 3)))) == 0


CHILD = """
import sys
import jax.numpy as jnp
from scope_jax.run import checkpoints as checkpoints_module
from scope_jax.run.checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
for step in range(1, 10_000):
    checkpoints.save(step, {"w": jnp.full((200, 200), step, jnp.float32)}, {"step": step})
    print(step, flush=True)
"""


def test_killed_while_saving(tmp_path):
    """SIGKILL at two moments of a process that only saves: this other process reads a whole
    checkpoint each time."""
    like = {"w": jax.ShapeDtypeStruct((200, 200), jnp.float32)}
    for number, delay in enumerate((0.0, 0.04)):
        folder = tmp_path / f"c{number}"
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(CHILD), str(folder)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        while int(child.stdout.readline()) < 4:
            pass
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        with Checkpoints(folder) as checkpoints:
            last, state, extra = checkpoints.restore(like)
            assert last >= 3 and extra == {"step": last}
            assert (np.asarray(state["w"]) == last).all()
            # The step that was half-written can be written now, and nothing of the old attempt is
            # left.
            assert checkpoints.save(last + 1, state, extra)
            checkpoints.wait()
            assert sorted(os.listdir(folder)) == [str(step) for step in range(last - 1, last + 2)]


WRITER = """
import resource, sys
import jax.numpy as jnp
from scope_jax.run import Checkpoints, NoRoom
from scope_jax.run.failures import leave
checkpoints = Checkpoints(sys.argv[1], keep=2)
for step in range(1, 4):
    checkpoints.save(step, {"w": jnp.arange(40_000.0) + step}, {"step": step})
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    checkpoints.save(4, {"w": jnp.arange(40_000.0) + 4}, {"step": 4})
    checkpoints.close()
except NoRoom as error:
    print(error)
    leave(0)
"""


@pytest.mark.parametrize("limit", [0, 200, 20_000], ids=["nothing", "records", "arrays"])
def test_no_room_is_one_line_and_older_checkpoints_are_intact(tmp_path, limit):
    """The system refuses to write files beyond a size, so that the save fails at its first, a
    middle and a late file."""
    arguments = [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path / "c"), str(limit)]
    child = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr[-3000:]
    message = (
        f"{tmp_path}/c: no room to write (disk or quota is full); earlier checkpoints are intact:"
        " make room and start the"
    )
    assert child.stdout.splitlines()[0] == f"{message} same command again"
    assert "Traceback" not in child.stderr
    like = {"w": jax.ShapeDtypeStruct((40_000,), jnp.float32)}
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        assert checkpoints.steps() == [2, 3]
        step, state, extra = checkpoints.restore(like)
        assert (step, extra) == (3, {"step": 3})
        assert (np.asarray(state["w"]) == np.arange(40_000.0, dtype=np.float32) + 3).all()
        assert checkpoints.save(4, state, {})  # there is room again
    assert sorted(os.listdir(tmp_path / "c")) == ["3", "4"]
