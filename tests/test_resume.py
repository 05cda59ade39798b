"""Losing nothing: runs that are asked to stop, changed configs, damaged checkpoints, full disks,
numbers that are not finite.

Runs in this process are stopped by real signals, sent from inside a phase of a step; nothing of
the program is replaced.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file
from support.tiny_runs import POLICY, ROOT, Tiny, environment, run_program, tiny_config

from scope_jax import supervise as supervised
from scope_jax import sweep, tasks
from scope_jax import train as program
from scope_jax.run import (
    STOPPED,
    Checkpoints,
    MetricsWriter,
    Stopped,
    read_metrics,
)
from scope_jax.run.failures import is_full
from scope_jax.supervise import supervise
from scope_jax.train import train
from scope_jax.training import learner, rollouts

MACHINE = ("time/", "throughput/", "compile/", "memory/")
NO_EVALUATION = {"evaluation.problems": 0, "evaluation.ood_problems": 0}

pytestmark = pytest.mark.usefixtures("interruptible")


def numbers(workdir: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if not k.startswith(MACHINE)}
        for row in read_metrics(workdir / "metrics.jsonl")
    ]


def steps(workdir: Path) -> list[int]:
    return sorted(
        int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()
    )


def assert_same_run(one: Path, other: Path) -> None:
    assert numbers(one) == numbers(other)
    model = Path("model") / "model.safetensors"
    assert (one / model).read_bytes() == (other / model).read_bytes()

    def drop(final: dict) -> dict:
        return {k: v for k, v in final.items() if not k.startswith(MACHINE)}

    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, other)]
    assert (
        drop(summaries[0].pop("final")) == drop(summaries[1].pop("final"))
        and summaries[0] == summaries[1]
    )

    def files(folder: Path) -> dict[str, str]:
        return {path.name: path.read_text() for path in (folder / "samples").iterdir()}

    assert files(one) == files(other)


@contextlib.contextmanager
def after_call(place: Any, name: str, number: int, act: Callable[[], None]) -> Iterator[None]:
    """`act()` once `place.name` has returned for the `number`-th time (from 1)."""
    own, calls = getattr(place, name), 0

    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        result = own(*args, **kwargs)
        calls += 1
        if calls == number:
            act()
        return result

    setattr(place, name, called)
    try:
        yield
    finally:
        setattr(place, name, own)


def tell(number: int = signal.SIGTERM) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


# ---- a run that is asked to stop, at every place where it looks


STOPPING = {
    "steps": 5,
    "checkpoint.every": 3,
    "checkpoint.keep": 9,
    "evaluation.every": 2,
    "loss.teacher_weight": 0.2,
}


@pytest.fixture(scope="module")
def undisturbed(checkpoints: Tiny) -> Path:
    """A SCOPE run of this process."""
    workdir = checkpoints.folder / "undisturbed"
    train(checkpoints.config("scope", STOPPING), workdir)
    return workdir


def test_a_run_stops_between_phases_and_goes_on_the_same(
    undisturbed: Path, checkpoints: Tiny, tmp_path: Path
):
    """(where the signal comes, which call of it in that process) -> (steps kept, lines of metrics
    that are there)."""
    workdir = tmp_path / "run"
    moments = [
        (rollouts, "rollout_metrics", 1, 0, 0),  # in the rollouts of step 0: nothing to keep yet
        (learner.Learner, "update", 1, 1, 1),  # an update is not given up: step 0 is whole
        (program, "rescue", 1, 1, 1),  # in the correction of step 1, which is given up
        (
            learner.Learner,
            "update",
            1,
            2,
            1,
        ),  # before an evaluation: the step's update is kept, its line is owed
        (program, "evaluate_splits", 1, 2, 1),  # in that evaluation, made up for
        (
            rollouts,
            "rollout_metrics",
            3,
            4,
            4,
        ),  # in the rollouts of step 4: steps 2 and 3 are whole
        (program, "evaluate_splits", 1, 5, 4),  # in the last evaluation
    ]
    seen = []
    for place, name, number, kept, _ in moments:
        with (
            after_call(place, name, number, tell()),
            pytest.raises(Stopped, match="SIGTERM asked to stop") as stopped,
        ):
            train(checkpoints.config("scope", STOPPING), workdir)
        seen.append(
            (name, max(steps(workdir), default=0), len(read_metrics(workdir / "metrics.jsonl")))
        )
        assert f"{workdir}: " in str(stopped.value) and str(stopped.value).endswith(
            f"goes on at step {kept}"
        )
        assert not (workdir / "summary.json").exists()
    assert seen == [(name, kept, lines) for _, name, _, kept, lines in moments]
    train(checkpoints.config("scope", STOPPING), workdir)
    assert_same_run(workdir, undisturbed)


@pytest.mark.parametrize(
    ("name", "more", "where", "number"),
    [
        # A buffer in a checkpoint: tests/training/test_rivals_train.py.
        pytest.param("relift", {"method.buffer": 5}, "collect_rollouts", 3, marks=pytest.mark.long),
        ("sft_grpo", {"sft.steps": 2, "sft.prompts": 4}, "collect_demonstrations", 2),
    ],
    ids=["relift", "sft_grpo"],
)
def test_supervised_steps_and_buffers_stop_and_go_on_the_same(
    checkpoints: Tiny, tmp_path: Path, name: str, more: dict, where: str, number: int
):
    """ReLIFT's buffer of failed prompts at a step that is given up; a supervised step that is
    given up."""
    place = {"models.teacher": str(checkpoints.policy), "steps": 4, "checkpoint.every": 9}

    def config() -> ConfigDict:
        return checkpoints.config(name, {**place, **NO_EVALUATION, **more})

    train(config(), tmp_path / "whole")
    with (
        after_call(program, where, number, tell()),
        pytest.raises(Stopped, match=rf"goes on at step {number - 1}$"),
    ):
        train(config(), tmp_path / "run")
    train(config(), tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.long
def test_the_command_line_stops_with_its_own_exit_code(checkpoints: Tiny, tmp_path: Path):
    """SIGTERM, then Ctrl-C, then to the end: as a run that was never stopped."""
    more = {"steps": 60, "checkpoint.every": 50, **NO_EVALUATION}
    arguments = checkpoints.program("grpo", tmp_path / "run", more)
    metrics, lines = tmp_path / "run" / "metrics.jsonl", 0
    for number in (signal.SIGTERM, signal.SIGINT):
        process = subprocess.Popen(
            arguments,
            env=environment(checkpoints.folder),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        limit = time.monotonic() + 240
        while time.monotonic() < limit and process.poll() is None:
            if metrics.is_file() and metrics.read_bytes().count(b"\n") > lines + 1:
                break
            time.sleep(0.005)
        process.send_signal(number)
        out, said = process.communicate(timeout=60)
        assert process.returncode == STOPPED == 75, said[-3000:]
        found = len(read_metrics(metrics))
        assert lines < found < 60 and steps(tmp_path / "run")[-1] == found
        name = signal.Signals(number).name
        last = said.strip().splitlines()[-1]
        assert (
            last
            == f"stopped: {tmp_path / 'run'}: {name} asked to stop; the same command goes on at"
            f" step {found}"
        )
        assert "Traceback" not in said and "done:" not in out
        lines = found
    assert f"resuming {tmp_path / 'run'} at step" in out
    run_program(arguments, checkpoints.folder)
    run_program(checkpoints.program("grpo", tmp_path / "whole", more), checkpoints.folder)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_supervised_training_stops_and_goes_on_the_same(tmp_path: Path):
    config = tiny_config("base", {**POLICY, "steps": 12})
    supervise(config, tmp_path / "whole")
    with (
        after_call(supervised, "put_rows", 5, tell()),
        pytest.raises(Stopped, match=r"goes on at step 5$"),
    ):
        supervise(config, tmp_path / "run")
    assert steps(tmp_path / "run") == [5] and not (tmp_path / "run" / "summary.json").exists()
    supervise(config, tmp_path / "run")
    for name in ("model.safetensors", "summary.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_sweep_that_is_stopped_records_nothing_and_goes_on(checkpoints: Tiny, tmp_path: Path):
    settings = checkpoints.settings("grpo", {"steps": 2, **NO_EVALUATION})
    runs = [sweep.Run(name, "grpo,arithmetic", settings) for name in ("a", "b")]
    said: list[str] = []

    def again() -> tuple[int, int]:
        return sweep.work(runs, tmp_path / "work", tmp_path / "records", say=said.append)

    with after_call(rollouts, "rollout_metrics", 2, tell()), pytest.raises(Stopped):
        again()
    assert (
        not said and not (tmp_path / "records").exists() and steps(tmp_path / "work" / "a") == [1]
    )
    assert again() == (2, 0)
    assert sorted(path.name for path in (tmp_path / "records").iterdir()) == ["a.json", "b.json"]


# ---- a config that has changed


def test_a_changed_config_is_refused_unless_told_to(checkpoints: Tiny, tmp_path: Path):
    more = {"steps": 2, "checkpoint.every": 1, **NO_EVALUATION}

    def config(changes: dict | None = None) -> ConfigDict:
        return checkpoints.config("grpo", {**more, **(changes or {})})

    workdir, history = tmp_path / "run", tmp_path / "run" / "config_changes.jsonl"
    train(config(), workdir)
    before = (workdir / "config.json").read_text()
    new = {"steps": 3, "loss.clip_high": 0.5, "optimizer.learning_rate": 1e-4}
    with pytest.raises(ValueError) as refused:
        train(config(new), workdir, allow_changed=["steps"])
    assert (
        str(refused.value)
        == f"{workdir / 'config.json'}: the workdir of a run with another config (loss.clip_high:"
        " there 0.2, here 0.5; optimizer.learning_rate: there 0.0005, here 0.0001); use another"
        " workdir, or the values that are there, or go on with the new ones:"
        " --allow_changed_config=steps,loss.clip_high,optimizer.learning_rate"
    )
    # Another shape of what is trained is refused by the checkpoint, whatever is allowed.
    with pytest.raises(ValueError, match="saved by a run with another model or optimiser"):
        train(config({"lora.rank": 2, "steps": 3}), workdir, allow_changed=["all"])
    with pytest.raises(
        ValueError, match=r"has 2 steps behind it, more than config.steps = 1; raise that"
    ):
        train(config({"steps": 1}), workdir, allow_changed=["all"])
    assert (workdir / "config.json").read_text() == before and not history.exists()

    assert (
        train(config(new), workdir, allow_changed=["steps", "loss", "optimizer.learning_rate"])[
            "steps"
        ]
        == 3
    )
    assert len(read_metrics(workdir / "metrics.jsonl")) == 3
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    assert [(line["step"], line["changes"]) for line in lines] == [
        (
            2,
            {
                "steps": ["2", "3"],
                "loss.clip_high": ["0.2", "0.5"],
                "optimizer.learning_rate": ["0.0005", "0.0001"],
            },
        )
    ]
    assert json.loads((workdir / "config.json").read_text())["loss"]["clip_high"] == 0.5
    # From now on these are the run's settings; the old ones would be a change.
    assert train(config(new), workdir)["steps"] == 3 and len(history.read_text().splitlines()) == 1
    with pytest.raises(ValueError, match=r"steps: there 3, here 2"):
        train(config(), workdir)


@pytest.mark.long
def test_where_the_checkpoints_are_is_no_free_setting(checkpoints: Tiny, tmp_path: Path):
    """Another folder would be an empty one: the run would begin anew. Told to, it does, and the
    metrics are kept."""

    def config(**more: Any) -> ConfigDict:
        settings = {"steps": 3, "checkpoint.every": 1, **NO_EVALUATION, **more}
        return checkpoints.config("grpo", settings)

    workdir = tmp_path / "run"
    train(config(), workdir)
    (workdir / "summary.json").unlink()
    first = (workdir / "metrics.jsonl").read_bytes()
    elsewhere = {"checkpoint.directory": str(tmp_path / "elsewhere")}
    with pytest.raises(
        ValueError, match=r'another config \(checkpoint.directory: there null, here "'
    ):
        train(config(**elsewhere), workdir)
    assert (workdir / "metrics.jsonl").read_bytes() == first
    assert (
        train(config(**{"checkpoint.every": 2, "checkpoint.keep": 1}), workdir)["steps"] == 3
    )  # these are free
    (workdir / "summary.json").unlink()
    said = r"3 steps were done and no checkpoint of them is left; .* metrics_before.jsonl"
    with pytest.warns(UserWarning, match=said):
        train(config(**elsewhere), workdir, allow_changed=["checkpoint.directory"])
    assert (workdir / "metrics_before.jsonl").read_bytes() == first
    assert len(read_metrics(workdir / "metrics.jsonl")) == 3


def test_a_folder_of_checkpoints_belongs_to_one_run(checkpoints: Tiny, tmp_path: Path):
    """Its config lies beside them: another run does not go on from them, the same one does, from a
    workdir that is gone."""

    def config(**more: Any) -> ConfigDict:
        settings = {"steps": 2, "checkpoint.every": 1, **NO_EVALUATION, **more}
        settings["checkpoint.directory"] = str(tmp_path / "far")
        return checkpoints.config("grpo", settings)

    train(config(), tmp_path / "one")
    with pytest.raises(ValueError, match=r"far/config\.json: .* another config \(seed: there 0, h"):
        train(config(seed=9), tmp_path / "two")
    assert not (tmp_path / "two").exists()
    train(config(), tmp_path / "three")
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "three")]
    assert rows[0] == rows[1] and len(rows[0]) == 2
    np.testing.assert_equal(arrays(tmp_path / "three"), arrays(tmp_path / "one"))


def test_a_damaged_summary_and_metrics_are_noticed_and_the_run_ends_the_same(
    checkpoints: Tiny, tmp_path: Path
):
    config = checkpoints.config("grpo", {"steps": 3, "checkpoint.every": 1, **NO_EVALUATION})
    workdir = tmp_path / "run"
    summary = train(config, workdir)
    weights = (workdir / "model" / "model.safetensors").read_bytes()
    metrics, finished = workdir / "metrics.jsonl", workdir / "summary.json"
    lines = metrics.read_text().splitlines(keepends=True)

    # Finished but for the summary: nothing is trained again.
    for text in ("", "{}", "[]"):
        finished.write_text(text)
        with pytest.warns(UserWarning, match=r"summary\.json: not the summary of a run"):
            assert train(config, workdir) == summary
        assert json.loads(finished.read_text()) == summary

    finished.unlink()
    metrics.write_text(lines[2] + lines[0] + lines[2])
    with pytest.warns(UserWarning) as said:
        assert train(config, workdir) == summary
    noticed = [str(one.message) for one in said if "metrics.jsonl" in str(one.message)]
    assert len(noticed) == 1 and "no line of step 1: " in noticed[0] and "of step 2: " in noticed[0]
    assert metrics.read_text() == lines[0] + lines[2]
    assert (workdir / "model" / "model.safetensors").read_bytes() == weights

    # The last line is the one that is gone: the figures of another step do not stand for it.
    finished.unlink()
    metrics.write_text(lines[0] + lines[1])
    with pytest.warns(UserWarning, match="no line of step 2: "):
        assert train(config, workdir) == summary | {"final": {}}

    # All checkpoints are lost, twice.
    for name in ("metrics_before.jsonl", "metrics_before_2.jsonl"):
        before = metrics.read_bytes()
        shutil.rmtree(workdir / "checkpoints")
        finished.unlink()
        with pytest.warns(UserWarning, match=f"their metrics are in {re.escape(name)}"):
            assert train(config, workdir)["updates"] == summary["updates"]
        assert (workdir / name).read_bytes() == before


def test_settings_that_an_earlier_version_lacked_may_stand_at_their_defaults(
    checkpoints: Tiny, tmp_path: Path
):
    config = checkpoints.config("grpo", {"steps": 2, **NO_EVALUATION})
    workdir = tmp_path / "run"
    with after_call(rollouts, "rollout_metrics", 2, tell()), pytest.raises(Stopped):
        train(config, workdir)
    there = json.loads((workdir / "config.json").read_text())
    # Of two that are lacking, one is set: that one is a change.
    del there["rollout"]["seats"], there["rollout"]["group"]
    (workdir / "config.json").write_text(json.dumps(there))
    with pytest.raises(ValueError, match=r"another config \(rollout.group: there absent, here 4\)"):
        train(config, workdir)
    there["rollout"]["group"] = 4
    (workdir / "config.json").write_text(json.dumps(there))
    assert train(config, workdir)["steps"] == 2
    assert json.loads((workdir / "config.json").read_text())["rollout"]["seats"] is None


def as_an_earlier_version_wrote_it(config: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a run of GRPO under the names that the settings had before: where a name
    has stayed the value is that of `config`, and 0 or "" where that is None."""
    before = json.loads((ROOT / "tests" / "configuration" / "old_config.json").read_text())
    for section, values in config.items():
        if not isinstance(before.get(section), dict):
            before |= {section: values} if section in before else {}
            continue
        for name in before[section].keys() & values.keys():
            if values[name] is not None:
                before[section][name] = values[name]
    before["task"]["options"] = config["task"]["options"]
    before["evaluation"]["rows"] = config["evaluation"]["rows_at_once"]
    before["samples"]["rows"] = config["samples"]["per_file"]
    return before


