"""The programs of the rescue, run once before a run begins: how many failures there are, how long
they are and how many are accepted compiles nothing more."""

import jax.numpy as jnp
import numpy as np

from scope_jax import streams
from scope_jax.correction.candidates import step_logprobs
from scope_jax.correction.choose import choose
from scope_jax.correction.correct import correct
from scope_jax.correction.finish import Attempts, extend_rows, select_rows
from scope_jax.correction.locate import locate
from scope_jax.correction.place import place
from scope_jax.correction.records import Groups, Scene
from scope_jax.correction.repair import own_spec, put_back
from scope_jax.correction.spec import CorrectionSpec


def compile_ahead(groups: Groups, scene: Scene, spec: CorrectionSpec) -> None:
    """Run the programs of every stage on `groups`, of which all rows are finished, so that nothing
    is written to them."""
    nobody_B = np.zeros(len(groups.reward_B), bool)
    chosen = choose(locate(groups, nobody_B, scene), groups, spec.select, scene.seed)
    corrected = correct(chosen, groups, scene, spec)
    nobody_R = np.zeros(len(corrected.usable_R), bool)
    rows = corrected.rows
    if spec.tail != "none":
        longer = extend_rows(corrected, scene, spec, nobody_R, streams.TAIL)
        rows = select_rows(jnp.asarray(nobody_R), longer, rows)
    if spec.candidates > 1:
        step_logprobs(corrected, scene.policy, spec.rows_at_once)
        rows = select_rows(jnp.asarray(nobody_R), rows, corrected.rows)
    if scene.self_tries:
        spec_ = own_spec(scene, spec)
        by_policy = extend_rows(corrected, scene, spec_, nobody_R, streams.SELF)
        rows = put_back(rows, by_policy, np.zeros(0, np.int64))
    worth_R = np.zeros(len(nobody_R), np.float32)
    place(Attempts(corrected, rows, nobody_R, worth_R, spec, [], {}), groups, spec, scene.seed)
