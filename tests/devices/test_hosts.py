"""Several processes as one program: the same run as by one process, and nobody waits for ever when
one fails."""

import json
import os
import re
import signal
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.run_processes import start, wait
from support.tiny_runs import Tiny

from scope_jax.devices import hosts, watch
from scope_jax.run import STOPPED, read_metrics

MACHINE = ("time/", "throughput/", "compile/", "memory/")
# What a process does in the small programs below, before and after it has joined.
JOIN = """
import os, sys, time
import jax
from scope_jax.devices import hosts, watch
hosts.connect(sys.argv[-1].removeprefix("--distributed="))
import numpy as np
"""


def program(body: str) -> list[str]:
    return [sys.executable, "-c", JOIN + body]


def test_shares_by_hand():
    assert [hosts._share(10, n, 4) for n in range(4)] == [
        slice(0, 2),
        slice(2, 5),
        slice(5, 7),
        slice(7, 10),
    ]
    assert [hosts._share(2, n, 4) for n in range(4)] == [
        slice(0, 0),
        slice(0, 1),
        slice(1, 1),
        slice(1, 2),
    ]
    for rows in range(20):
        every = [i for n in range(3) for i in range(rows)[hosts._share(rows, n, 3)]]
        assert every == list(range(rows))


def test_one_process_needs_nobody():
    assert hosts.by_share(lambda x, y: [a + b for a, b in zip(x, y)], [1, 2], [3, 4]) == [4, 6]
    assert (
        hosts.exchange({"a": 1}) == [{"a": 1}]
        and hosts.is_main()
        and hosts.own_share(7) == slice(0, 7)
    )
    watch.fail("nothing happens", 3)
    hosts.finish()


@pytest.mark.parametrize("where", ["somewhere", "host/2/0", "localhost:1/2/2", "localhost:1/2"])
def test_where_to_join_is_checked(where):
    with pytest.raises(
        ValueError,
        match=f"--distributed={where}: expected auto or HOST:PORT/N/I with I from 0 to N - 1",
    ):
        hosts.connect(where)


def test_each_process_works_on_its_share(tmp_path: Path):
    """Three processes: who worked on what, what all got, letters beyond ASCII and empty shares
    included."""
    body = """
seen = []
def work(own):
    seen.extend(own)
    return [[row * 2, "é" * row] for row in own]
made = hosts.by_share(work, list(range(7)))
print("RESULT", made == [[n * 2, "é" * n] for n in range(7)], seen)
print("RESULT", *(hosts.by_share(lambda own: list(own), rows) for rows in (["a"], [])))
number = jax.process_index()
asked = hosts.any_process(number == 2), hosts.any_process(False)
print("RESULT", hosts.exchange(number), *asked)
hosts.finish()
"""
    codes, said = wait(start(program(body), tmp_path, 3, 2), tmp_path, 120)
    assert codes == [0, 0, 0], said
    lines = [[line for line in text.splitlines() if line.startswith("RESULT")] for text in said]
    assert [line[0] for line in lines] == [
        "RESULT True [0, 1]",
        "RESULT True [2, 3]",
        "RESULT True [4, 5, 6]",
    ]
    assert all(line[1:] == ["RESULT ['a'] []", "RESULT [0, 1, 2] True False"] for line in lines)


def command_line(tmp_path: Path, entry: str) -> list[str]:
    """A program that `scope_jax.cli.run` runs: `entry` is the body of what it calls."""
    config = tmp_path / "config.py"
    config.write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict()\n"
    )
    body = (
        "import os, time\nimport jax\nfrom scope_jax import cli\n"
        "from scope_jax.configuration import TrainConfig\nfrom scope_jax.devices import hosts\n"
        f"def entry(*_):\n{textwrap.indent(entry, '    ')}\n"
    )
    body += "cli.run(entry, TrainConfig, file='run.py', workdir=False)"
    return [sys.executable, "-c", body, f"--config={config}"]


def test_processes_on_cpus_need_no_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As launch/worker.sh starts them: nobody says how many devices there are, and each takes one
    for each core."""
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    entry = (
        "return f'{jax.process_count()} processes, {jax.local_device_count()} of"
        " {jax.device_count()} devices'"
    )
    codes, said = wait(
        start(command_line(tmp_path, entry), tmp_path, 2, 1, {"XLA_FLAGS": ""}), tmp_path, 120
    )
    assert codes == [0, 0], said
    cores = min(len(os.sched_getaffinity(0)), 8)
    assert (
        f"2 processes, {cores} of {2 * cores} devices" in said[0].splitlines()
        and "devices" not in said[1]
    )


def test_of_many_processes_each_says_why_it_stops(tmp_path: Path):
    """The store by which they hear of a failure goes with process 0: it leaves last, although the
    others are slow to hear of it."""
    body = """
own = watch._watch._get
def slowly(key):
    told = own(key)
    time.sleep(1.2 if told and jax.process_index() else 0)
    return told
