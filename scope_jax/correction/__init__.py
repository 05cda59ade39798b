"""Correction, the method itself: find the first wrong step, have the teacher correct it, let the policy go on."""

from scope_jax.correction.first_error import first_error, prefix_quality
from scope_jax.correction.prm import ProcessRewardModel
from scope_jax.correction.rescue import CorrectionSpec, Rescue, Writer, rescue
from scope_jax.correction.select import SelectSpec, select
from scope_jax.correction.splice import cut, place_rows, splice, take_rows

__all__ = [
    "CorrectionSpec",
    "ProcessRewardModel",
    "Rescue",
    "SelectSpec",
    "Writer",
    "cut",
    "first_error",
    "place_rows",
    "prefix_quality",
    "rescue",
    "select",
    "splice",
    "take_rows",
]
