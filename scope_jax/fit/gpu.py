"""NVIDIA GPUs, compiled for with the compiler in JAX's CUDA plugin, without a GPU or a driver."""

import dataclasses
import importlib.util
import math
import os
from typing import Any

from scope_jax.devices.chips import Chip, chip

# The share of a GPU's memory that JAX's allocator takes, or grows to: the run reads this variable,
# and so does `fit`. docs.jax.dev/en/latest/gpu_memory_allocation.html
SHARE = "XLA_PYTHON_CLIENT_MEM_FRACTION"
DEFAULT_SHARE = 0.75
PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
# In a CUDA program's description of its target; the first two are the versions that
# jax-cuda13-plugin is built for.
CUDA, CUDNN = "13.0.0", (9, 12, 0)


@dataclasses.dataclass(frozen=True)
class Target:
    """What the compiler asks about a GPU: facts of the chip as the driver reports them (the CUDA
    programming guide's table of compute capabilities; OpenXLA keeps the same for its tests). name:
    as the driver says it. capability: major, minor. cores: streaming multiprocessors. memory, l2,
    bandwidth: bytes, and bytes per second. clock: GHz. pcie: bytes per second."""

    name: str
    capability: tuple[int, int]
    cores: int
    clock: float
    memory: int
    bandwidth: int
    l2: int
    pcie: int

    def description(self) -> str:
        """The protobuf text that XLA takes as `target_config`."""
        major, minor = self.capability
        device = {
            "name": self.name,
            "device_vendor": "NVIDIA Corporation",
            "platform_version": f"Compute Capability {major}.{minor}a",
            "core_count": self.cores,
            "clock_rate_ghz": self.clock,
            "device_memory_size": self.memory,
            "memory_bandwidth": self.bandwidth,
            "l2_cache_size": self.l2,
            "pcie_bandwidth": self.pcie,
            "ecc_enabled": True,
            "driver_version": CUDA,
            "runtime_version": CUDA,
            "compile_time_toolkit_version": CUDA,
            "dnn_version": ".".join(map(str, CUDNN)),
            "cuda_compute_capability": {
                "major": major,
                "minor": minor,
                "feature_extension": _Word("ACCELERATED_FEATURES"),
            },
            "device_interconnect_info": {"active_links": 18},
            **SAME,
        }
        return _text(
            {
                "gpu_device_info": device,
                "platform_name": "CUDA",
                "dnn_version_info": dict(zip(("major", "minor", "patch"), CUDNN, strict=True)),
                "device_description_str": self.name,
            }
        )


# What compute capabilities 9.0 and 10.0 have in common.
SAME = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "threads_per_core_limit": 2048,
    "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024,
    "thread_dim_limit_z": 64,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "registers_per_core_limit": 2**16,
    "registers_per_block_limit": 2**16,
    "shared_memory_per_core": 228 << 10,
    "shared_memory_per_block": 48 << 10,
    "shared_memory_per_block_optin": 227 << 10,
    "fpus_per_core": 128,
    "device_address_bits": 64,
}


class _Word(str):
    """A name of an enumeration, which stands without quotation marks."""


def _text(fields: dict[str, Any]) -> str:
    """Fields as protobuf text."""

    def value(item: Any) -> str:
        if isinstance(item, bool):
            return str(item).lower()
        if isinstance(item, str) and not isinstance(item, _Word):
            return f'"{item}"'
        return str(item)

    return " ".join(
        f"{key} {{ {_text(item)} }}" if isinstance(item, dict) else f"{key}: {value(item)}"
        for key, item in fields.items()
    )


@dataclasses.dataclass(frozen=True)
class GpuKind:
    """Hosts with GPUs that are joined by NVLink through switches: `kind:N` for one host of N GPUs,
    `kind:HxN` for H hosts. link_rate: bytes per second of a GPU's NVLink in one direction."""

    chip: Chip
    target: Target
    link_rate: float
    examples: tuple[str, ...] = ("1", "4", "8", "2x8")

    @property
    def limit(self) -> float:
        """Bytes that a run gets: the allocator's share of the memory. Raises ValueError where the
        variable that says it is no share."""
        return self.target.memory * share()

    @property
    def limit_is(self) -> str:
        """What `limit` is, in words."""
        return f"{share():.0%} of {self.target.memory / 2**30:.2f} GiB, by {SHARE}"

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises ValueError for a shape that no machine has."""
        if len(shape) > 2 or shape[-1] > 8:
            raise ValueError(
                f"--topology={name}: {self.chip.name}:N is a host of 1 to 8 GPUs, {self.chip.name}:"
                "HxN is H of them; some: " + ", ".join(self.examples)
            )

    def count(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape)

    def axis_rate(self, shape: tuple[int, ...]) -> float:
        """Through the switches each GPU of a host reaches each other one at its full rate. The
        network between hosts is slower, and is not in this figure."""
        return self.link_rate

    def devices(self, name: str, shape: tuple[int, ...]) -> list[Any]:
        """Raises ValueError where the plugin is not installed, or refuses the target."""
        if not any(importlib.util.find_spec(plugin) for plugin in PLUGINS):
            raise ValueError(
                "JAX's CUDA plugin is not installed, and it holds the compiler: pip install"
                ' "scope_jax[fit-gpu]" (or: make fit FIT=fit-gpu)'
            )
        from jax.experimental import topologies

        hosts = shape[0] if len(shape) > 1 else 1
        # Partitions of several processes, hosts, GPUs of a host.
        layout = f"1x{hosts}x{shape[-1]}"
        try:
            found = topologies.get_topology_desc(
                platform="cuda", target_config=self.target.description(), topology=layout
            )
        except Exception as error:  # whatever the plugin raises
            reason = " ".join(str(error).split())
            raise ValueError(
                f"--topology={name}: the CUDA plugin refuses it ({reason[:200]})"
            ) from error
        return list(found.devices)


def share() -> float:
    """The allocator's share of a GPU's memory. Raises ValueError (one line) where the variable
    holds anything else than a share."""
    text = os.environ.get(SHARE, "")
    try:
        given = float(text or DEFAULT_SHARE)
    except ValueError:
        given = math.nan
    if not 0 < given <= 1:
        raise ValueError(f"${SHARE} is {text!r}; expected a share above 0 and up to 1, such as 0.9")
    return given


# NVLink: 18 links of 25 (fourth generation) or 50 GB/s (fifth) in one direction, from NVIDIA's data
# sheets of H100, H200 and HGX B200.
KINDS = {
    "h100": GpuKind(
        chip("h100"),
        Target(
            "NVIDIA H100 80GB HBM3",
            (9, 0),
            132,
            1.98,
            84_942_979_072,
            3_352_320_000_000,
            50 << 20,
            1 << 35,
        ),
        450e9,
    ),
    "h200": GpuKind(
        chip("h200"),
        Target(
            "NVIDIA H200",
            (9, 0),
            132,
            1.98,
            151_397_597_184,
            4_800_000_000_000,
            50 << 20,
            1 << 35,
        ),
        450e9,
    ),
    "b200": GpuKind(
        chip("b200"),
        Target(
            "NVIDIA B200",
            (10, 0),
            148,
            1.965,
            191_514_411_008,
            7_672_320_000_000,
            132_644_864,
            1 << 36,
        ),
        900e9,
    ),
}
