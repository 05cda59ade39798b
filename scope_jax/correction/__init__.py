"""The correction, the method itself: find the first wrong step, correct it, let the policy go on.

In: groups of judged rollouts (`Groups`) and who takes part (`Scene`). Out: the final groups, in
which verified rows took the place of failures. `cut` and `splice` are public names of this room;
they live with the other moves of rows, in `rollout`.
"""

from scope_jax.correction.ahead import compile_ahead
from scope_jax.correction.choose import choose, select
from scope_jax.correction.correct import correct
from scope_jax.correction.finish import finish
from scope_jax.correction.first_error import first_error, prefix_quality
from scope_jax.correction.gallery import gallery_items
from scope_jax.correction.localisers import Localiser, LocaliserSpec, make_localiser
from scope_jax.correction.locate import Located, locate
from scope_jax.correction.place import place
from scope_jax.correction.records import Groups, Scene
from scope_jax.correction.rescue import Rescue, rescue
from scope_jax.correction.spec import CorrectionSpec, SelectSpec
from scope_jax.correction.steps import StepRows, in_steps
from scope_jax.rollout.rows import cut, place_rows, splice, take_rows

__all__ = [
    "CorrectionSpec",
    "Groups",
    "Localiser",
    "LocaliserSpec",
    "Located",
    "Rescue",
    "Scene",
    "SelectSpec",
    "StepRows",
    "choose",
    "compile_ahead",
    "correct",
    "cut",
    "finish",
    "first_error",
    "gallery_items",
    "in_steps",
    "locate",
    "make_localiser",
    "place",
    "place_rows",
    "prefix_quality",
    "rescue",
    "select",
    "splice",
    "take_rows",
]
