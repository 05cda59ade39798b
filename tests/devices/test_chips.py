"""Names of devices, as JAX prints them, and the chips that they are."""

import pytest

from scope_jax.devices.chips import chip_of


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("TPU v5 lite", "v5e"),
        ("NVIDIA L4", "l4"),
        ("TPU v5e", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "tpu7x"),
    ],
)
def test_devices_are_known_by_what_jax_calls_them(kind, name):
    chip = chip_of(kind)
    assert chip is not None and chip.name == name


@pytest.mark.parametrize(
    "kind",
    [
        "cpu",
        "",
        "NVIDIA GeForce RTX 4090",
        "TPU v3",
        "NVIDIA L40S",  # three times an L4
        "NVIDIA H100 PCIe",
        "NVIDIA H100 NVL",
        "NVIDIA A100-SXM4-40GB",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    ],
)
def test_others_are_not_guessed(kind):
    assert chip_of(kind) is None
