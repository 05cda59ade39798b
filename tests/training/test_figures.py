"""The figures of a step against a case computed by hand, and what they may not do to a run."""

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scope_jax import models, rollout
from scope_jax.devices import peaks as peaks_module
from scope_jax.devices.mesh import make_mesh
from scope_jax.devices.peaks import Peaks, measured_peaks, peaks
from scope_jax.learning import LossSpec, OptimizerSpec, UpdateSpec
from scope_jax.training import figures
from scope_jax.training.figures import StepFigures, peak_memory, read_per_step
from scope_jax.types import Rollout

D, F, L, N, K, H, V = 8, 16, 2, 2, 2, 4, 32
SIZES = dict(
    vocab_size=V, hidden_size=D, num_layers=L, num_heads=N, num_kv_heads=K, head_size=H, ffn_size=F
)
CONFIG = models.ModelConfig(**SIZES)
LIMITS = Peaks("made up", flops=1e9, memory_rate=1e6, source="published")
# Two prompts of 2 and 3 tokens, two rows each, of 1, 4, 2 and 3 written tokens.
PROMPTS, WRITTEN = [[1, 2], [3, 4, 5]], [1, 4, 2, 3]
# Of a layer's weights: query, key, value, output, gate, up, down; its two norms; three biases.
MATRICES = 4 * D * D + 3 * D * F
LAYER = MATRICES + 2 * D + 3 * D


def rows_of_four() -> Rollout:
    rows = rollout.from_prompts(PROMPTS, 2, 8)
    return rows.replace(length_B=rows.length_B + jnp.asarray(WRITTEN, jnp.int32))


def test_the_roofline_of_a_rollout_by_hand():
    params = models.init(CONFIG, jax.random.key(0))
    weights = 4 * (L * LAYER + D + D * V)  # the last norm and the head; not the embedding
    assert read_per_step(params) == weights
    policy, found = rollout.Generator(params, CONFIG), StepFigures()
    sampling = rollout.SampleSpec(max_new_tokens=4)
    found.rolled_out(policy, sampling, rows_of_four(), 2, seconds=0.25)
    # Steps: 3, for the row of four tokens. Live positions: token 2, 3, 4 behind two prompt tokens
    # see 3, 4, 5; token 2 behind three sees 4; tokens 2, 3 behind three see 4, 5. In two layers.
    positions = L * (3 + 4 + 5 + 4 + 4 + 5)
    decode = 3 * weights + positions * 2 * K * H * 4
    # Prompts: products, pairs of query and key in attention (3 and 6), and one head each.
    prefill = 5 * L * 2 * MATRICES + L * (3 + 6) * 4 * N * H + 2 * 2 * D * V
    assert (found.decode_bytes, found.prefill_flops) == (decode, prefill)
    figures = found.metrics(LIMITS, devices=2)
    assert figures == {
        "throughput/decode_roofline_share": pytest.approx(
            (decode / 1e6 + prefill / 2 / 1e9) / 0.25
        ),
        "throughput/rollout_tokens_per_s_per_device": 10 / 0.25 / 2,
        "time/rollout_program": 0.25,
    }
    # A second batch in the same step, on two seats, with keys in 8 bits: 6 tokens on 2 seats.
    narrow = rollout.SampleSpec(max_new_tokens=4, seats=2, cache="int8")
    found.rolled_out(policy, narrow, rows_of_four(), 2, seconds=0.75)
    more = 3 * weights + positions * 2 * K * (H + 4)
    assert found.decode_bytes == decode + more and found.rollout_seconds == 1.0


def test_a_tied_embedding_is_read_as_the_head():
    tied = models.ModelConfig(**SIZES, tied=True)
    assert read_per_step(models.init(tied, jax.random.key(0))) == 4 * (L * LAYER + D + V * D)


@pytest.mark.parametrize("shape", [(4, 1, 2), (2, 2, 2), (8, 1, 1)])
def test_each_device_reads_its_part(shape: tuple[int, int, int]):
    """Weights are split over tensor, rows over data and fsdp (where they divide)."""
    mesh = make_mesh(*shape)
    data, fsdp, tensor = shape
    with jax.set_mesh(mesh):
        params = models.init(CONFIG, jax.random.key(0), mesh=mesh)
        params = models.decode_layout(CONFIG, params, mesh)
        found, policy = StepFigures(), rollout.Generator(params, CONFIG)
        found.rolled_out(policy, rollout.SampleSpec(), rows_of_four(), 2, seconds=1.0)
    split = MATRICES + 3 * D  # what lies over tensor: all matrices, and the three biases
    weights = 4 * (L * (split / tensor + 2 * D) + D + D * V / tensor)
    holders = (data * fsdp if 4 % (data * fsdp) == 0 else 1) * tensor
    positions = L * (3 + 4 + 5 + 4 + 4 + 5)
    assert found.decode_bytes == 3 * weights + positions * 2 * K * H * 4 / holders


