"""CISPO, SAPO, the weights of sampler against trainer, and on-policy distillation in the loss:
values and gradients against numbers worked out by hand, and against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scope_jax.learning.losses import LossSpec, finish_stats, merge_stats, policy_loss

NAN = float("nan")
CISPO = LossSpec(surrogate="cispo", clip_low=None, clip_high=4.0)
SAPO = LossSpec(surrogate="sapo", clip_low=None, clip_high=None)


# Level 0: compiling is what these tests spend their time on.
@functools.partial(
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0}
)
def compiled(spec, logp, old, advantage, on, more):
    def loss(logp):
        return policy_loss(logp, old, advantage, on, jnp.zeros_like(on), spec, **more)

    (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(logp)
    return value, gradient, finish_stats(stats)


def evaluate(spec, logp, old, advantage, on=None, **more):
    """(loss, gradient with respect to logp, metrics) of rows without TEACHER tokens."""
    on = np.ones_like(logp) if on is None else on
    arrays = [np.asarray(x, np.float32) for x in (logp, old, advantage, on)]
    more = {f"{name}_logp_BT": np.asarray(x, np.float32) for name, x in more.items()}
    value, gradient, metrics = jax.device_get(compiled(spec, *arrays, more))
    return float(value), gradient, {name: float(x) for name, x in metrics.items()}


# ---- surrogates


def test_cispo_by_hand():
    """Ratios 1/2, 1, 2 and 8 with a bound of 5: no token loses its gradient."""
    pi, old = np.array([[0.25, 0.5, 0.5, 0.8]]), np.array([[0.5, 0.5, 0.25, 0.1]])
    weight = np.array([[0.5, 1.0, 2.0, 5.0]])
    for advantage in (2.0, -3.0):
        value, gradient, metrics = evaluate(CISPO, np.log(pi), np.log(old), [[advantage]])
        assert value == pytest.approx(-np.sum(weight * advantage * np.log(pi)), rel=1e-5)
        np.testing.assert_allclose(gradient, -advantage * weight, rtol=1e-5)
        assert metrics["policy/clip_share"] == 0.25
    both = LossSpec(surrogate="cispo", clip_low=0.2, clip_high=0.28)
    _, gradient, metrics = evaluate(both, np.log(pi), np.log(old), [[1.0]])
    np.testing.assert_allclose(gradient, [[-0.8, -1.0, -1.28, -1.28]], rtol=1e-5)
    assert metrics["policy/clip_share"] == 0.75


def test_sapo_by_hand():
    """The gate is 1 at a ratio of 1, where value and gradient are those of 4 / tau / 2 and of A."""
    for advantage, tau in ((2.0, 1.0), (-2.0, 1.05), (0.0, 1.05)):
        value, gradient, metrics = evaluate(SAPO, [[-1.0]], [[-1.0]], [[advantage]])
        assert value == pytest.approx(-2 / tau * advantage)
        assert gradient[0, 0] == pytest.approx(-advantage)
        assert metrics["policy/clip_share"] == 0
    # rho = 3, tau 1: sigmoid(2) = 0.880797, gate 4 x 0.880797 x 0.119203 = 0.419974.
    value, gradient, metrics = evaluate(SAPO, [[np.log(0.6)]], [[np.log(0.2)]], [[1.0]])
    assert value == pytest.approx(-4 * 0.880797, rel=1e-5)
    assert gradient[0, 0] == pytest.approx(-3 * 0.419974, rel=1e-5)
    assert metrics["policy/clip_share"] == 1


def sapo_of(logp, old, advantage, on, positive, negative):
    """(loss, gradient) in float64, from the paper's formula and its derivative."""
    rho = np.exp(logp - old)
    tau = np.where(advantage > 0, positive, negative)
    p = 1 / (1 + np.exp(-tau * (rho - 1)))
    return -np.sum(on * 4 / tau * p * advantage), -on * 4 * p * (1 - p) * rho * advantage


def cispo_of(logp, old, advantage, on, low, high):
    weight = np.clip(np.exp(logp - old), low, high)
    return -np.sum(on * weight * advantage * logp), -on * weight * advantage