watch._watch._get = slowly
hosts.exchange("here")
try:
    if jax.process_index() == 2:
        watch.fail("the data of this machine is missing", 2)
    hosts.exchange("never")
except Exception as error:
    watch.crashed(error)
"""
    codes, said = wait(start(program(body), tmp_path, 3, 1), tmp_path, 120)
    assert codes == [2, 2, 2], said
    for number in (0, 1):
        words = (
            f"error: process 2 of 3 failed: the data of this machine is missing; process {number}"
            " stops"
        )
        assert words in said[number], said[number]


def test_process_0_leaves_last_also_where_another_one_failed_before_it(
    monkeypatch: pytest.MonkeyPatch,
):
    class Taken:
        def key_value_set(self, *_):
            raise RuntimeError("ALREADY_EXISTS: Config key scope_jax/failure already exists.")

    one = watch._Watch(60)  # never started
    one.client = Taken()
    monkeypatch.setattr(watch, "BEAT", 0.1)
    for process in range(2):
        one.process, began = process, time.monotonic()
        one.report("the data of this machine is missing", 2)
        assert (time.monotonic() - began >= 3 * watch.BEAT) == (process == 0)


def test_a_checkpoint_that_one_process_cannot_read_is_left_out_by_all(tmp_path: Path):
    """Each file of arrays cut in turn: those of a process hold its part, which it alone reads. All
    take the checkpoint before it, with the same words, or all the newest where the file is of no
    account."""
    body = """
import shutil
from pathlib import Path
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scope_jax.run.checkpoints import Checkpoints
root = Path(sys.argv[1])
layout = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data", None))
def made(step):
    values = np.random.default_rng(step).standard_normal((64, 256)).astype(np.float32)
    return {"w": jax.make_array_from_callback(values.shape, layout, lambda index: values[index])}
mine = lambda state: [np.asarray(shard.data) for shard in state["w"].addressable_shards]
like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), made(0))
with Checkpoints(root / "whole") as checkpoints:
    for step in (1, 2):
        checkpoints.save(step, made(step), {"step": step})
