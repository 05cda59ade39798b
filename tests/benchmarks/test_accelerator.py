"""`make accelerator`: the whole call in tiny shapes, with faults in some of its parts; its counts
by hand."""

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "accelerator.py"
sys.path.insert(0, str(ROOT / "benchmarks"))

from accelerator_parts import limits, plan, processes, table  # noqa: E402

WHOLE = ["device", "fixed", "update", "step", "parity", "varied", "prm", "attention", "long"]
FAULTS = {
    "small-fixed": ("failure", "failed", "RuntimeError: simulated failure"),
    "small-update": ("late", "skipped", " s left, needs about 1,000,000"),
    "small-varied": ("kill", "failed", "the process ended with signal SIGKILL"),
    "small-long": ("large", "skipped", "needs 1,000,000,000.0 GB, "),
}


def call(*arguments: str, **more) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, **more
    )


def played(folder: Path, faults: dict, *more: str) -> tuple[dict, str]:
    """(records of the parts, the table) of a call in tiny shapes whose `faults` came about."""
    named = ",".join(f"{name}:{fault}" for name, (fault, _, _) in faults.items())
    file = folder / "figures" / "a.json"
    done = call("--tiny", f"--json={file}", f"--simulate={named}", *more, timeout=300)
    assert done.returncode == 1, done.stderr[-3000:]  # parts failed
    found = json.loads(file.read_text())
    parts = found["parts"]
    assert found["size"] == "tiny"
    for name, (_, status, why) in faults.items():
        assert parts[name]["status"] == status and why in parts[name]["why"], parts[name]
    for name, record in parts.items():
        unexpected = name in WHOLE and name not in faults and record["status"] != "done"
        assert not unexpected, (name, record["why"], done.stderr[-3000:])

    # The table has each part, and the device stands above it.
    head, _, shown = done.stdout.rpartition("\n\n| part")
    assert "cpu (cpu); jax " in head.splitlines()[-1]
    for name, (_, status, why) in faults.items():
        [line] = [line for line in shown.splitlines() if line.startswith(f"| {name} ")]
        assert f"{status.upper()}: " in line and why in line
    assert str(file) in shown.splitlines()[-1]
    return parts, shown


def check_figures(parts: dict) -> None:
    """All numbers are finite, and those of a measured part are possible."""
    rows = [row for record in parts.values() for row in record["rows"]]
    assert all(math.isfinite(x) for row in rows for x in row.values() if isinstance(x, float))
    for name in set(WHOLE) & {name for name, record in parts.items() if record["rows"]}:
        for row in parts[name]["rows"]:
            assert "error_max" in row or (row["rate"] > 0 and 0 < row["share"] < 100), row
    for name in ("fixed", "update", "step", "varied", "prm", "long"):
        if name in parts and parts[name]["status"] == "done":
            [row] = parts[name]["rows"]
            assert row["seconds"] > 0 and row["compile_seconds"] >= 0 and row["peak_bytes"] > 1e7


def test_a_call_measures_what_it_can_and_says_of_the_rest_why_it_did_not(tmp_path):
    """Two parts, and four with a fault each; `test_every_part_in_tiny_shapes` is the whole call."""
    faults = FAULTS | {"long": FAULTS["small-long"]}
    del faults["small-long"]
    asked = ["fixed", *faults]
    parts, _ = played(tmp_path, faults, f"--parts={','.join(asked)}")
    assert list(parts) == [name for name in plan.NAMES if name in {"device", *asked}]
    check_figures(parts)
    assert parts["fixed"]["status"] == parts["device"]["status"] == "done"


@pytest.mark.long
def test_every_part_in_tiny_shapes(tmp_path):
    """One call measures all that it can here."""
    parts, shown = played(tmp_path, FAULTS)
    assert list(parts) == list(plan.NAMES)
    assert all(parts[name]["status"] == "done" for name in [*WHOLE, "greedy"]), parts["greedy"]
    check_figures(parts)
    rows = [row for record in parts.values() for row in record["rows"]]
    assert sum(isinstance(x, float) for row in rows for x in row.values()) > 100

    parity = {row["case"]: row for row in parts["parity"]["rows"]}
    assert len(parity) == 2 * (2 + 2 + 3)
    for case, row in parity.items():
        bound = 1e-4 if case.endswith("float32") else 0.5
        assert 0 <= row["error_mean"] <= row["error_max"] <= bound, row
        assert case.endswith("float32") or row["error_max"] > 1e-4  # else it was no bfloat16
    assert [row["equal"] for row in parts["greedy"]["rows"]] == [64, 64]
    assert "| within 1e-04" in shown