@pytest.mark.parametrize(
    ("spec", "oracle"),
    [
        (SAPO, lambda *x: sapo_of(*x, 1.0, 1.05)),
        (
            LossSpec(
                surrogate="sapo",
                clip_low=None,
                clip_high=None,
                sapo_positive=2.0,
                sapo_negative=0.5,
            ),
            lambda *x: sapo_of(*x, 2.0, 0.5),
        ),
        (CISPO, lambda *x: cispo_of(*x, 0.0, 5.0)),
        (
            LossSpec(surrogate="cispo", clip_low=0.1, clip_high=0.3),
            lambda *x: cispo_of(*x, 0.9, 1.3),
        ),
    ],
)
def test_value_and_gradient_against_float64(spec, oracle):
    rng = np.random.default_rng(0)
    logp, old = -rng.uniform(0.1, 3, (2, 4, 6)).astype(np.float32)
    advantage = rng.normal(size=(4, 6)).astype(np.float32)
    on = rng.uniform(0.1, 1, (4, 6)) * (rng.random((4, 6)) < 0.8)
    on = on.astype(np.float32)
    value, gradient, _ = evaluate(spec, logp, old, advantage, on)
    want, slope = oracle(*(x.astype(np.float64) for x in (logp, old, advantage, on)))
    assert value == pytest.approx(want, rel=1e-5)
    np.testing.assert_allclose(
        gradient, slope, rtol=2e-5, atol=1e-5
    )  # of a small gate 1 - p rounds
    # NaN where no token counts changes nothing.
    value_with, gradient_with, _ = evaluate(
        spec, np.where(on > 0, logp, NAN), old, np.where(on > 0, advantage, NAN), on
    )
    assert value_with == value
    np.testing.assert_array_equal(gradient_with, gradient)


@pytest.mark.parametrize("spec", [CISPO, SAPO])
def test_one_update_of_the_sampled_policy_is_that_of_the_clip(spec):
    """At a ratio of 1 all surrogates have the same gradient."""
    logp, advantage = [[-1.0, -0.5], [-2.0, -0.1]], [[1.5], [-0.5]]
    plain = evaluate(LossSpec(), logp, logp, advantage)[1]
    np.testing.assert_allclose(evaluate(spec, logp, logp, advantage)[1], plain, rtol=1e-6)


# ---- weights of sampler against trainer

# Gaps log pi_old - log pi_sampler: products 2 and 1/16, geometric means 2^(1/3) and 1/4.
OLD = np.log(np.array([[0.5, 0.5, 0.5, 1.0], [0.1, 0.1, 1.0, 1.0]]))
SAMPLER = np.log(np.array([[0.25, 0.5, 0.5, 1.0], [0.4, 0.4, 1.0, 1.0]]))
ON = np.array([[1, 1, 1, 0], [1, 1, 0, 0]])


def weights_of(**settings):
    """(weight of each token, as its gradient says, metrics) with an advantage of 1 and a ratio of
    1."""
    spec = LossSpec(old_logp="recompute", **settings)
    _, gradient, metrics = evaluate(spec, OLD, OLD, np.ones((2, 1)), ON, sampler=SAMPLER)
    return -gradient, metrics


@pytest.mark.parametrize(
    ("settings", "expected", "mean", "capped"),
    [
        (
            {"tis_cap": 1.5},
            [[1.5, 1, 1, 0], [0.25, 0.25, 0, 0]],
            4 / 5,
            1 / 5,
        ),
        (
            {"tis_cap": 1.5, "tis_level": "sequence"},
            [[1.5, 1.5, 1.5, 0], [1 / 16, 1 / 16, 0, 0]],
            (4.5 + 1 / 8) / 5,
            3 / 5,
        ),
        (
            {"tis_cap": 1.5, "tis_level": "geometric"},
            [[2 ** (1 / 3)] * 3 + [0], [0.25, 0.25, 0, 0]],
            (3 * 2 ** (1 / 3) + 0.5) / 5,
            0,
        ),
    ],
)
def test_truncated_weights_by_hand(settings, expected, mean, capped):
    weight, metrics = weights_of(**settings)
    np.testing.assert_allclose(weight, expected, rtol=1e-5)
    assert metrics["policy/tis_mean"] == pytest.approx(mean, rel=1e-5)
    assert metrics["policy/tis_capped"] == pytest.approx(capped)