@pytest.mark.parametrize("lora", [None, models.LoraSpec(2)])
def test_the_use_of_an_update_by_hand(lora: Any, monkeypatch: pytest.MonkeyPatch):
    spec = UpdateSpec(LossSpec(), OptimizerSpec(learning_rate=1e-3), lora=lora)
    learner: Any = types.SimpleNamespace(model=CONFIG, spec=spec, share_used=1.0)
    clock = iter([10.0, 12.0])
    monkeypatch.setattr(figures.time, "perf_counter", lambda: next(clock))
    found = StepFigures()
    with found.updating(learner, rows_of_four(), 2, times=3):
        pass
    # Pairs of query and key: the prompts' own, 3 and 6, then those of the rows behind them.
    pairs = 3 + 6 + 3 + (3 + 4 + 5 + 6) + (4 + 5) + (4 + 5 + 6)
    forward = 15 * L * 2 * MATRICES + L * pairs * 4 * N * H + 10 * 2 * D * V
    assert found.update_flops == 3 * (3 if lora is None else 2) * forward
    assert found.metrics(LIMITS, devices=4) == {
        "throughput/update_mfu": pytest.approx(found.update_flops / 2.0 / 4 / 1e9),
        "throughput/update_tokens_per_s_per_device": 3 * 15 / 2.0 / 4,
        "time/update_program": 2.0,
    }


def test_updates_that_were_left_out_do_not_count():
    spec = UpdateSpec(LossSpec(), OptimizerSpec(learning_rate=1e-3))
    learner: Any = types.SimpleNamespace(model=CONFIG, spec=spec, share_used=1.0)
    whole, part, none = StepFigures(), StepFigures(), StepFigures()
    for found, used in ((whole, 1.0), (part, 0.25), (none, 0.0)):
        with found.updating(learner, rows_of_four(), 2, times=2):
            learner.share_used = used
    assert part.update_flops == whole.update_flops / 4
    assert part.update_tokens == whole.update_tokens / 4 == 30 / 4
    assert none.metrics(LIMITS, 1) == {}


def test_a_step_without_a_part_has_no_figures_of_it():
    assert StepFigures().metrics(LIMITS, 1) == {}


def test_measured_peaks_are_said_once(capsys: pytest.CaptureFixture):
    peaks.cache_clear()
    found = peaks()
    assert peaks() is found and found.source == "measured"
    [line] = capsys.readouterr().out.splitlines()
    assert line == f"peaks of {found}" and line.endswith("a device (measured)")
    # Within what a machine of today can do.
    assert 1e8 < found.memory_rate < 1e12 and 1e8 < found.flops < 1e14


def test_published_peaks_are_taken_where_there_are_any(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    device = types.SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(peaks_module.jax, "local_devices", lambda: [device])
    peaks.cache_clear()
    try:
        assert peaks() == Peaks(device.device_kind, 989.4e12, 3.35e12, "published")
    finally:
        peaks.cache_clear()
    want = "peaks of NVIDIA H100 80GB HBM3: 3,350 GB/s, 989,400 GFLOP/s a device (published)\n"
    assert capsys.readouterr().out == want


def test_measuring_leaves_the_mesh_that_is_set(capsys: pytest.CaptureFixture):
    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        measured_peaks()
        assert jax.sharding.get_mesh() == mesh


def test_peak_memory_of_the_process_where_devices_do_not_count():
    block = np.ones(50_000_000 // 8)
    [(name, gigabytes)] = peak_memory().items()
    assert name == "memory/process_peak_gb"
    assert block.nbytes / 1e9 < gigabytes < 1000


def test_peak_memory_of_the_fullest_device(monkeypatch: pytest.MonkeyPatch):
    used = [{"peak_bytes_in_use": 3 * 10**9}, {"peak_bytes_in_use": 5 * 10**9}, None]
    devices = [types.SimpleNamespace(memory_stats=lambda s=s: s) for s in used]
    monkeypatch.setattr(figures.jax, "local_devices", lambda: devices)
    assert peak_memory() == {"memory/device_peak_gb": 5.0}
