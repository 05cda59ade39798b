"""Which form of attention a model takes on a device: one table.

The choice follows from the device, the dtype and the model, never from how long rows are: a run
does not change its form from one size to the next.
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp

from scope_jax.devices.current import first_device
from scope_jax.models.config import ModelConfig

Kernel = Literal["plain", "cudnn", "splash"]

# Head sizes: cuDNN takes multiples of 8, to 128 on every GPU that it serves; splash fills a TPU's
# 128 lanes.
CUDNN_HEAD, CUDNN_STEP, SPLASH_STEP = 128, 8, 128
# cuDNN's attention begins with this compute capability (Ampere).
CUDNN_CAPABILITY = 8.0


@dataclasses.dataclass(frozen=True)
class Choice:
    """kernel: the form that is taken. reason: why no kernel is, "" where one is."""

    kernel: Kernel
    reason: str = ""


def kernel_of(device: Any) -> Kernel:
    """The kernel that a device has, before model and dtype are looked at."""
    if device.platform == "tpu":
        return "splash"
    if device.device_kind.startswith("NVIDIA"):
        capability = getattr(device, "compute_capability", None)
        # A device that is only described does not say.
        if capability is None or float(capability) >= CUDNN_CAPABILITY:
            return "cudnn"
    return "plain"


def kernel_here() -> Kernel:
    """That of the mesh that is set, else of the default device. Not for use inside jit."""
    return kernel_of(first_device())


def choose(config: ModelConfig, dtype: Any) -> Choice:
    """The form of attention of a model whose activations have this dtype. `config.attention` is the
    kernel of the device (None counts as "plain")."""
    kernel = config.attention or "plain"
    if kernel == "plain":
        return Choice("plain", "plain products are what this device has, or was asked for")
    refused = _refused(config, jnp.dtype(dtype), kernel)
    return Choice("plain", f"not {kernel}: {refused}") if refused else Choice(kernel)


def _refused(config: ModelConfig, dtype: jnp.dtype, kernel: Kernel) -> str:
    """Why a kernel does not serve a model; "" where it does."""
    size, step = config.head_size, CUDNN_STEP if kernel == "cudnn" else SPLASH_STEP
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"{dtype} would be rounded"
    if config.attention_cap:
        return f"scores are bent to {config.attention_cap:g} tanh"
    if size % step or (kernel == "cudnn" and size > CUDNN_HEAD):
        most = f" up to {CUDNN_HEAD}" if kernel == "cudnn" else ""
        return f"heads of {size} (multiples of {step}{most} are served)"
    if any(config.local_layers) and not all(config.local_layers):
        return "layers with and without a window are scanned together"
    return ""