def test_what_cannot_be_asked_for(tmp_path):
    done = call("--parts=fixed,slow", cwd=tmp_path)
    assert done.returncode == 2 and "'slow' is no part; parts are device, fixed" in done.stderr
    done = call("--simulate=fixed:rain", cwd=tmp_path)
    assert done.returncode == 2 and "fixed:rain is no PART:failure|kill" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_worker_that_does_not_start(tmp_path):
    """Parts that need torch fail with its words; the others are not touched by it."""
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    arguments = ["--tiny", "--parts=torch-update", "--torch-python=/bin/false"]
    done = call(*arguments, f"--json={tmp_path}/a.json", env=env, timeout=100)
    record = json.loads((tmp_path / "a.json").read_text())["parts"]["torch-update"]
    assert done.returncode == 1 and record["status"] == "failed", done.stderr[-2000:]
    assert record["why"].startswith("the process ended with exit code 1")
    with pytest.raises(processes.WorkerDied, match="no-such-python does not start: No such file"):
        processes.Worker("torch", "tiny", "no-such-python")


# ---- counts


def test_counts_of_the_published_shape():
    """Qwen2.5-1.5B by hand: 1.54 billion weights of which 233 million are the vocabulary's, 28,672
    bytes of keys and values a position."""
    shape = plan.QWEN_1_5B
    layer = 2 * 1536 * 1536 + 2 * 1536 * 256 + 3 * 1536 * 8960
    assert limits.layer_weights(shape) == layer
    assert limits.weights(shape) == 28 * layer + 151_936 * 1536 == 1_543_569_408
    assert limits.position_bytes(shape, "bfloat16") == 28_672
    # Three rows of 3, 1 and 2 tokens behind 10: keys 11 + 12 and 11; two steps, or three where one
    # row sits at a time.
    lengths = [3, 1, 2]
    assert [limits.decode_steps(lengths, seats) for seats in (3, 2, 1)] == [2, 2, 3]
    peaks = {"flops": math.inf, "hbm_rate": 1e9}
    read = 2 * 2 * limits.weights(shape) + 34 * 28_672
    found = limits.rollout_seconds(shape, "bfloat16", 1, 10, lengths, 3, peaks)
    assert found == pytest.approx(read / 1e9, rel=1e-12)
    # 256 rows with 512 positions on average at 3.35 TB/s: some 125,000 tokens a second.
    peaks = {"flops": 989e12, "hbm_rate": 3.35e12}
    seconds = limits.rollout_seconds(shape, "bfloat16", 32, 256, [512] * 256, 256, peaks)
    assert 256 * 512 / seconds == pytest.approx(125_000, rel=0.03)


def test_counts_of_an_update():
    """Two prompts of 3 with four completions of 2: 14 tokens; 6 pairs in a prompt, and 3 + 2 x 3 in
    a completion with its prompt."""
    shape = plan.TINY
    weights = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) + 512 * 64
    assert limits.weights(shape) == weights
    pairs = 2 * 6 + 4 * (3 + 6)
    wanted = 6 * weights * 14 + 3 * 4 * 2 * 64 * pairs
    assert limits.update_flops(shape, 2, 3, 4, 2) == wanted
    assert limits.score_flops(shape, 1, 3) == 2 * (weights - 512 * 64) * 3 + 4 * 2 * 64 * 6


def test_lengths_with_much_room():
    lengths = plan.long_lengths(256, 4096, 1000)
    assert lengths == plan.long_lengths(256, 4096, 1000) and min(lengths) >= 1
    assert 900 < sum(lengths) / 256 < 1100 and max(lengths) == 4096
    assert lengths[0] == round(-math.log(1 - random.Random(0).random()) * 1000)


