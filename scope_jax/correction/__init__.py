"""Correction, the method itself: find the first wrong step, correct it, let the policy go on.

In: rollouts with their rewards. Out: the final groups, in which verified repairs took the place of
failures. `cut` and `splice` are public names of this room; they live with the other moves of rows,
in `rollout`.
"""

from scope_jax.correction.first_error import first_error, prefix_quality
from scope_jax.correction.locate import Located, in_steps, locate
from scope_jax.correction.rescue import CorrectionSpec, Rescue, rescue
from scope_jax.correction.select import SelectSpec, select
from scope_jax.rollout.rows import cut, place_rows, splice, take_rows

__all__ = [
    "CorrectionSpec",
    "Located",
    "Rescue",
    "SelectSpec",
    "cut",
    "first_error",
    "in_steps",
    "locate",
    "place_rows",
    "prefix_quality",
    "rescue",
    "select",
    "splice",
    "take_rows",
]