def test_a_run_of_an_earlier_version_goes_on_the_same(checkpoints: Tiny, tmp_path: Path):
    """Its settings have today's names from then on; one that has changed is refused under today's
    name."""
    config = checkpoints.config("grpo", {"steps": 3, "checkpoint.every": 9, **NO_EVALUATION})
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    train(config, whole)
    with after_call(rollouts, "rollout_metrics", 2, tell()), pytest.raises(Stopped):
        train(config, workdir)
    path = workdir / "config.json"
    before = as_an_earlier_version_wrote_it(json.loads(path.read_text()))
    assert before["rollout"]["slots"] == 0 and before["correction"]["enabled"] is False
    path.write_text(json.dumps(before | {"rollout": before["rollout"] | {"slots": 5}}))
    with pytest.raises(ValueError, match=r"config \(rollout.seats: there 5, here null\)"):
        train(config, workdir)
    path.write_text(json.dumps(before))
    train(config, workdir)
    assert_same_run(workdir, whole)
    assert path.read_text() == (whole / "config.json").read_text()


# ---- damage


def test_a_run_whose_newest_checkpoint_is_damaged_ends_the_same(
    undisturbed: Path, checkpoints: Tiny, tmp_path: Path, caplog
):
    """Every file of it cut to half; what was trained after the one before it is trained again."""
    workdir = tmp_path / "run"
    with after_call(rollouts, "rollout_metrics", 5, tell()), pytest.raises(Stopped):
        train(checkpoints.config("scope", STOPPING), workdir)
    assert steps(workdir) == [3, 4]
    for path in (workdir / "checkpoints" / "4").rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    train(checkpoints.config("scope", STOPPING), workdir)
    assert "is damaged, trying the one before it" in caplog.text
    assert_same_run(workdir, undisturbed)


