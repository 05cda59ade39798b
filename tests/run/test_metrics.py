"""Metrics, phase timer and progress."""

import io
import math
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from scope_jax.run import metrics as metrics_lib
from scope_jax.run.metrics import MetricsWriter, PhaseTimer, progress, read_metrics


def scalars(workdir):
    """{tag: [(step, value)]} as TensorBoard itself reads the folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(workdir / "tb"))
    reader.Reload()
    return {
        tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]
    }


def test_lines_and_events(tmp_path):
    with MetricsWriter(tmp_path, resume_step=0) as writer:
        writer.write(0, {"reward/mean": 0.25, "scope/selected": 3, "grad/norm": jnp.float32(1.5)})
        assert (
            (tmp_path / "metrics.jsonl").read_text()
            == '{"step": 0, "reward/mean": 0.25, "scope/selected": 3, "grad/norm": 1.5}\n'
        )  # On disk before the writer is closed.
        writer.write(1, {"reward/mean": np.float32("nan"), "grad/norm": math.inf})
    assert read_metrics(tmp_path / "metrics.jsonl")[1] == {
        "step": 1,
        "reward/mean": None,
        "grad/norm": None,
    }
    seen = scalars(tmp_path)
    assert seen["scope/selected"] == [(0, 3.0)]
    assert seen["grad/norm"] == [(0, 1.5), (1, math.inf)]
    assert math.isnan(seen["reward/mean"][1][1])


def test_resume_drops_what_will_be_written_again(tmp_path):
    with MetricsWriter(tmp_path, resume_step=0) as writer:
        for step in range(5):
            writer.write(step, {"x": 10 + step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "x": 1')  # What a kill leaves.
    time.sleep(1.1)  # Event files are ordered by the second in their name.
    with MetricsWriter(tmp_path, resume_step=3) as writer:
        assert [row["step"] for row in read_metrics(writer.path)] == [0, 1, 2]
        writer.write(3, {"x": 30})
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["x"]) for row in rows] == [(0, 10), (1, 11), (2, 12), (3, 30)]
    assert scalars(tmp_path)["x"] == [(0, 10.0), (1, 11.0), (2, 12.0), (3, 30.0)]
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith("tmp")] == []


def test_bad_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\nnot json\n{"step": 1}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not a metrics line"):
        read_metrics(path)


def test_a_metric_must_be_a_number(tmp_path):
    with (
        MetricsWriter(tmp_path) as writer,
        pytest.raises(ValueError, match="metric x must be one number, not ndarray"),
    ):
        writer.write(0, {"x": np.zeros(2)})


def test_phases_add_up(monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 12.5, 20.0, 20.5])
    monkeypatch.setattr(metrics_lib.time, "perf_counter", lambda: next(clock))
    timer = PhaseTimer()
    with timer("rollout"):
        pass
    with timer("rollout"):
        pass
    with pytest.raises(KeyError), timer("prm"):
        raise KeyError
    assert timer.pop() == {"time/rollout": 3.5, "time/prm": 0.5}
    assert timer.pop() == {}


def test_progress_in_a_log_is_lines(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    bar = progress(100, initial=40, desc="train")
    for _ in range(60):
        bar.update(1)
    bar.close()
    lines = log.getvalue().splitlines()
    assert (
        len(lines) == 2 and "\r" not in log.getvalue()
    )  # The first drawing and the last: 10 s never passed.
    assert lines[0].startswith("train:  40%") and "40/100" in lines[0] and "100/100" in lines[1]


def test_importing_the_room_is_cheap():
    code = (
        "import sys, scope_jax.run\nprint({'tensorboard', 'matplotlib', 'orbax', 'tensorflow'} &"
        " {name.split('.')[0] for name in sys.modules})\n"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout
        == "set()\n"
    )
