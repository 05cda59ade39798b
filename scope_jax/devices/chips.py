"""What the makers of accelerators publish about them: the limits that speeds are held against."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device (half a chip for tpu7x). flops: bfloat16 products, dense, per second. hbm_rate:
    bytes per second between its memory and it. hbm: bytes of memory. kinds: what JAX calls it
    (`device_kind`), by its first words."""

    name: str
    flops: float
    hbm_rate: float
    hbm: float
    kinds: tuple[str, ...]


# bfloat16 (dense) | memory's rate | memory:
#   NVIDIA's data sheets of A100 80GB SXM, H100 SXM, H200 SXM, B200 (HGX), L4
#   cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x (two devices a chip)
CHIPS = (
    Chip("h200", 989.4e12, 4.8e12, 141e9, ("NVIDIA H200",)),
    Chip("h100", 989.4e12, 3.35e12, 80e9, ("NVIDIA H100",)),
    Chip("b200", 2250e12, 8.0e12, 180e9, ("NVIDIA B200",)),
    Chip("a100", 312e12, 2.039e12, 80e9, ("NVIDIA A100",)),
    Chip("l4", 121e12, 300e9, 24e9, ("NVIDIA L4",)),
    Chip("v5e", 197e12, 819e9, 16e9, ("TPU v5 lite", "TPU v5e")),
    Chip("v6e", 918e12, 1638e9, 32e9, ("TPU v6 lite", "TPU v6e")),
    Chip("v5p", 459e12, 2765e9, 95e9, ("TPU v5", "TPU v5p")),
    Chip("tpu7x", 2307e12 / 2, 7380e9 / 2, 96e9, ("TPU7x", "TPU v7", "TPU v7x")),
)


# Boards of the same names with other figures, and parts of a chip.
OTHERS = ("PCIe", "NVL", "40GB", "MIG")


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX calls `device_kind`, None where it is not listed (CPUs are not)."""
    if any(other in device_kind for other in OTHERS):
        return None
    # Whole words: an L40S is no L4.
    named = re.compile("|".join(rf"(?P<{c.name}>{'|'.join(c.kinds)})\b" for c in CHIPS))
    found = named.match(device_kind)
    return chip(found.lastgroup) if found and found.lastgroup else None


def chip(name: str) -> Chip:
    """The chip that is listed by `name`. Raises KeyError."""
    return {chip.name: chip for chip in CHIPS}[name]