# ---- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """`small_disk(bytes)`: a folder that is a file system of that size."""
    made: list[Path] = []

    def make(size: int) -> Path:
        folder = tmp_path / f"disk{len(made)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if (
            shutil.which("mount") is None
            or subprocess.run(command, capture_output=True, check=False).returncode
        ):
            pytest.skip("file systems cannot be mounted here")
        made.append(folder)
        return folder

    yield make
    for folder in made:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """A file that leaves `leave` bytes free."""
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(max(shutil.disk_usage(folder).free - leave, 0)))
    return ballast


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    small_disk, undisturbed: Path, checkpoints: Tiny, caplog, capfd
):
    def size(folder: Path) -> int:
        return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))

    one = size(undisturbed / "checkpoints" / "3")
    disk = small_disk(20 * one)
    # Room for the first two checkpoints or so: file systems count a file's bytes differently.
    ballast = fill(disk, int(2.6 * one))
    more = {"steps": 5, "checkpoint.every": 1, "checkpoint.keep": 5, **NO_EVALUATION}
    arguments = checkpoints.program("grpo", disk / "run", more)
    # With the devices of this process, in which it goes on.
    done = run_program(arguments, checkpoints.folder, code=1, devices=jax.device_count())
    last = done.stderr.strip().splitlines()[-1]
    assert (
        last.startswith(f"error: {disk / 'run'}")
        and "no room to write (disk or quota is full)" in last
    )
    assert "Traceback" not in done.stderr and "make room and start the same command again" in last
    kept = steps(disk / "run")
    assert kept in ([1], [1, 2], [1, 2, 3]) and not (disk / "run" / "summary.json").exists()
    ballast.unlink()
    capfd.readouterr()
    train(checkpoints.config("grpo", more), disk / "run")
    out, err = capfd.readouterr()
    assert f"resuming {disk / 'run'} at step {kept[-1]}" in out
    assert "damaged" not in err + caplog.text
    train(checkpoints.config("grpo", more), checkpoints.folder / "roomy")
    assert_same_run(disk / "run", checkpoints.folder / "roomy")


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # of TensorBoard's writer
def test_metrics_on_a_full_disk(small_disk):
    disk = small_disk(1 << 17)
    writer = MetricsWriter(disk / "run")
    writer.write(0, {"reward/mean": 0.5})
    ballast = fill(disk, 0)
    with pytest.raises(OSError) as full:
        for step in range(1, 4000):
            writer.write(step, {"reward/mean": 0.25})
    assert is_full(full.value)
    with contextlib.suppress(OSError):
        writer.close()
    ballast.unlink()
    whole = read_metrics(disk / "run" / "metrics.jsonl")
    assert [row["step"] for row in whole] == list(range(len(whole))) and len(whole) < 3999
    with MetricsWriter(disk / "run", resume_step=1) as writer:
        writer.write(1, {"reward/mean": 0.75})
    assert [
        (row["step"], row["reward/mean"]) for row in read_metrics(disk / "run" / "metrics.jsonl")
    ] == [(0, 0.5), (1, 0.75)]