found = (root / "whole" / "2").glob("state/ocdbt.process_*/d/*")
files = sorted(path.relative_to(root / "whole") for path in found)
for number, file in enumerate(files):
    folder = root / str(number)
    if hosts.is_main():
        shutil.copytree(root / "whole", folder)
        os.truncate(folder / file, (folder / file).stat().st_size // 2)
    hosts.wait_for_all(f"damaged {number}")
    with Checkpoints(folder) as checkpoints:
        step, state, extra = checkpoints.restore(like)
        same = np.array_equal(mine(state), mine(made(step))) and extra == {"step": step}
        print("RESULT", file.parts[2], step, same, checkpoints.steps(), flush=True)
hosts.finish()
"""
    codes, said = wait(start([*program(body), str(tmp_path)], tmp_path, 2, 2), tmp_path, 120)
    assert codes == [0, 0], [text[-3000:] for text in said]
    found = [[line for line in text.splitlines() if line.startswith("RESULT")] for text in said]
    assert found[0] == found[1]
    for process in ("ocdbt.process_0", "ocdbt.process_1"):
        assert f"RESULT {process} 1 True [1]" in found[0]
    assert all(line.endswith(("1 True [1]", "2 True [1, 2]")) for line in found[0])
    damaged = sum(line.endswith("[1]") for line in found[0])
    for number, text in enumerate(said):
        assert text.count("is damaged, trying the one before it") == damaged
        assert f"process {1 - number} could not read it: " in text


# Of another one than the first: `test_of_many_processes_each_says_why_it_stops`.
@pytest.mark.parametrize("who", [0, pytest.param(1, marks=pytest.mark.long)])
def test_an_error_on_one_process_stops_all_with_its_words(tmp_path: Path, who: int):
    """One process finds its input bad while the other waits for it in a collective: both end at
    once, with the same exit code."""
    body = f"""
hosts.exchange("here")
if jax.process_index() == {who}:
    watch.fail("the data of this machine is missing", 2)
hosts.exchange("never")
"""
    began = time.monotonic()
    codes, said = wait(start(program(body), tmp_path, 2, 2), tmp_path, 120)
    assert codes == [2, 2] and time.monotonic() - began < 60
    other = 1 - who
    assert (
        f"error: process {who} of 2 failed: the data of this machine is missing; process {other}"
        " stops" in said[other]
    )


def test_a_process_that_is_killed_does_not_leave_the_others_waiting(tmp_path: Path):
    """SIGKILL leaves no words: the other one ends because it hears nothing any more, within the
    time that was given, or because of what the collective between them raises, which is no bad
    input of the command line."""
    body = """
hosts.exchange("here")
print("READY", os.getpid(), flush=True)
if jax.process_index() == 1:
    time.sleep(100)
hosts.exchange("never")
"""
    running = start(command_line(tmp_path, body), tmp_path, 2, 2, {"SCOPE_JAX_HOST_TIMEOUT": "4"})
    end = time.monotonic() + 90
    while not all("READY" in (tmp_path / f"said_{n}").read_text() for n in range(2)):
        assert time.monotonic() < end and all(process.poll() is None for process in running)
        time.sleep(0.2)
    os.kill(running[1].pid, signal.SIGKILL)
    began = time.monotonic()
    codes, said = wait(running, tmp_path, 60)
    assert time.monotonic() - began < 40 and codes[1] == -signal.SIGKILL
    # Which of them notices first is up to the network: our own watch, or the collective, which
    # ends at once.
    assert codes[0] in (watch.LOST, 1), said[0]
    assert (
        "process 1 of 2 has not been heard of for" in said[0]
        or "Connection" in said[0]
        or "closed by peer" in said[0]
    )


# ---- training


def numbers(workdir: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if not k.startswith(MACHINE)}
        for row in read_metrics(workdir / "metrics.jsonl")
    ]


def run(checkpoints: Tiny, workdir: Path, more: dict, flags=()) -> list[str]:
    settings = {
        "checkpoint.every": 1,
        "checkpoint.keep": 9,
        "evaluation.problems": 4,
        "evaluation.ood_problems": 0,
        **more,
    }
    return checkpoints.program("scope", workdir, settings, flags)


def train(
    checkpoints: Tiny,
    folder: Path,
    workdir: Path,
    processes: int,
    devices: int,
    more: dict,
    flags=(),
) -> list[str]:
    codes, said = wait(
        start(run(checkpoints, workdir, more, flags), folder, processes, devices), folder, 400
    )
    assert codes == [0] * processes, [text[-3000:] for text in said]
    return said


@pytest.mark.long
def test_two_processes_train_as_one_does_and_one_goes_on_from_their_checkpoint(
    checkpoints: Tiny, tmp_path: Path
):
    """2 processes x 4 devices against 1 x 8, on 2x2x2, teacher and PRM on meshes of their own:
    tokens and verdicts the same, parameters to 1e-5. On the way one of the two is asked to stop:
    both do, at the same step, and both go on. At the end their checkpoint is taken up by one
    process on another mesh, and ends where the undisturbed run ends."""
    mesh = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
    mesh |= {
        f"mesh.teacher.{axis}": size for axis, size in (("data", 8), ("fsdp", 1), ("tensor", 1))
    }
    mesh |= {f"mesh.prm.{axis}": size for axis, size in (("data", 1), ("fsdp", 4), ("tensor", 2))}
    one, two = tmp_path / "one", tmp_path / "two"
    train(checkpoints, checkpoints.folder, one, 1, 8, {"steps": 3, **mesh})
    running = start(run(checkpoints, two, {"steps": 2, **mesh}), checkpoints.folder, 2, 4)
    end = time.monotonic() + 300
    while " 0/2 [" not in (checkpoints.folder / "said_0").read_text():
        assert time.monotonic() < end and all(process.poll() is None for process in running)
        time.sleep(0.2)
    time.sleep(1)  # both are in the first step, which compiles for some seconds
    running[1].terminate()
    codes, said = wait(running, checkpoints.folder, 300)
    assert codes == [STOPPED, STOPPED], [text[-3000:] for text in said]
    assert "SIGTERM: the run stops" in said[1] and "SIGTERM" not in said[0]
    assert (
        f"stopped: {two}: another process was asked to stop" in said[0]
        and "stopped:" not in said[1]
    )
    done = int(re.search(r"goes on at step (\d)", said[0])[1])  # type: ignore[index]
    assert done < 2 and len(numbers(two)) == done
    said = train(checkpoints, checkpoints.folder, two, 2, 4, {"steps": 2, **mesh})
    assert (f"resuming {two} at step {done}" in said[0]) == (done > 0)
    assert "done: 2 steps" in said[0] and "done:" not in said[1] and "it/s" not in said[1]
    assert json.loads((two / "summary.json").read_text())["updates"] == 2
    # The end of a run is evaluated: only what both have is compared.
    assert len(numbers(two)) == 2
    for wanted, found in zip(numbers(one), numbers(two)):
        common = wanted.keys() & found.keys()
        assert {"reward/mean", "scope/accepted", "diversity/distinct_paths", "grad/norm"} <= common
        exact = [
            k
            for k in common
            if k.startswith(
                ("reward/", "completion/", "scope/", "cost/", "diversity/", "data/", "advantage/")
            )
        ]
        assert {k: found[k] for k in exact} == {k: wanted[k] for k in exact}
        for k in common - set(exact):
            assert found[k] == wanted[k] or found[k] == pytest.approx(
                wanted[k], abs=2e-5, rel=1e-4
            ), k
    changed = ("--allow_changed_config=steps,mesh",)
    train(
        checkpoints,
        checkpoints.folder,
        two,
        1,
        8,
        {"steps": 3, "mesh.data": 4, "mesh.fsdp": 1, "mesh.tensor": 2},
        changed,
    )
    assert [row["step"] for row in numbers(two)] == [0, 1, 2]
    wanted, found = (
        load_file(one / "model" / "model.safetensors"),
        load_file(two / "model" / "model.safetensors"),
    )
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)