@pytest.mark.parametrize(
    ("settings", "expected", "share", "rows"),
    [
        # A row outside of the band learns nothing; the others weigh what they did.
        ({"mask_high": 1.9}, [[0, 0, 0, 0], [1, 1, 0, 0]], 3 / 5, 1 / 2),
        ({"mask_high": 2.1}, [[1, 1, 1, 0], [1, 1, 0, 0]], 0, 0),
        ({"mask_low": 0.1}, [[1, 1, 1, 0], [0, 0, 0, 0]], 2 / 5, 1 / 2),
        ({"mask_low": 0.1, "mask_high": 1.9}, [[0] * 4, [0] * 4], 1, 1),
        ({"mask_low": 0.2, "mask_level": "geometric"}, [[1, 1, 1, 0], [1, 1, 0, 0]], 0, 0),
        ({"mask_high": 1.2, "mask_level": "geometric"}, [[0] * 4, [1, 1, 0, 0]], 3 / 5, 1 / 2),
        # Tokens by themselves: no row is left without any.
        ({"mask_high": 1.9, "mask_level": "token"}, [[0, 1, 1, 0], [1, 1, 0, 0]], 1 / 5, 0),
        # Both: the weight of what is left.
        (
            {"mask_high": 1.9, "mask_level": "token", "tis_cap": 9.0, "tis_level": "sequence"},
            [[0, 2, 2, 0], [1 / 16, 1 / 16, 0, 0]],
            1 / 5,
            0,
        ),
    ],
)
def test_masked_rows_and_tokens_by_hand(settings, expected, share, rows):
    weight, metrics = weights_of(**settings)
    np.testing.assert_allclose(weight, expected, rtol=1e-5)
    assert metrics["policy/masked_share"] == pytest.approx(share)
    assert metrics["policy/masked_rows"] == pytest.approx(rows)


def test_tokens_that_the_sampler_did_not_record_have_weight_one():
    sampler = SAMPLER.copy()
    sampler[0, 1:3] = NAN
    spec = LossSpec(old_logp="recompute", tis_cap=9.0, tis_level="geometric")
    _, gradient, _ = evaluate(spec, OLD, OLD, np.ones((2, 1)), ON, sampler=sampler)
    # The mean is over the one token that is known.
    np.testing.assert_allclose(-gradient, [[2, 2, 2, 0], [0.25, 0.25, 0, 0]], rtol=1e-5)


def test_long_rows_do_not_overflow():
    """A product of e^400 is cut at the cap, one of e^-400 is 0; outside of a band both."""
    old = np.full((2, 200), -1.0)
    sampler = old - np.array([[2.0], [-2.0]])
    for settings, expected in (
        ({"tis_cap": 3.0, "tis_level": "sequence"}, [3, 0]),
        ({"mask_low": 0.5, "mask_high": 2.0}, [0, 0]),
    ):
        spec = LossSpec(old_logp="recompute", **settings)
        value, gradient, metrics = evaluate(spec, old, old, np.ones((2, 1)), sampler=sampler)
        np.testing.assert_allclose(-gradient, np.repeat(expected, 200).reshape(2, 200), atol=1e-6)
        assert np.isfinite([value, *metrics.values()]).all()


def test_statistics_of_masks_add_up_over_micro_batches():
    spec = LossSpec(old_logp="recompute", mask_high=1.9, tis_cap=1.5)

    def stats(rows):
        logp = np.asarray(OLD[rows], np.float32)
        on = np.asarray(ON[rows], np.float32)
        more = {"sampler_logp_BT": np.asarray(SAMPLER[rows], np.float32)}
        return policy_loss(logp, logp, np.ones((len(on), 1)), on, 0 * on, spec, **more)[1]

    whole = finish_stats(stats(slice(None)))
    parts = finish_stats(merge_stats(stats(slice(0, 1)), stats(slice(1, 2))))
    for name in whole:
        assert float(parts[name]) == pytest.approx(float(whole[name]), rel=1e-6), name


# ---- on-policy distillation

POLICY = np.log(np.array([[0.5, 0.8, 0.9], [0.2, 0.6, 1.0]]))
TEACHER = np.log(np.array([[0.25, 0.8, 0.9], [0.8, 0.3, 1.0]]))
OWN = np.array([[1, 1, 0], [1, 1, 0]])
GAP = np.array([[-np.log(2), 0, 0], [np.log(4), -np.log(2), 0]])  # teacher over policy