# ---- numbers that are not finite


@contextlib.contextmanager
def poisoned(*at: int) -> Iterator[None]:
    """NaN among the advantages of these steps."""
    own = learner.Learner.update

    def update(
        self: learner.Learner,
        rows: Any,
        group: int,
        advantage: Any,
        include: Any,
        key: Any,
        step: int,
        *more: Any,
    ) -> Any:
        bad = np.array(advantage)
        if step in at:
            bad[..., 0] = np.nan
        return own(self, rows, group, bad, include, key, step, *more)

    learner.Learner.update = update  # type: ignore[method-assign]
    try:
        yield
    finally:
        learner.Learner.update = own  # type: ignore[method-assign]


def arrays(path: Path) -> dict[str, np.ndarray]:
    return load_file(path / "model" / "model.safetensors")


def test_a_skipped_update_is_never_checkpointed(checkpoints: Tiny, tmp_path: Path):
    """Skipped at a checkpoint's step, and at the last one: the summary, the model and a resume
    behave."""

    def config(**more: Any) -> ConfigDict:
        settings = {"steps": 4, "checkpoint.every": 2, **NO_EVALUATION, **more}
        return checkpoints.config("grpo", settings)

    workdir = tmp_path / "run"
    with poisoned(1, 3):
        summary = train(config(), workdir)
        # The checkpoint that was left out after step 2 follows after the next good step; after the
        # last there is none.
        assert steps(workdir) == [3]
        assert (summary["updates"], summary["skipped"], summary["steps"]) == (2, 2, 4)
        rows = read_metrics(workdir / "metrics.jsonl")
        assert [row["grad/skipped_now"] for row in rows] == [0, 1, 0, 1] and [
            row["grad/skipped"] for row in rows
        ] == [0, 1, 1, 2]
        assert (
            rows[1]["grad/norm"] is None
            and rows[1]["loss/total"] is None
            and rows[2]["grad/norm"] >= 0
        )
        assert all(np.isfinite(x).all() for x in arrays(workdir).values())

        # A finished run is left alone, although its last checkpoint is older.
        stamp = (workdir / "model" / "model.safetensors").stat().st_mtime_ns
        assert train(config(), workdir) == summary
        assert (workdir / "model" / "model.safetensors").stat().st_mtime_ns == stamp

        # Killed before the summary: from the last good state, to the same end.
        whole = tmp_path / "whole"
        shutil.copytree(workdir, whole)
        (workdir / "summary.json").unlink()
        shutil.rmtree(workdir / "model")
        train(config(), workdir)
        assert_same_run(workdir, whole)
    # The exported model is that of the last good update: as if the last step had not been.
    with poisoned(1):
        train(config(steps=3), tmp_path / "three")
        train(config(**{"checkpoint.every": 1}), tmp_path / "other")
    for name, x in arrays(tmp_path / "three").items():
        np.testing.assert_array_equal(arrays(workdir)[name], x, err_msg=name)
    with Checkpoints(tmp_path / "other" / "checkpoints") as kept:
        assert kept.steps() == [3, 4]
    assert any((arrays(workdir)[name] != x).any() for name, x in arrays(tmp_path / "other").items())


