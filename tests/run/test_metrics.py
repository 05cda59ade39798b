"""Metrics, phase timer and progress."""

import io
import json
import math
import subprocess
import sys
import time
import warnings

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


@pytest.mark.parametrize(
    ("steps", "until", "kept", "says"),
    [
        # Lines as (step, which of them); the last of several stays.
        ("0a 1a 2a", 3, "0a 1a 2a", None),
        ("0a 1a 2a 2b 4a", 2, "0a 1a", None),  # what is written again may look as it likes
        ("", 0, "", None),
        ("0a 1a", 0, "", None),
        ("0a 2a", 3, "0a 2a", "no line of step 1: these metrics are lost, the run is not"),
        ("", 3, "", "no line of steps 0-2: these metrics are lost, the run is not"),
        ("3a", 6, "3a", "no line of steps 0-2, 4-5: these metrics are lost, the run is not"),
        ("0a 1a", 3, "0a 1a", "no line of step 2: these metrics are lost, the run is not"),
        ("0a 0a 1a", 2, "0a 1a", "more than one line of step 0: the last one is kept"),
        ("0a 1a 0b 1b 2a", 3, "0b 1b 2a", "more than one line of steps 0-1: the last one is kept"),
        ("1a 0a 2a", 3, "0a 1a 2a", "lines out of order: they are put in order"),
        (
            "2a 0a 0b 0c",
            3,
            "0c 2a",
            "no line of step 1: these metrics are lost, the run is not; more than one line of step"
            " 0: the last one is kept",
        ),
        (
            " ".join(f"{n}a" for n in range(1, 30, 2)),
            30,
            " ".join(f"{n}a" for n in range(1, 30, 2)),
            "no line of steps 0, 2, 4, 6, 8, 10, 12, 14, 16, 18 and others, 15 in all: these"
            " metrics are lost, the run is not",
        ),
    ],
)
def test_each_step_before_a_resume_has_one_line_or_is_named(tmp_path, steps, until, kept, says):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": int(word[:-1]), "which": word[-1]} for word in steps.split()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        MetricsWriter(tmp_path, resume_step=until).close()
    assert [str(warning.message) for warning in caught] == ([f"{path}: {says}"] if says else [])
    assert [f"{row['step']}{row['which']}" for row in read_metrics(path)] == kept.split()


def test_a_file_that_is_gone_is_noticed(tmp_path):
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: no line of steps 0-1: these metrics"):
        writer = MetricsWriter(tmp_path, resume_step=2)
    with writer:
        writer.write(2, {"x": 1})
    assert [row["step"] for row in read_metrics(writer.path)] == [2]


@pytest.mark.parametrize(
    "line", ["not json", "[]", "{}", '{"step": -1}', '{"step": true}', '{"step": 1.0}', "[" * 99999]
)
def test_bad_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 0}}\n{line}\n{{"step": 1}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not a metrics line.*delete the line"):
        read_metrics(path)


@pytest.mark.parametrize("letter", list("\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\r"))
def test_only_a_newline_ends_a_line(tmp_path, letter):
    path = tmp_path / "metrics.jsonl"
    inside = json.dumps({"step": 1, f"a{letter}b": 2}, ensure_ascii=False)
    inside = inside.replace("\\r", " ") if letter == "\r" else inside
    path.write_text(f'{{"step": 0}}\n{inside}\n{{"step": 2}}\n', encoding="utf-8", newline="")
    if letter < " ":  # as it stands, no text of JSON holds one
        path.write_bytes(b'{"step": 0}\n{"step": 1%c "a": 2}\n{"step": 2}\n' % ord(letter))
        with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not a metrics line"):
            read_metrics(path)
        return
    assert [row["step"] for row in read_metrics(path)] == [0, 1, 2]


def test_numbers_that_json_does_not_have_are_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "a": NaN, "b": -Infinity, "c": 1e999, "d": 1e-3}\n')
    assert read_metrics(path) == [{"step": 0, "a": None, "b": None, "c": None, "d": 0.001}]
    MetricsWriter(tmp_path, resume_step=1).close()
    assert path.read_text() == '{"step": 0, "a": null, "b": null, "c": null, "d": 0.001}\n'


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
