"""The device: its names, its memory, and how fast it copies and multiplies."""

import contextlib
import os
import resource
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelerator_parts.plan import Part, Shape
from accelerator_parts.work import Work, clocked
from scope_jax import models
from scope_jax.devices.chips import chip_of
from scope_jax.devices.mesh import make_mesh

CALLS = 8  # queued behind each other, where one call is too short to be timed


def start(chosen: bool) -> None:
    """Everything runs on the first device alone. Raises RuntimeError where that is a CPU beside a
    GPU that jax does not see, and the size was not `chosen`: a call for a GPU would be spent."""
    jax.set_mesh(make_mesh(devices=jax.devices()[:1]))
    asked_for = os.environ.get("JAX_PLATFORMS", "") == "cpu"
    if is_cpu() and not chosen and not asked_for and nvidia_device(Path("/dev")):
        raise RuntimeError(
            "an NVIDIA GPU is here, and jax runs on the CPU: install the extra [cuda] (its CUDA 13"
            " needs driver 580 or later), or give --tiny to measure the CPU"
        )


def nvidia_device(folder: Path) -> bool:
    """Whether a GPU stands in /dev. A container that is given one has it under the number that it
    has on the machine."""
    return any(folder.glob("nvidia[0-9]*"))


def first() -> Any:
    return jax.devices()[0]


def is_cpu() -> bool:
    return first().platform == "cpu"


def attribute(name: str) -> Any:
    """An attribute of the device, None where it has none or will not say."""
    with contextlib.suppress(Exception):
        return getattr(first(), name)
    return None


def memory() -> dict[str, int]:
    """What the device says of its memory; empty where it says nothing."""
    with contextlib.suppress(Exception):
        return dict(first().memory_stats() or {})
    return {}


def free_bytes() -> float | None:
    """Memory that may still be taken; of the machine on a CPU; None where nothing is known."""
    stats = memory()
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    if is_cpu():
        with contextlib.suppress(Exception):
            return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return None


def peak_bytes() -> float | None:
    """The most memory that this process has used; on a CPU that of the whole process."""
    stats = memory()
    if "peak_bytes_in_use" in stats:
        return float(stats["peak_bytes_in_use"])
    if is_cpu():
        return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def model_config(shape: Shape, head: str = "lm") -> models.ModelConfig:
    return models.ModelConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        num_layers=shape.layers,
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        head_size=shape.head_size,
        ffn_size=shape.ffn,
        rope_theta=1e6,
        tied=True,
        max_positions=32_768,
        head=head,
    )


def repeated(call: Any, *arguments: Any, calls: int = CALLS) -> float:
    """Seconds of one call among several that are queued behind each other: the best of three
    rounds. The first call, which compiles, is not counted."""
    jax.block_until_ready(call(*arguments))

    def queue() -> Any:
        out = None
        for _ in range(calls):
            out = call(*arguments)
        return jax.block_until_ready(out)

    return min(clocked(queue)[0] for _ in range(3)) / calls


def copy_rate(nbytes: int) -> float:
    """Bytes read and written per second when an array of `nbytes` is copied."""
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    held = [jax.block_until_ready(step(jnp.zeros(nbytes // 4, jnp.float32)))]

    def again() -> Any:
        held[0] = step(held[0])
        return held[0]

    return 2 * nbytes / repeated(again)


def product_rate(n: int) -> float:
    """Operations per second of a product of two n x n bfloat16 matrices of random numbers."""
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (n, n), jnp.bfloat16) for key in keys)
    return 2.0 * n**3 / repeated(jax.jit(lambda a, b: a @ b), a, b)


def peaks(copied: float, multiplied: float) -> dict[str, Any]:
    """What shares are taken of: published figures, or the measured ones of an unknown chip."""
    chip = chip_of(str(attribute("device_kind") or ""))
    if chip is None:
        return {"flops": multiplied, "hbm_rate": copied, "source": "measured"}
    return {"flops": chip.flops, "hbm_rate": chip.hbm_rate, "source": f"published of {chip.name}"}


def driver() -> str | None:
    """NVIDIA's kernel module where it says its version, else what the platform says of itself."""
    with contextlib.suppress(Exception):
        words = Path("/proc/driver/nvidia/version").read_text().splitlines()[0].split()
        return next(word for word in words if word[0].isdigit() and "." in word)
    with contextlib.suppress(Exception):
        words = " ".join(str(first().client.platform_version).split())[:80]
        return None if words == first().platform else words
    return None


def run(part: Part, work: Work) -> None:
    """The device line, and two figures that need nothing of the library."""
    import jaxlib

    stats = memory()
    about: dict[str, Any] = {
        "platform": attribute("platform"),
        "device": str(attribute("device_kind")),
        "devices": jax.device_count(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "numpy": np.__version__,
        "driver": driver(),
        "memory_limit": stats.get("bytes_limit"),
        "memory_fraction": os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION"),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        # Compile seconds are those of a compiler only where nothing was kept from before.
        "compilation_cache": jax.config.jax_compilation_cache_dir,
    }
    copied, multiplied = copy_rate(work.size.copied_bytes), product_rate(work.size.product)
    about["peaks"] = against = peaks(copied, multiplied)
    work.send({"about": about})
    words = against["source"]
    for case, value, unit, scale, name, of in (
        ("stream copy, read + written", copied, "GB/s", 1e9, "hbm_rate", "memory"),
        ("bfloat16 product", multiplied, "TFLOP/s", 1e12, "flops", "compute"),
    ):
        note = f"{words} {against[name] / scale:,.4g} {unit}"
        share = value / against[name]
        figures = {"rate": value / scale, "rate_unit": unit, "share": share, "of": of}
        work.add(case, **figures, note=note)