def test_a_stop_after_skipped_updates_saves_what_was_before_them(checkpoints: Tiny, tmp_path: Path):
    config = checkpoints.config("grpo", {"steps": 4, "checkpoint.every": 9, **NO_EVALUATION})
    workdir = tmp_path / "run"
    train(config, tmp_path / "whole")
    with (
        poisoned(1),
        after_call(rollouts, "rollout_metrics", 3, tell()),
        pytest.raises(Stopped, match=r"goes on at step 1$"),
    ):
        train(config, workdir)
    assert steps(workdir) == [1]
    train(config, workdir)  # whatever it was has passed
    assert_same_run(workdir, tmp_path / "whole")


@pytest.mark.long
def test_after_k_skipped_updates_a_resume_begins_at_the_last_good_state(
    checkpoints: Tiny, tmp_path: Path
):
    settings = {
        "steps": 6,
        "checkpoint.every": 1,
        "training.stop_after_skipped": 2,
        **NO_EVALUATION,
    }
    config, workdir = checkpoints.config("grpo", settings), tmp_path / "run"
    train(config, tmp_path / "whole")
    for _ in range(2):  # it does not get past them, and does not lose anything by trying again
        with (
            poisoned(2, 3, 4),
            pytest.raises(RuntimeError, match=r"step 3: 2 updates in a row were not finite"),
        ):
            train(config, workdir)
        assert steps(workdir)[-1] == 2 and not (workdir / "summary.json").exists()
        rows = read_metrics(workdir / "metrics.jsonl")
        assert [row["grad/skipped_now"] for row in rows] == [0, 0, 1]
    train(config, workdir)
    assert_same_run(workdir, tmp_path / "whole")


