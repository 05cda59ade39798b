"""`--profile_steps`: the trace is there, names the phases and the steps that were asked for, and no
others."""

import subprocess
from collections import Counter
from pathlib import Path

import jax
import pytest
from support.tiny_runs import POLICY, Tiny, command, environment, run_program

from scope_jax.run.profile import Profile, profiled_steps


def events(workdir: Path) -> tuple[Counter, set[int]]:
    """(names on the host's threads in the one trace of a run, numbers of its steps)."""
    [trace] = workdir.glob("profile/plugins/profile/*/*.xplane.pb")
    names: Counter = Counter()
    steps = set()
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        for line in plane.lines:
            for event in line.events:
                names[event.name] += 1
                if event.name == "step":
                    steps.add(int(dict(event.stats)["step_num"]))
    return names, steps


def test_a_training_run_is_traced(checkpoints: Tiny, tmp_path: Path):
    workdir = tmp_path / "run"
    more = {"steps": 5, "evaluation.problems": 0, "evaluation.ood_problems": 0}
    program = checkpoints.program("scope", workdir, more, ("--profile_steps=2:4",))
    done = run_program(program, checkpoints.folder)
    assert f"the trace of steps 2:4 is in {workdir}/profile" in done.stderr
    names, steps = events(workdir)
    assert steps == {2, 3} and names["step"] == 2
    assert {"rollout", "verify", "prm", "correct", "update", "total"} <= set(names)
    assert names["total"] == names["prm"] == 2


def test_supervised_training_is_traced(tmp_path: Path):
    workdir = tmp_path / "run"
    program = command(
        "supervise", "base", workdir, {**POLICY, "steps": 12}, ("--profile-steps=3:5",)
    )
    run_program(program, tmp_path)
    names, steps = events(workdir)
    assert steps == {3, 4} and names["update"] == names["batch"] == 2


@pytest.mark.parametrize("text", ["3", "3:", "a:b", "5:3", "3:3", "-1:2", "0:6", "1:2:3", ""])
def test_what_is_no_range_of_steps_is_refused(text: str):
    with pytest.raises(ValueError, match=r"expected A:B with 0 <= A < B <= 5"):
        profiled_steps(text, 5)


def test_a_wrong_range_is_one_line(tmp_path: Path):
    program = command("train", "grpo", tmp_path / "run", {"steps": 3}, ("--profile_steps=2:9",))
    done = subprocess.run(
        program, env=environment(tmp_path), capture_output=True, text=True, timeout=120, check=False
    )
    [line] = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("error: --profile_steps=2:9: expected A:B")
    assert not (tmp_path / "run").exists()


def test_ranges():
    assert profiled_steps(None, 5) == range(0)
    assert profiled_steps("0:5", 5) == range(0, 5)
    assert profiled_steps("4:5", 5) == range(4, 5)


def test_a_trace_that_cannot_be_written_is_said(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "profile").write_text("in the way")
    profile = Profile(range(1, 2), tmp_path / "profile")
    for step in range(3):
        profile.begin(step)
        profile.end(step)
    profile.close()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("the trace of steps 1:2 was not written (")
