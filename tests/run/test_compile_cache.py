"""Compiled programs that are kept on disk: a second process compiles nothing and has the same
numbers, and trouble with the folder is one line."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.tiny_runs import Tiny, environment

from scope_jax.run import read_metrics
from scope_jax.run.compile_cache import this_machine

# A process that compiles two programs and says how many of all it compiled and found.
SMALL = """
import sys
import jax, jax.numpy as jnp
from scope_jax.run.compile_cache import keep_compiled_programs
from scope_jax.run.compiles import Compiles
keep_compiled_programs(sys.argv[1] if len(sys.argv) > 1 else None)
compiles = Compiles()
x = jax.jit(lambda x: jnp.sort(x * 2.0))(jnp.arange(8.0))
y = jax.jit(lambda x: jnp.cumsum(jnp.sin(x)))(x)
print(compiles.count, compiles.from_cache, float(y[-1]).hex())
"""


def small(folder: Path, *where: str, **more: str) -> tuple[int, int, str, str]:
    """(programs, of these from the cache, the number, standard error) of `SMALL` in `folder`."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", SMALL, *where],
        env=clean(folder) | more,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    count, found, number = done.stdout.split()
    return int(count), int(found), number, done.stderr


def clean(folder: Path) -> dict[str, str]:
    """The environment of somebody who has set nothing."""
    return {k: v for k, v in environment(folder).items() if not re.match("JAX_(COMP|PERS)", k)}


def of_runs(checkpoints: Tiny, folder: Path, flags: dict[str, tuple[str, ...]]) -> list[list[dict]]:
    """The metrics of runs by the command line, one after another, in a folder of their own with
    nothing set; `flags` of each, by its name."""
    found: list[list[dict[str, Any]]] = []
    for name, more in flags.items():
        settings = {"steps": 2, "evaluation.problems": 0, "evaluation.ood_problems": 0}
        program = checkpoints.program("grpo", folder / name, settings, more)
        subprocess.run(
            program, env=clean(folder), cwd=folder, check=True, timeout=400, capture_output=True
        )
        found.append(read_metrics(folder / name / "metrics.jsonl"))
    print({key: [rows[-1][f"compile/{key}"] for rows in found] for key in ("count", "from_cache")})
    print("seconds of the compiler", [rows[-1]["compile/seconds"] for rows in found])
    return found


def numbers(rows: list[dict]) -> list[dict]:
    machine = ("time/", "throughput/", "compile/", "memory/")
    return [{k: v for k, v in row.items() if not k.startswith(machine)} for row in rows]


def test_a_second_run_compiles_nothing_and_has_the_same_numbers(checkpoints: Tiny, tmp_path: Path):
    one, other = of_runs(checkpoints, tmp_path, {"first": (), "second": ()})
    first, second = one[-1], other[-1]
    assert first["compile/count"] == second["compile/count"] > 10
    assert first["compile/from_cache"] == 0
    assert second["compile/from_cache"] == second["compile/count"]
    assert second["compile/seconds"] < 0.5 * first["compile/seconds"]
    assert numbers(one) == numbers(other)
    [folder] = (tmp_path / "cache" / "xla").iterdir()
    assert len(list(folder.glob("*-cache"))) > 10


@pytest.mark.long
def test_a_run_by_the_flag_compiles_all_beside_a_full_folder(checkpoints: Tiny, tmp_path: Path):
    """The same of a small program: `test_where_compiled_programs_are_kept`."""
    one, other = of_runs(checkpoints, tmp_path, {"kept": (), "off": ("--compilation_cache=off",)})
    kept, off = one[-1], other[-1]
    assert kept["compile/count"] == off["compile/count"] > 10
    assert kept["compile/from_cache"] == off["compile/from_cache"] == 0
    assert numbers(one) == numbers(other)


def test_where_compiled_programs_are_kept(tmp_path: Path):
    named, other = tmp_path / "named", tmp_path / "other"
    assert small(tmp_path / "a")[1] == 0
    [folder] = (tmp_path / "a" / "cache" / "xla").iterdir()
    assert folder.name == this_machine() or os.environ.get("JAX_NUM_CPU_DEVICES")
    count, found, _, said = small(tmp_path / "a")
    assert (found, said) == (count, "")
    # The variable is taken as it is; a flag overrules it; "off" overrules both.
    small(tmp_path / "b", JAX_COMPILATION_CACHE_DIR=str(named))
    assert [*named.glob("*-cache")] and not (tmp_path / "b" / "cache").exists()
    small(tmp_path / "b", str(other), JAX_COMPILATION_CACHE_DIR=str(named))
    assert [*other.glob("*/*-cache")]
    assert small(tmp_path / "b", "off", JAX_COMPILATION_CACHE_DIR=str(named))[1] == 0
    assert small(tmp_path / "b", JAX_COMPILATION_CACHE_DIR=str(named))[1] == count


def test_another_processor_has_another_folder(monkeypatch: pytest.MonkeyPatch):
    """Machine code of a processor that can do more would end a run here."""
    text = "vendor_id\t: A\nmodel name\t: M\nflags\t\t: avx avx2 fma\n\nvendor_id\t: A\n"
    changed = ("avx2 ", ""), ("M\n", "N\n"), ("A\n", "B\n")
    names = []
    for old, new in (("", ""), *changed):
        cpuinfo = text.replace(old, new) if old else text
        monkeypatch.setattr(Path, "read_text", lambda self, cpuinfo=cpuinfo: cpuinfo)
        names.append(this_machine())
    assert len(set(names)) == 4
    reordered = text.replace("avx avx2 fma", "fma avx avx2")
    monkeypatch.setattr(Path, "read_text", lambda self: reordered)
    assert this_machine() == names[0]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    said = [small(tmp_path / "a", "/proc/nowhere"), small(tmp_path / "a", str(tmp_path / "file"))]
    for count, found, _, text in said:
        assert count > 2 and found == 0
        [line] = text.splitlines()
        assert line.startswith("note: compiled programs are not all kept in ")
        assert "the run compiles them itself" in line
    assert len({number for _, _, number, _ in said}) == 1


def test_a_full_disk_is_one_line_and_leaves_nothing_broken(tmp_path: Path):
    """No file of the process may grow past a limit, as if the disk were full."""
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))\n"
    full = subprocess.run(
        [sys.executable, "-c", limit + SMALL],
        env=clean(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    [line] = full.stderr.splitlines()
    assert "error writing one" in line and "File too large" in line
    broken = [*tmp_path.glob("cache/xla/*/*-cache")]
    assert broken and all(path.stat().st_size <= 500 for path in broken)
    # The next process finds them broken, says so once, and puts whole ones in their place.
    count, found, number, text = small(tmp_path)
    assert found == 0 and number == full.stdout.split()[2]
    [line] = text.splitlines()
    assert "error reading one" in line
    assert small(tmp_path) == (count, count, number, "")


@pytest.mark.parametrize("processes", [3])
def test_several_processes_at_once(processes: int, tmp_path: Path):
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SMALL],
            env=clean(tmp_path),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    said = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0] * processes
    assert len({out.split()[2] for out, _ in said}) == 1
    assert all(len(text.splitlines()) <= 1 for _, text in said)
    small(tmp_path)  # puts right what two wrote at the same time
    count, found, _, text = small(tmp_path)
    assert (found, text) == (count, "")