def test_a_run_with_infinite_rewards_is_the_run_without_them(
    checkpoints: Tiny, tmp_path: Path, monkeypatch
):
    """Every fifth verdict is not finite, or None: the same numbers, finite ones, and as many rows
    counted."""
    own = tasks.Arithmetic.verify

    def config() -> ConfigDict:
        return checkpoints.config("grpo", {"steps": 2, **NO_EVALUATION})

    for name, bad in (("none", (None,)), ("odd", (float("inf"), float("nan"), -float("inf")))):

        def verify(self: Any, problems: Any, texts: Any, bad: Any = bad) -> Any:
            return [
                bad[n // 5 % len(bad)] if n % 5 == 0 else verdict
                for n, verdict in enumerate(own(self, problems, texts))
            ]

        monkeypatch.setattr(tasks.Arithmetic, "verify", verify)
        assert train(config(), tmp_path / name)["skipped"] == 0
    rows = read_metrics(tmp_path / "odd" / "metrics.jsonl")
    assert all(0 <= row["reward/mean"] <= 1 and row["reward/unscored"] > 0 for row in rows)
    assert any(row["grad/norm"] > 0 for row in rows)
    assert_same_run(tmp_path / "odd", tmp_path / "none")
    assert all(np.isfinite(x).all() for x in arrays(tmp_path / "odd").values())