@pytest.mark.parametrize("form", ["advantage", "loss"])
@pytest.mark.parametrize("outcome", [0.0, 1.0, 0.5])
def test_distillation_by_hand(form, outcome):
    """Its gradient is minus weight x log(teacher / policy), in both forms where pi = pi_old."""
    spec = LossSpec(distill_weight=0.3, distill_form=form, outcome_weight=outcome)
    advantage = np.array([[1.0], [-2.0]])
    value, gradient, metrics = evaluate(spec, POLICY, POLICY, advantage, OWN, distill=TEACHER)
    np.testing.assert_allclose(
        gradient, -OWN * (outcome * advantage + 0.3 * GAP), rtol=1e-5, atol=1e-7
    )
    if form == "advantage":
        expected = -np.sum(OWN * (outcome * advantage + 0.3 * GAP))
    else:
        expected = np.sum(OWN * (0.15 * GAP**2 - outcome * advantage))
    assert value == pytest.approx(expected, rel=1e-5)
    # (log 2 + 0 - log 4 + log 2) / 4
    assert metrics["policy/reverse_kl"] == pytest.approx(0, abs=1e-6)


def test_the_estimate_of_the_reverse_kl_is_exact_over_all_tokens():
    """Each of three tokens, as often as the policy draws it: the mean of log pi - log teacher is
    the KL, and the gradient of the loss that of the KL with respect to the logits."""
    policy, teacher = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    logits = jnp.log(jnp.asarray(policy, jnp.float32))
    kl = np.sum(policy * np.log(policy / teacher))
    slope = policy * (np.log(policy / teacher) - kl)
    for form in ("advantage", "loss"):
        spec = LossSpec(distill_weight=1.0, distill_form=form, outcome_weight=0.0)

        def loss(logits, spec=spec):
            logp = jax.nn.log_softmax(logits)[None]
            more = {"distill_logp_BT": np.log(teacher)[None].astype(np.float32)}
            old = np.log(policy)[None].astype(np.float32)
            weights = np.asarray(policy[None], np.float32)
            return policy_loss(logp, old, np.zeros((1, 1)), weights, 0 * weights, spec, **more)

        gradient = jax.grad(lambda x: loss(x)[0])(logits)
        np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)


def test_distillation_leaves_teacher_tokens_alone():
    """TEACHER tokens learn by their own term; the teacher's log-probs of them are not read."""
    spec = LossSpec(distill_weight=1.0, outcome_weight=0.0, teacher_term="reinforce")
    logp = np.log(np.array([[0.5, 0.5]], np.float32))
    on, off = np.array([[1.0, 0.0]], np.float32), np.array([[0.0, 1.0]], np.float32)
    teacher = np.array([[np.log(0.25), NAN]], np.float32)

    def loss(x):
        return policy_loss(x, logp, np.full((1, 1), 3.0), on, off, spec, distill_logp_BT=teacher)[0]

    np.testing.assert_allclose(jax.grad(loss)(logp), [[np.log(2), -3.0]], rtol=1e-5)


# ---- what makes no sense


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"surrogate": "ppo"}, "loss.surrogate = 'ppo' is unknown; one of clip, cispo, sapo"),
        ({"surrogate": "sapo"}, "has a gate in place of the clip"),
        ({"surrogate": "cispo", "dual_clip": 3.0}, "dual_clip is of surrogate 'clip'"),
        ({"sapo_positive": 0.0}, "sapo_positive = 0.0; expected a number above 0"),
        ({"tis_level": "sequence"}, "set loss.tis_cap"),
        ({"mask_level": "token"}, "set loss.mask_low or mask_high"),
        ({"distill_form": "loss"}, "set loss.distill_weight above 0, or distill_form to"),
        ({"mask_high": 2.0}, "mask_high weighs trainer against sampler"),
        ({"mask_low": 0.5}, "use 'recompute'"),
        ({"mask_low": 2.0, "mask_high": 2.0, "old_logp": "recompute"}, "must lie below"),
        ({"mask_low": 0.0, "old_logp": "recompute"}, "expected a number above 0 or None"),
        ({"mask_level": "row"}, "one of token, sequence, geometric"),
        ({"distill_weight": -1.0}, "distill_weight = -1.0; expected a number of 0 or more"),
        ({"outcome_weight": 0.0}, "set loss.distill_weight above 0"),
        ({"distill_weight": 1.0, "ratio": "sequence"}, "averages away the advantages"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, reason):
    with pytest.raises(ValueError) as error:
        LossSpec(**settings)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_what_a_spec_needs_is_named():
    x = np.zeros((1, 1), np.float32)
    for spec, name in (
        (LossSpec(distill_weight=1.0), "needs distill_logp_BT"),
        (LossSpec(mask_high=2.0, old_logp="recompute"), "needs sampler_logp_BT"),
    ):
        with pytest.raises(ValueError, match=name):
            policy_loss(x, x, x, x, x, spec)
