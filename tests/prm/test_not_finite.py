"""Scores that are not finite: the row counts as not scored, most of them end the run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.hand_made import (
    PRM,
    PROBLEM,
    RIGHT,
    TOKENIZER,
    WITH_4,
    WRONG_2,
    fours_are_wrong,
    groups_of,
    played,
    run,
    scene,
)

from scope_jax.correction import LocaliserSpec, locate
from scope_jax.correction.localisers import Scores
from scope_jax.prm.finite import finite_rows
from scope_jax.prm.model import ProcessRewardModel
from scope_jax.run import failures

NAN, INF = float("nan"), float("inf")


def test_rows_with_a_score_that_is_not_finite():
    score = np.array(
        [[0.9, 0.2, 0], [NAN, 0.1, 0.2], [0.3, 0.4, NAN], [0.5, INF, 0.1], [NAN, NAN, NAN]],
        np.float32,
    )
    valid = np.array([[1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 1, 1], [0, 0, 0]], bool)
    # NaN where nothing was scored does not count: 2 of 4 rows.
    found, counts, bad = finite_rows(score, valid, "x")
    assert bad == 2 and counts.tolist() == [
        [True, True, False],
        [False] * 3,
        [True, True, False],
        [False] * 3,
        [False] * 3,
    ]
    assert np.isfinite(found[counts]).all() and np.isnan(score).any()
    with pytest.raises(RuntimeError, match=r"x: the scores of 2 of 3 rows are not finite") as error:
        finite_rows(score[1:], valid[1:], "x")
    assert failures.ending(error.value)[1] == 2
    for rows, width in ((0, 0), (0, 3), (2, 0)):
        empty = np.zeros((rows, width), np.float32)
        assert finite_rows(empty, empty.astype(bool), "x")[2] == 0


class Broken(ProcessRewardModel):
    """The hand-made PRM, which gives NaN to rows with a 4."""

    def _probability(self, params, ids, shape) -> jax.Array:
        four = TOKENIZER.encode("4")[0]
        bad = np.array([four in row for row in ids] + [False] * (shape[0] - len(ids)))
        return jnp.where(bad[:, None], NAN, super()._probability(params, ids, shape))


def broken() -> ProcessRewardModel:
    prm = fours_are_wrong()
    return Broken(**{f.name: getattr(prm, f.name) for f in dataclasses.fields(prm)})


def test_a_run_counts_them_or_ends():
    batch = scene(RIGHT + "#", WITH_4 + "#", WRONG_2 + "#", WRONG_2 + "#")
    sound = run(batch, [1, 0, 0, 0], localiser=PRM, prm=fours_are_wrong())
    found = run(batch, [1, 0, 0, 0], localiser=PRM, prm=broken())
    assert (sound.metrics["scope/unscored"], found.metrics["scope/unscored"]) == (0, 1)
    assert (sound.metrics["scope/selected"], found.metrics["scope/selected"]) == (1, 0)
    assert found.reward_B.tolist() == [1, 0, 0, 0] and found.include_B.all()
    batch = scene(RIGHT + "#", WITH_4 + "#", WITH_4 + "#", WRONG_2 + "#")
    with pytest.raises(RuntimeError, match="process reward model: the scores of 2 of 3 rows"):
        run(batch, [1, 0, 0, 0], localiser=PRM, prm=broken())


@dataclasses.dataclass(frozen=True)
class Own:
    """A localiser of one's own: the last step is wrong, and the first `bad` rows have NaN."""

    bad: int
    spec = LocaliserSpec("oracle")

    def score(self, rows, scene) -> Scores:
        shape = (len(rows.steps), max(map(len, rows.steps)))
        score = np.full(shape, 0.9, np.float32)
        score[:, -1] = 0.1
        score[: self.bad, 0] = NAN
        return Scores(score, np.ones(shape, bool), {})


def test_a_localiser_of_one_s_own_is_looked_at_too():
    groups = groups_of(scene(*[WRONG_2 + "#"] * 4), [1, 0, 0, 0], PROBLEM)
    failures_B = np.array([False, True, True, True])

    def located(bad: int):
        return locate(groups, failures_B, dataclasses.replace(played(), localiser=Own(bad)))

    assert located(0).has_error_R.all() and located(0).metrics["scope/unscored"] == 0
    one = located(1)
    assert one.has_error_R.tolist() == [False, True, True] and one.metrics["scope/unscored"] == 1
    assert not one.valid_RJ[0].any() and one.quality_R[0] == 0
    with pytest.raises(RuntimeError, match="localiser 'oracle': the scores of 2 of 3 rows"):
        located(2)
