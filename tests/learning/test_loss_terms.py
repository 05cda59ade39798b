"""The terms of the loss one by one, by hand; together: tests/learning/test_losses.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scope_jax.learning import loss_terms
from scope_jax.learning.losses import LossSpec

NAN = np.nan
# A row of two POLICY tokens, a TEACHER token and one without weight.
ON, OFF = np.array([[0.5, 0.25, 0, 0]]), np.array([[0, 0, 0.5, 0]])
LOGP = np.log(np.array([[0.5, 0.25, 0.125, 1.0]]))
OLD = np.log(np.array([[0.25, 0.5, 1.0, 1.0]]))


def tokens(old=OLD, logp=LOGP):
    return loss_terms.weighed(logp, old, np.array([[2.0]]), ON, OFF)


def test_what_has_no_weight_is_replaced():
    logp, old = LOGP.copy(), OLD.copy()
    logp[0, 3] = NAN
    old[0, 2:] = NAN
    found = tokens(old, logp)
    np.testing.assert_allclose(found.logp_on, [[np.log(0.5), np.log(0.25), 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(found.logp_off, [[0, 0, np.log(0.125), 0]], rtol=1e-6)
    np.testing.assert_allclose(found.old_on, [[np.log(0.25), np.log(0.5), 0, 0]], rtol=1e-6)
    assert found.advantage.tolist() == [[2, 2, 2, 0]]
    given = found.given("reference_logp_BT", np.array([[1, NAN, 3, 4]]), found.is_off)
    assert given.tolist() == [[0, 0, 3, 0]]
    with pytest.raises(ValueError, match=r"x has shape \(4,\); expected that of logp_BT, \(1, 4\)"):
        found.given("x", np.zeros(4), found.is_on)


def test_without_old_log_probs_the_ratio_is_one_and_has_a_gradient():
    def ratio(logp):
        return jnp.sum(loss_terms.own_term(tokens(None, logp), LossSpec()).ratio)

    value, gradient = jax.value_and_grad(ratio)(jnp.asarray(LOGP, jnp.float32))
    assert float(value) == 4 and gradient.tolist() == [[1, 1, 0, 0]]


def test_the_ratio_of_a_token_and_of_a_row():
    own = loss_terms.own_term(tokens(), LossSpec(clip_low=0.2, clip_high=0.5))
    np.testing.assert_allclose(own.ratio, [[2, 0.5, 1, 1]], rtol=1e-6)
    assert own.clipped.tolist() == [[True, False, False, False]]  # 2 is above 1.5
    np.testing.assert_allclose(own.gain[0, :2], [3, 1], rtol=1e-6)
    row = loss_terms.own_term(tokens(), LossSpec(ratio="sequence"))
    np.testing.assert_allclose(row.ratio, np.ones((1, 4)), rtol=1e-6)  # of 2 and 1/2


def test_what_distillation_as_a_loss_adds():
    spec = LossSpec(distill_weight=0.4, distill_form="loss", outcome_weight=0.5)
    own = loss_terms.own_term(tokens(), spec, distill_logp_BT=LOGP - np.array([[1, 2, 3, NAN]]))
    # The surrogate keeps half of the advantage; gaps of 1 and 2 have the weights 1/2 and 1/4.
    np.testing.assert_allclose(own.gain[0, 1], 0.5, rtol=1e-6)
    found = loss_terms.distilled(tokens(), own, spec)
    assert float(found) == pytest.approx(0.4 * 0.5 * (0.5 * 1 + 0.25 * 4), rel=1e-5)


def test_the_kl_of_a_token():
    found = loss_terms.kl_estimate(tokens(), LOGP + np.log([[2.0, 1.0, NAN, NAN]]))
    np.testing.assert_allclose(found[0, :2], [1 - np.log(2), 0], atol=1e-6)  # 2 - log 2 - 1


def test_statistics_by_hand():
    # The second token has fallen to a quarter: the farthest move is a fall.
    fallen = tokens(np.log(np.array([[0.25, 1.0, 1.0, 1.0]])))
    own = loss_terms.own_term(fallen, LossSpec(clip_low=0.2, clip_high=0.5))
    found = {k: float(v) for k, v in loss_terms.token_statistics(fallen, own).items()}
    assert found == pytest.approx(
        {
            "on_tokens": 2,
            "off_tokens": 1,
            "ratio_sum": 2.25,
            "ratio_max": 2,
            "move_max": np.log(4),
            "clip_count": 1,
            "teacher_logp_sum": np.log(0.125),
        }
    )
    gap = loss_terms.sampler_gap(tokens(), LOGP + np.array([[0.5, NAN, 9, 9]]))
    assert {k: float(v) for k, v in gap.items()} == pytest.approx(
        {"gap_max": 0.5, "gap_sum": 0.5, "gap_count": 1}
    )
