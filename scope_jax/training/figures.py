"""The figures of a step: how near its programs came to what the devices can do.

Seconds are those of a program alone, measured from its call until its results are there; in the
first step that includes compiling it.
"""

import contextlib
import dataclasses
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from scope_jax.devices.current import current_mesh
from scope_jax.devices.memory import local_bytes
from scope_jax.devices.mesh import row_parts, to_host
from scope_jax.devices.peaks import Peaks
from scope_jax.models import Params
from scope_jax.models.costs import (
    cache_bytes,
    decode_steps,
    live_positions,
    prefill_flops,
    share_of_experts,
    trained_flops,
)
from scope_jax.models.weights import flatten
from scope_jax.rollout import Generator, SampleSpec
from scope_jax.training.learner import Learner
from scope_jax.types import Rollout


@dataclasses.dataclass
class StepFigures:
    """What the rollouts and the updates of a step had to do, and the seconds that they took."""

    rollout_seconds: float = 0.0
    rollout_tokens: float = 0.0
    decode_bytes: float = 0.0  # that each device had to read, at least
    prefill_flops: float = 0.0  # of all devices together
    update_seconds: float = 0.0
    update_tokens: float = 0.0  # prompts once, and what stands behind them
    update_flops: float = 0.0  # of all devices together

    def rolled_out(
        self,
        policy: Generator,
        sampling: SampleSpec,
        rows: Rollout,
        group: int,
        seconds: float,
    ) -> None:
        """`policy` wrote `rows` in this time, `group` consecutive ones behind each prompt. All
        processes call it."""
        prompt_B, written_B = _lengths(rows)
        config = policy.config
        self.rollout_seconds += seconds
        self.rollout_tokens += float(np.sum(written_B))
        self.prefill_flops += prefill_flops(config, prompt_B[::group])
        B = len(written_B)
        seats = B if sampling.seats is None else min(sampling.seats, B)
        kept_in = policy.params["embed"].dtype.itemsize
        position = cache_bytes(config, kept_in, int8=sampling.cache == "int8")
        mesh = current_mesh()
        holders = row_parts(seats) * (1 if mesh is None else mesh.shape["tensor"])
        self.decode_bytes += (
            decode_steps(written_B, seats)
            * read_per_step(policy.params, share_of_experts(config, seats))
            + live_positions(config, prompt_B, written_B) * position / holders
        )

    @contextlib.contextmanager
    def updating(
        self, learner: Learner, rows: Rollout, group: int, times: float = 1
    ) -> Iterator[None]:
        """Within it, `learner` learns `times` times from `rows`, `group` consecutive ones behind
        each prompt, and is waited for; what it left out (`learner.share_used`) does not count. All
        processes call it."""
        start = time.perf_counter()
        yield
        times *= learner.share_used
        self.update_seconds += time.perf_counter() - start
        prompt_B, written_B = _lengths(rows)
        prompt_P, written_PM = prompt_B[::group], written_B.reshape(-1, group)
        self.update_tokens += times * float(np.sum(prompt_P) + np.sum(written_PM))
        frozen = learner.spec.lora is not None
        flops = trained_flops(learner.model, prompt_P, written_PM, frozen=frozen)
        self.update_flops += times * flops

    def metrics(self, peaks: Peaks, devices: int) -> dict[str, float]:
        """As metrics; of a part that the step did not have, none.

        `throughput/decode_roofline_share` is the least time of the rollouts over that which they
        took. The least: the bytes that a device has to read while decoding, at the peak rate of its
        memory (its part of the weights in each of the fewest steps that write these rows on these
        seats, and the live keys and values of each token, the rows spread evenly over the devices
        that hold rows), and the operations of the prefill of each distinct prompt, at the peak rate
        of all devices. `throughput/update_mfu` is `models.costs.trained_flops` over the seconds of
        the update and the peak rate of all devices.
        """
        figures: dict[str, float] = {}
        if self.rollout_seconds:
            least = self.decode_bytes / peaks.memory_rate
            least += self.prefill_flops / devices / peaks.flops
            rate = self.rollout_tokens / self.rollout_seconds / devices
            figures |= {
                "throughput/decode_roofline_share": least / self.rollout_seconds,
                "throughput/rollout_tokens_per_s_per_device": rate,
                "time/rollout_program": self.rollout_seconds,
            }
        if self.update_tokens:
            possible = self.update_seconds * devices * peaks.flops
            rate = self.update_tokens / self.update_seconds / devices
            figures |= {
                "throughput/update_mfu": self.update_flops / possible,
                "throughput/update_tokens_per_s_per_device": rate,
                "time/update_program": self.update_seconds,
            }
        return figures


def read_per_step(params: Params, of_experts: float = 1.0) -> float:
    """Bytes of one device's weights that a decode step reads: all but an embedding that is no head
    too, of which it takes a few rows; `of_experts`: the share of the experts that it reads."""
    flat = flatten(params)
    if "head" in flat:
        del flat["embed"]
    experts = {path: flat.pop(path) for path in list(flat) if path.startswith("layers/expert_")}
    if not experts:
        return local_bytes(flat)
    return local_bytes(flat) + local_bytes(experts) * of_experts


def peak_memory() -> dict[str, float]:
    """The most memory that was in use at once since the process began, in GB: of the fullest of its
    devices, or where the backend does not count (CPUs) of the process."""
    stats: list[dict[str, Any]] = [d.memory_stats() or {} for d in jax.local_devices()]
    used = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    if used:
        return {"memory/device_peak_gb": max(used) / 1e9}
    unit = 1 if sys.platform == "darwin" else 1024
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"memory/process_peak_gb": resident / 1e9}


def _lengths(rows: Rollout) -> tuple[np.ndarray, np.ndarray]:
    """(tokens of each row's prompt, tokens behind it)."""
    prompt_B, length_B = to_host((rows.prompt_length_B, rows.length_B))
    prompt_B = np.asarray(prompt_B, np.int64)
    return prompt_B, length_B - prompt_B
