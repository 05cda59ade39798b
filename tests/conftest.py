"""Tests run on 8 CPU devices, with strict promotion rules, and without a network."""

import json
import os
from pathlib import Path

import jax
import pytest
from support.tiny_runs import POLICY, PRM, Tiny, command, run_program

# Nearly all of the suite's time is compilation. LLVM's level 0 halves it, the older emitters of
# loops halve it again; the arithmetic that XLA chose stays as it is.
FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if jax.__version_info__ < (
    0,
    11,
):  # XLA ends the process at a flag that it does not know, and this one may go
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
# Read when the first device is asked for. A flag given from outside stands after ours, and the
# later one wins.
os.environ["XLA_FLAGS"] = f"{' '.join(FLAGS)} {os.environ.get('XLA_FLAGS', '')}".strip()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"  # for programs that a test starts; this one is told below
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module", autouse=True)
def _room_for_programs():
    """Each compiled program takes a few memory mappings, of which a process may have some 65,000:
    the suite would use them up."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 25_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A policy that solves some of its problems, and a process reward model of its steps, by the
    command line."""
    folder = tmp_path_factory.mktemp("tiny")
    made = {}
    for name, config, settings in (
        ("policy", "base", POLICY),
        (
            "prm",
            "prm",
            {**PRM, "start": str(folder / "policy"), "rollouts.policy": str(folder / "policy")},
        ),
    ):
        done = run_program(command("supervise", config, folder / name, settings), folder)
        made[name] = json.loads(done.stdout.splitlines()[-1])
    return Tiny(folder, folder / "policy", folder / "prm", made)