def test_the_table():
    row = {"case": "a", "seconds": 0.0123, "rate": 1234.5, "rate_unit": "tok/s", "share": 0.25}
    row |= {"of": "memory", "compile_seconds": 12.3, "peak_bytes": 2e9, "peak_is_own": False}
    lines = table.cells("p", {"status": "skipped", "why": "w", "rows": [row]})
    assert lines[0] == (
        *("p", "a", "12.3 ms", "1,234 tok/s", "25.0 % of memory", "12.3 s", "<= 2.00 GB", ""),
    )
    assert lines[1][:2] == ("p", "SKIPPED: w") and not any(lines[1][2:])
    assert [table.seconds(x) for x in (None, 2000.0, 1.5, 3e-6)] == ["", "2,000 s", "1.5 s", "3 us"]


# ---- what only an accelerator shows, with devices and memory that are made up


class Device:
    """A device that says what it was told to say of its memory."""

    platform = "gpu"
    device_kind = "NVIDIA H100 80GB HBM3"

    def __init__(self, stats):
        self.stats = stats

    def memory_stats(self):
        if isinstance(self.stats, Exception):
            raise self.stats
        return self.stats


@pytest.mark.parametrize(
    ("stats", "free", "peak"),
    [
        ({"bytes_limit": 70e9, "bytes_in_use": 20e9, "peak_bytes_in_use": 50e9}, 50e9, 50e9),
        ({"bytes_limit": 70e9}, 70e9, None),
        ({}, None, None),
        (None, None, None),
        (NotImplementedError("no statistics"), None, None),
    ],
)
def test_memory_as_devices_tell_it(monkeypatch, stats, free, peak):
    from accelerator_parts import device

    monkeypatch.setattr(device, "first", lambda: Device(stats))
    assert (device.free_bytes(), device.peak_bytes()) == (free, peak)
    assert device.peaks(1.0, 2.0) == {
        "flops": 989.4e12,
        "hbm_rate": 3.35e12,
        "source": "published of h100",
    }
    monkeypatch.setattr(Device, "device_kind", property(lambda self: 1 / 0))
    assert device.peaks(1.0, 2.0) == {"flops": 2.0, "hbm_rate": 1.0, "source": "measured"}


def test_a_gpu_is_seen_whatever_its_number(tmp_path):
    from accelerator_parts import device

    (tmp_path / "nvidiactl").touch()
    assert not device.nvidia_device(tmp_path)
    (tmp_path / "nvidia3").touch()
    assert device.nvidia_device(tmp_path)


def test_an_update_that_runs_out_of_memory_is_tried_in_smaller_parts(monkeypatch):
    import jax
    from accelerator_parts import device, training, work

    sent = []
    doing = work.Work(plan.SIZES["tiny"], sent.append)
    doing.begin(next(part for part in plan.PARTS if part.name == "update"), 100.0, {})
    asked = []

    def train_on(work, made, rows):
        asked.append(made.config.training.micro_batches)
        if len(asked) == 1:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
        return {"loss/total": 0.0}

    monkeypatch.setattr(training, "train_on", train_on)
    with jax.set_mesh(device.make_mesh(devices=jax.devices()[:1])):
        _, metrics, words = training.first_update(doing, None)
        assert asked == [1, 4] and metrics == {"loss/total": 0.0}
        assert words.startswith("remat ") and "micro-batches of 1 rows" in words
        assert words.endswith("micro-batches of 4 rows: out of memory)")
        # Nothing is hidden that is not about memory.
        doing.kept.clear()
        monkeypatch.setattr(training, "train_on", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            training.first_update(doing, None)
    # Of 8 rows, of the 64 that a real update has.
    doing.size = plan.FULL
    assert training.first_passes(doing) == 8
    assert limits.update_bytes(plan.QWEN_1_5B) == pytest.approx(30.9e9, rel=0.01)


def test_rollouts_that_would_take_too_long_are_cut(monkeypatch):
    from accelerator_parts.rollouts import fitted
    from accelerator_parts.work import Skip

    # 31 steps took 0.31 s: 99 steps at half as much again are 1.5 s.
    assert fitted([100, 50], 2, 0.31, 10.0) == ([100, 50], "")
    assert fitted([100, 50], 2, 0.31, 0.93) == ([50, 25], "; lengths cut to 50% for time")
    with pytest.raises(Skip, match="0 s left, needs about 1"):
        fitted([100, 50], 2, 0.31, 0.1)
