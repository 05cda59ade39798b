"""The objective against hand-computed numbers, a float64 version written token by token, and
finite differences."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scope_jax.learning.losses import (
    LossSpec,
    finish_stats,
    merge_stats,
    policy_loss,
    token_weights,
)
from scope_jax.types import Owner, Rollout

NAN = float("nan")
TEACHER_TERMS = ("nll", "shaped", "reinforce", "importance", "mask")


def rollout_of(owners: list[str], slots: int) -> Rollout:
    """Rows spelled as owners: q prompt, p policy, t teacher; the rest is PAD."""
    code = {"q": Owner.PROMPT, "p": Owner.POLICY, "t": Owner.TEACHER}
    owner = np.zeros((len(owners), slots), np.int8)
    for row, text in enumerate(owners):
        owner[row, : len(text)] = [code[c] for c in text]
    length = np.array([len(text) for text in owners], np.int32)
    prompt = np.array([text.count("q") for text in owners], np.int32)
    zeros = np.zeros(owner.shape, np.int32)
    return Rollout(
        tokens_BT=zeros,
        owner_BT=owner,
        logp_BT=zeros.astype(np.float32),
        length_B=length,
        prompt_length_B=prompt,
        finished_B=np.ones(len(owners), bool),
        row_id_B=np.arange(len(owners), dtype=np.int32),
    )


def where_owned(owners, letter, slots, value=1.0):
    return np.array([[value if c == letter else 0.0 for c in text.ljust(slots)] for text in owners])


# Level 0: compiling is what these tests spend their time on.
@functools.partial(
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0}
)
def evaluate(spec, logp, old, advantage, on, off, **more):
    """(loss, statistics, gradient with respect to logp), compiled once per spec and shape."""

    def loss(logp):
        return policy_loss(logp, old, advantage, on, off, spec, **more)

    (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(logp)
    return value, stats, gradient


# ------------------------------------------------------------------------------------------------
# token weights

ROWS = ["qppp", "qqppttp", "qt"]  # POLICY 3 + 3 + 0, TEACHER 0 + 2 + 1


def test_constant_weights():
    on, off = token_weights(rollout_of(ROWS, 8), LossSpec(normaliser="constant", max_new_tokens=5))
    assert on.dtype == off.dtype == jnp.float32
    np.testing.assert_allclose(on, where_owned(ROWS, "p", 8, 1 / 15), rtol=1e-6)
    np.testing.assert_allclose(off, where_owned(ROWS, "t", 8, 1 / 15), rtol=1e-6)


def test_token_weights_count_teacher_tokens():
    on, off = token_weights(rollout_of(ROWS, 8), LossSpec(normaliser="token"))
    np.testing.assert_allclose(on, where_owned(ROWS, "p", 8, 1 / 9), rtol=1e-6)
    np.testing.assert_allclose(off, where_owned(ROWS, "t", 8, 1 / 9), rtol=1e-6)
    np.testing.assert_allclose(jnp.sum(on) + jnp.sum(off), 1, rtol=1e-6)


def test_sequence_weights():
    on, off = token_weights(rollout_of(ROWS, 8), LossSpec(normaliser="sequence"))
    np.testing.assert_allclose(on[0, 1:4], [1 / 9] * 3, rtol=1e-6)
    np.testing.assert_allclose(on[1], np.array([0, 0, 1, 1, 0, 0, 1, 0]) / 15, rtol=1e-6)
    np.testing.assert_allclose(off[1], np.array([0, 0, 0, 0, 1, 1, 0, 0]) / 15, rtol=1e-6)
    np.testing.assert_allclose(off[2, 1], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(jnp.sum(on + off, axis=1), [1 / 3] * 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("normaliser", "on_share"), [("constant", 1 / 15), ("token", 1 / 9), ("sequence", None)]
)
def test_own_teacher_normaliser_counts_teacher_tokens_only(normaliser, on_share):
    spec = LossSpec(normaliser=normaliser, teacher_normaliser="own", max_new_tokens=5)
    on, off = token_weights(rollout_of(ROWS, 8), spec)
    np.testing.assert_allclose(off, where_owned(ROWS, "t", 8, 1 / 3), rtol=1e-6)
    if on_share:
        np.testing.assert_allclose(on, where_owned(ROWS, "p", 8, on_share), rtol=1e-6)
    else:
        np.testing.assert_allclose(on[0, 1], 1 / 9, rtol=1e-6)
        np.testing.assert_allclose(on[1, 2], 1 / 15, rtol=1e-6)


def test_rows_left_out_keep_the_teacher_term_only():
    rollout, include = rollout_of(ROWS, 8), np.array([True, False, False])
    on, off = token_weights(rollout, LossSpec(normaliser="token"), include_B=include)
    # What carries weight: 3 POLICY tokens of row 0, 3 TEACHER tokens.
    np.testing.assert_allclose(on, where_owned(["qppp", "", ""], "p", 8, 1 / 6), rtol=1e-6)
    np.testing.assert_allclose(off, where_owned(ROWS, "t", 8, 1 / 6), rtol=1e-6)
    # A row left out that has no teacher token either is no row of the normaliser.
    on, _ = token_weights(
        rollout,
        LossSpec(normaliser="constant", max_new_tokens=5),
        include_B=np.array([False, True, True]),
    )
    np.testing.assert_allclose(on, where_owned(["", ROWS[1], ""], "p", 8, 1 / 10), rtol=1e-6)


def test_weights_read_length_and_ignore_empty_rows():
    rollout = rollout_of(["qpppp", "qq", "", "qptt"], 6)
    rollout = rollout.replace(
        length_B=np.array([3, 2, 0, 2], np.int32)
    )  # two rows cut, owners left behind
    for normaliser, first, last in (
        ("constant", 1 / 8, 1 / 8),
        ("token", 1 / 3, 1 / 3),
        ("sequence", 1 / 4, 1 / 2),
    ):
        on, off = token_weights(rollout, LossSpec(normaliser=normaliser, max_new_tokens=4))
        np.testing.assert_allclose(on[0], [0, first, first, 0, 0, 0], rtol=1e-6)
        np.testing.assert_allclose(on[3], [0, last, 0, 0, 0, 0], rtol=1e-6)
        np.testing.assert_array_equal(on[1:3], np.zeros((2, 6)))
        np.testing.assert_array_equal(off, np.zeros((4, 6)))


def test_no_token_at_all_gives_zero_weights():
    for normaliser in ("constant", "token", "sequence"):
        spec = LossSpec(normaliser=normaliser, teacher_normaliser="own", max_new_tokens=4)
        on, off = jax.jit(lambda r, spec=spec: token_weights(r, spec))(rollout_of(["qq", ""], 4))
        np.testing.assert_array_equal(on + off, np.zeros((2, 4)))


def test_token_weights_errors():
    with pytest.raises(ValueError, match="needs LossSpec"):
        token_weights(rollout_of(ROWS, 8), LossSpec(normaliser="constant"))
    with pytest.raises(ValueError, match=r"expected bool\[3\]"):
        token_weights(rollout_of(ROWS, 8), LossSpec(normaliser="token"), include_B=np.ones(4, bool))


# ---------------------------------------------------------------------------------------------
# hand-computed losses


def one_token(spec, pi, old, advantage, on=1.0, off=0.0, **more):
    """(loss, d loss / d log pi, metrics) of a batch of one token."""

    def array(x):
        return np.full((1, 1), x, np.float32)

    more = {k: array(v) if k.endswith("_BT") else v for k, v in more.items()}
    arguments = (array(math.log(old)), array(advantage), array(on), array(off))
    value, stats, gradient = evaluate(spec, array(math.log(pi)), *arguments, **more)
    return (
        float(value),
        float(gradient[0, 0]),
        {k: float(v) for k, v in finish_stats(stats).items()},
    )


@pytest.mark.parametrize(
    ("pi", "old", "advantage", "value", "gradient", "clipped"),
    [
        (0.6, 0.5, 2.0, -2.4, -2.4, 0),  # rho 1.2, inside: gradient is -rho A
        (0.75, 0.5, 2.0, -2.56, 0.0, 1),  # rho 1.5 cut at 1.28
        (0.25, 0.5, 2.0, -1.0, -1.0, 0),  # rho 0.5 with A > 0 is never cut
        (0.25, 0.5, -2.0, 1.6, 0.0, 1),  # rho 0.5 cut at 0.8
        (0.75, 0.5, -2.0, 3.0, 3.0, 0),  # rho 1.5 with A < 0 is never cut
        (0.75, 0.5, 0.0, 0.0, 0.0, 0),
    ],
)
def test_clipped_surrogate_by_hand(pi, old, advantage, value, gradient, clipped):
    got = one_token(LossSpec(), pi, old, advantage)
    assert got[:2] == pytest.approx((value, gradient), rel=1e-5, abs=1e-7)
    assert got[2]["policy/clip_share"] == clipped
    assert got[2]["policy/ratio_max"] == pytest.approx(pi / old, rel=1e-5)
    half = one_token(LossSpec(), pi, old, advantage, on=0.5)
    assert half[:2] == pytest.approx((value / 2, gradient / 2), rel=1e-5, abs=1e-7)
    assert half[2]["policy/ratio_mean"] == pytest.approx(
        pi / old, rel=1e-5
    )  # statistics count tokens, not weights


def test_the_gap_between_sampler_and_trainer_by_hand():
    """Over POLICY tokens that the sampler recorded; of several micro-batches as of one."""
    trained = np.array([[-1.0, -2.0, -3.0], [-0.5, -0.25, -9.0]], np.float32)
    sampled = np.array([[-1.5, np.nan, -2.0], [-0.5, -0.5, -1.0]], np.float32)
    on = np.array([[1, 1, 1], [1, 1, 0]], np.float32)  # the last position is padding
    zeros = np.zeros_like(on)

    def statistics(rows):
        given = (trained[rows], sampled[rows], zeros[rows], on[rows], zeros[rows])
        return policy_loss(given[0], None, *given[2:], LossSpec(), sampler_logp_BT=given[1])[1]

    merged = merge_stats(statistics(slice(0, 1)), statistics(slice(1, 2)))
    for stats in (statistics(slice(None)), merged):
        metrics = finish_stats(stats)
        assert float(metrics["sampler/logp_gap_max"]) == 1.0
        assert float(metrics["sampler/logp_gap_mean"]) == pytest.approx((0.5 + 1 + 0 + 0.25) / 4)


def test_dual_clip_bounds_a_bad_token():
    spec = LossSpec(dual_clip=3.0)
    got = one_token(spec, 0.8, 0.1, -2.0)  # rho 8: without the bound the loss is 16
    assert got[:2] == pytest.approx((6.0, 0.0), rel=1e-5)
    assert got[2]["policy/clip_share"] == 1
    assert one_token(LossSpec(), 0.8, 0.1, -2.0)[:2] == pytest.approx((16.0, 16.0), rel=1e-5)
    assert one_token(spec, 0.2, 0.1, -2.0)[:2] == pytest.approx((4.0, 4.0), rel=1e-5)
    assert one_token(spec, 0.8, 0.1, 2.0)[0] == pytest.approx(
        -2.56, rel=1e-5
    )  # A > 0: not its business


def test_without_clip_the_ratio_is_free():
    spec = LossSpec(clip_low=None, clip_high=None)
    assert one_token(spec, 0.9, 0.1, 1.0)[:2] == pytest.approx((-9.0, -9.0), rel=1e-5)
    assert one_token(spec, 0.05, 0.5, -1.0)[:2] == pytest.approx((0.1, 0.1), rel=1e-5)


@pytest.mark.parametrize(
    ("term", "value", "gradient"),
    [
        # pi = 0.1, A = 3, lambda = 0.5, off = 0.2: -0.1 g
        ("nll", 0.1 * math.log(10), -0.1),
        (
            "shaped",
            -0.1 * 3 * 0.5,
            -0.1 * 3 * 0.25,
        ),  # f = 0.1/(0.1+0.1); p f'(p) = p gamma/(p+gamma)^2 = 0.25
        ("reinforce", 0.1 * 3 * math.log(10), -0.1 * 3),
        (
            "importance",
            0.1 * 0.4 * 3 * math.log(10),
            -0.1 * 0.4 * 3,
        ),  # pi_teacher = 0.25: weight 0.4
        ("mask", 0.0, 0.0),
    ],
)
def test_teacher_terms_by_hand(term, value, gradient):
    spec = LossSpec(teacher_term=term, teacher_weight=0.5)
    # old_logp of a TEACHER token is meaningless: 1e-30 would make a ratio of 1e29.
    got = one_token(spec, 0.1, 1e-30, 3.0, on=0.0, off=0.2, teacher_logp_BT=math.log(0.25))
    assert got[:2] == pytest.approx((value, gradient), rel=1e-5, abs=1e-8)
    assert got[2]["policy/teacher_logp"] == pytest.approx(math.log(0.1), rel=1e-5)
    assert got[2]["policy/ratio_max"] == 0  # no POLICY token


def test_importance_cap_and_unknown_teacher_probability():
    spec = LossSpec(teacher_term="importance", teacher_weight=1.0, importance_cap=2.0)
    token = dict(pi=0.5, old=0.5, advantage=1.0, on=0.0, off=1.0)
    assert one_token(spec, **token, teacher_logp_BT=math.log(0.1))[1] == pytest.approx(
        -2.0, rel=1e-5
    )  # 5 capped
    assert one_token(spec, **token, teacher_logp_BT=-math.inf)[1] == pytest.approx(-2.0, rel=1e-5)
    assert one_token(spec, **token, teacher_logp_BT=NAN)[1] == pytest.approx(
        -0.5, rel=1e-5
    )  # probability 1


def test_sequence_ratio_by_hand():
    # One row; POLICY tokens with ratios 1.1 and 1.3, a TEACHER token between them that must not
    # enter.
    old = np.log(np.array([[0.5, 1e-9, 0.5, NAN]], np.float32))
    on, off = np.array([[0.5, 0, 0.5, 0]], np.float32), np.array([[0, 0.5, 0, 0]], np.float32)
    rest = (old, np.full((1, 4), 2, np.float32), on, off)
    spec = LossSpec(ratio="sequence", teacher_term="mask")
    loss, stats, gradient = evaluate(
        spec, np.log(np.array([[0.55, 0.9, 0.65, 0.5]], np.float32)), *rest
    )
    mean = (1.1 * 1.3) ** 0.5
    assert float(loss) == pytest.approx(-2 * mean, rel=1e-5)
    np.testing.assert_allclose(gradient, [[-mean, 0, -mean, 0]], rtol=1e-5)
    assert float(finish_stats(stats)["policy/ratio_mean"]) == pytest.approx(mean, rel=1e-5)
    # Ratios 0.9 and 1.5: the second token alone is outside, the row's mean, 1.162, is inside.
    logp = np.log(np.array([[0.45, 0.9, 0.75, 0.5]], np.float32))
    assert float(finish_stats(evaluate(spec, logp, *rest)[1])["policy/clip_share"]) == 0
    spec = LossSpec(teacher_term="mask")
    assert float(finish_stats(evaluate(spec, logp, *rest)[1])["policy/clip_share"]) == 0.5


def test_truncated_importance_weight_by_hand():
    spec = LossSpec(tis_cap=2.0, old_logp="recompute")
    got = one_token(spec, 0.6, 0.5, 1.0, sampler_logp_BT=math.log(0.4))  # weight 1.25 on rho 1.2
    assert got[:2] == pytest.approx((-1.5, -1.5), rel=1e-5)
    assert got[2]["policy/tis_mean"] == pytest.approx(1.25, rel=1e-5)
    assert one_token(spec, 0.6, 0.5, 1.0, sampler_logp_BT=math.log(0.1))[0] == pytest.approx(
        -2.4, rel=1e-5
    )
    assert one_token(spec, 0.6, 0.5, 1.0, sampler_logp_BT=NAN)[0] == pytest.approx(-1.2, rel=1e-5)


def test_kl_and_entropy_by_hand():
    kl = 2 - math.log(2) - 1  # reference / pi = 2
    got = one_token(
        LossSpec(kl_weight=0.1), 0.25, 0.25, 0.0, on=0.5, reference_logp_BT=math.log(0.5)
    )
    assert got[:2] == pytest.approx((0.1 * 0.5 * kl, 0.1 * 0.5 * (1 - 2)), rel=1e-5)
    assert got[2]["policy/kl"] == pytest.approx(kl, rel=1e-5)
    got = one_token(LossSpec(entropy_bonus=0.01), 0.25, 0.25, 0.0, on=0.5, entropy_BT=1.5)
    assert got[0] == pytest.approx(-0.01 * 0.5 * 1.5, rel=1e-5)
    assert got[2]["policy/entropy"] == 1.5
    assert "policy/kl" not in got[2]
    on = jnp.array([[0.5, 0.0]])
    spec = LossSpec(entropy_bonus=0.01)

    def loss(entropy):
        return policy_loss(on, on, on, on, 0 * on, spec, entropy_BT=entropy)[0]

    np.testing.assert_allclose(
        jax.jit(jax.grad(loss))(jnp.array([[1.5, NAN]])), [[-0.005, 0]], rtol=1e-6
    )


# ------------------------------------------------------------------------- an independent version,
# and differences

OWNERS = ["qpppptt", "qqpptpp", "qtttp", "qppppp", "qqp", "qtt", "qppt", "q"]
SLOTS = 7


def batch(seed=0):
    """Random arrays with NaN in every slot that no one should read; ratios keep away from the
    kinks of the clip."""
    rng = np.random.default_rng(seed)
    shape = (len(OWNERS), SLOTS)
    policy, teacher = where_owned(OWNERS, "p", SLOTS) > 0, where_owned(OWNERS, "t", SLOTS) > 0
    log_ratio = np.log(rng.choice([0.4, 0.7, 0.9, 1.05, 1.2, 1.4, 2.5, 5.0], size=shape))
    logp = rng.uniform(-3, -0.3, size=shape)
    written = policy | teacher

    def nan(keep, values):
        return np.where(keep, values, NAN).astype(np.float32)

    return {
        "logp": nan(written, logp),
        "old": nan(policy, logp - log_ratio),
        "advantage": nan(
            written, rng.uniform(0.2, 1.5, size=shape) * rng.choice([-1, 1], size=shape)
        ),
        "on": np.where(policy, rng.uniform(0.01, 0.1, size=shape), 0).astype(np.float32),
        "off": np.where(teacher, rng.uniform(0.01, 0.1, size=shape), 0).astype(np.float32),
        "teacher": nan(teacher, rng.uniform(-2, -0.1, size=shape)),
        "reference": nan(policy, logp + rng.uniform(-0.5, 0.5, size=shape)),
        "sampler": nan(policy, logp - log_ratio + rng.uniform(-0.5, 0.5, size=shape)),
        "entropy": nan(policy, rng.uniform(0.1, 2, size=shape)),
    }


def oracle(logp, at, x, spec):
    """The loss in float64, token by token from the formulas. `at` = log-probs at which stopped
    gradients are taken."""
    total = 0.0
    for b in range(logp.shape[0]):
        on_slots = [t for t in range(logp.shape[1]) if x["on"][b, t] > 0]
        differences = [float(logp[b, t]) - float(x["old"][b, t]) for t in on_slots]
        for t, difference in zip(on_slots, differences):
            if spec.ratio == "sequence":
                difference = sum(differences) / len(differences)
            rho, A = math.exp(difference), float(x["advantage"][b, t])
            low = 0 if spec.clip_low is None else 1 - spec.clip_low
            high = math.inf if spec.clip_high is None else 1 + spec.clip_high
            gain = min(rho * A, min(max(rho, low), high) * A)
            if spec.dual_clip is not None and A < 0:
                gain = max(gain, spec.dual_clip * A)
            if spec.tis_cap is not None:
                gain *= min(
                    math.exp(float(x["old"][b, t]) - float(x["sampler"][b, t])), spec.tis_cap
                )
            gap = float(x["reference"][b, t]) - float(logp[b, t])
            gain -= spec.kl_weight * (math.exp(gap) - gap - 1)
            gain += spec.entropy_bonus * float(x["entropy"][b, t])
            total -= float(x["on"][b, t]) * gain
        for t in range(logp.shape[1]):
            if x["off"][b, t] > 0:
                lp, A = float(logp[b, t]), float(x["advantage"][b, t])
                weight = min(
                    math.exp(float(at[b, t]) - float(x["teacher"][b, t])), spec.importance_cap
                )
                g = {
                    "nll": lp,
                    "shaped": A * math.exp(lp) / (math.exp(lp) + spec.shaping_gamma),
                    "reinforce": A * lp,
                    "importance": weight * A * lp,
                    "mask": 0.0,
                }[spec.teacher_term]
                total -= spec.teacher_weight * float(x["off"][b, t]) * g
    return total


def loss_of(x, spec, rows=slice(None)):
    """(loss, statistics, gradient with respect to logp) of some rows of `batch`."""
    x = {name: values[rows] for name, values in x.items()}
    more = {f"{name}_logp_BT": x[name] for name in ("teacher", "reference", "sampler")}
    arguments = (x["logp"], x["old"], x["advantage"], x["on"], x["off"])
    return jax.device_get(evaluate(spec, *arguments, **more, entropy_BT=x["entropy"]))


VARIANTS = {
    **{
        term: LossSpec(teacher_term=term, teacher_weight=0.7, importance_cap=1.3)
        for term in TEACHER_TERMS
    },
    "gamma": LossSpec(teacher_term="shaped", shaping_gamma=0.5, teacher_weight=1.0),
    "dual": LossSpec(dual_clip=3.0),
    "one side": LossSpec(clip_low=0.15, clip_high=None),
    "gspo": LossSpec(ratio="sequence", clip_low=0.3, clip_high=0.4),
    "gspo dual": LossSpec(ratio="sequence", clip_low=0.01, clip_high=0.02, dual_clip=1.5),
    "tis": LossSpec(tis_cap=1.2, old_logp="recompute"),
    "kl entropy": LossSpec(kl_weight=0.3, entropy_bonus=0.02),
    "all": LossSpec(
        kl_weight=0.3,
        entropy_bonus=0.02,
        tis_cap=1.1,
        old_logp="recompute",
        dual_clip=2.0,
        teacher_term="shaped",
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_value_and_gradient_match_float64_differences(name):
    spec, x = VARIANTS[name], batch()
    value, stats, gradient = loss_of(x, spec)
    logp = x["logp"].astype(np.float64)
    assert float(value) == pytest.approx(oracle(logp, logp, x, spec), rel=2e-5, abs=1e-6)
    assert np.all(np.isfinite(gradient))
    want = np.zeros_like(logp)
    for b, t in np.ndindex(*logp.shape):
        if x["on"][b, t] > 0 or x["off"][b, t] > 0:
            up, down = logp.copy(), logp.copy()
            up[b, t] += 1e-5
            down[b, t] -= 1e-5
            want[b, t] = (oracle(up, logp, x, spec) - oracle(down, logp, x, spec)) / 2e-5
    np.testing.assert_allclose(gradient, want, rtol=1e-3, atol=2e-6)
    assert np.abs(want).max() > 1e-3
    metrics = finish_stats(stats)
    assert all(np.isfinite(v) for v in metrics.values())
    if spec.ratio == "token":
        ratio = np.exp(logp - x["old"])[x["on"] > 0]
        assert float(metrics["policy/ratio_mean"]) == pytest.approx(ratio.mean(), rel=1e-4)
        assert float(metrics["policy/ratio_max"]) == pytest.approx(ratio.max(), rel=1e-4)
    assert float(metrics["policy/teacher_logp"]) == pytest.approx(
        logp[x["off"] > 0].mean(), rel=1e-4
    )
    assert float(metrics["policy/entropy"]) == pytest.approx(
        x["entropy"][x["on"] > 0].mean(), rel=1e-4
    )


def test_clip_share_counts_what_lost_its_gradient():
    x = batch()
    x["off"][:] = 0
    for spec in (VARIANTS["nll"], VARIANTS["dual"], VARIANTS["one side"]):
        _, stats, gradient = loss_of(x, spec)
        on = x["on"] > 0
        assert 0 < np.sum(gradient[on] == 0) < on.sum()
        assert float(finish_stats(stats)["policy/clip_share"]) == pytest.approx(
            np.mean(gradient[on] == 0)
        )


@pytest.mark.parametrize("pieces", [2, 4])
@pytest.mark.parametrize("name", ["gspo", "all"])
def test_micro_batches_add_up(name, pieces):
    spec, x = VARIANTS[name], batch(1)
    value, stats, gradient = loss_of(x, spec)
    size = len(OWNERS) // pieces
    parts = [loss_of(x, spec, slice(i * size, (i + 1) * size)) for i in range(pieces)]
    assert sum(float(p[0]) for p in parts) == pytest.approx(float(value), rel=1e-5)
    np.testing.assert_array_equal(np.concatenate([p[2] for p in parts]), gradient)
    whole, merged = finish_stats(stats), finish_stats(merge_stats(*[p[1] for p in parts]))
    assert whole.keys() == merged.keys()
    for metric in whole:
        assert float(merged[metric]) == pytest.approx(float(whole[metric]), rel=1e-5), metric


@pytest.mark.parametrize(
    ("normaliser", "teacher_normaliser"),
    [("constant", "shared"), ("token", "own"), ("sequence", "shared")],
)
def test_real_weights_and_scan_over_micro_batches(normaliser, teacher_normaliser):
    """Parameters, not log-probs, are differentiated; statistics go through a scan that starts from
    zeros."""
    spec = LossSpec(normaliser=normaliser, max_new_tokens=6, teacher_normaliser=teacher_normaliser)
    x, rollout = batch(2), rollout_of(OWNERS, SLOTS)
    include = np.array([1, 1, 0, 1, 1, 1, 0, 1], bool)
    on, off = token_weights(rollout, spec, include_B=include)
    np.testing.assert_array_equal(np.asarray(on)[~include], np.zeros((2, SLOTS)))
    assert np.asarray(off)[2].max() > 0  # left out, still cloned

    def total(scale, part):
        logp = jnp.where(part["logp"] < 0, part["logp"], 0.0) * scale
        return policy_loss(logp, part["old"], part["advantage"], part["on"], part["off"], spec)

    part = {"logp": x["logp"], "old": x["old"], "advantage": x["advantage"], "on": on, "off": off}
    results = []
    for pieces in (1, 4):
        split = jax.tree.map(lambda a, n=pieces: np.asarray(a).reshape(n, -1, SLOTS), part)
        step = jax.value_and_grad(total, has_aux=True)
        shapes = jax.eval_shape(step, 1.1, jax.tree.map(lambda a: a[0], split))
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

        def body(carry, micro, step=step):
            (value, stats), gradient = step(1.1, micro)
            (old_value, old_stats), old_gradient = carry
            return (
                (old_value + value, merge_stats(old_stats, stats)),
                old_gradient + gradient,
            ), None

        ((value, stats), gradient), _ = jax.jit(lambda z, s, body=body: jax.lax.scan(body, z, s))(
            zeros, split
        )
        results.append(
            [float(value), float(gradient), *[float(v) for v in finish_stats(stats).values()]]
        )
    assert abs(results[0][1]) > 1e-3
    np.testing.assert_allclose(results[1], results[0], rtol=2e-5)


@pytest.mark.parametrize("normaliser", ["constant", "token", "sequence"])
@pytest.mark.parametrize("teacher_normaliser", ["shared", "own"])
def test_the_whole_objective_under_every_normaliser(normaliser, teacher_normaliser):
    """From owners, advantages and log-probs to loss and gradient, without a look at the weights in
    between."""
    spec = LossSpec(
        teacher_term="shaped",
        teacher_weight=0.7,
        normaliser=normaliser,
        teacher_normaliser=teacher_normaliser,
        max_new_tokens=6,
    )
    x, include = batch(9), np.array([1, 1, 0, 1, 1, 1, 0, 1], bool)
    on, off = token_weights(rollout_of(OWNERS, SLOTS), spec, include_B=include)
    value, _, gradient = evaluate(spec, x["logp"], x["old"], x["advantage"], on, off)

    counted = [
        [c if c == "t" or (c == "p" and include[b]) else "-" for c in row]
        for b, row in enumerate(OWNERS)
    ]
    tokens = [sum(c in "pt" for c in row) for row in counted]
    rows, teachers = sum(n > 0 for n in tokens), sum(row.count("t") for row in counted)
    assert (rows, sum(tokens), teachers) == (
        7,
        23,
        9,
    )  # rows 2 and 6 with their TEACHER tokens only; row 7 holds nothing
    total, want = 0.0, np.zeros((len(OWNERS), SLOTS))
    for b, row in enumerate(counted):
        N = {"constant": rows * 6, "token": sum(tokens), "sequence": rows * tokens[b]}[normaliser]
        for t, c in enumerate(row):
            logp, A = float(x["logp"][b, t]), float(x["advantage"][b, t])
            if c == "p":
                rho = math.exp(logp - float(x["old"][b, t]))
                cut = (A > 0 and rho > 1.28) or (A < 0 and rho < 0.8)
                total -= min(rho * A, min(max(rho, 0.8), 1.28) * A) / N
                want[b, t] = 0.0 if cut else -rho * A / N
            elif c == "t":
                p, M = math.exp(logp), N if teacher_normaliser == "shared" else teachers
                total -= 0.7 * A * p / (p + 0.1) / M
                want[b, t] = -0.7 * A * 0.1 * p / (p + 0.1) ** 2 / M
    assert float(value) == pytest.approx(total, rel=2e-5)
    np.testing.assert_allclose(gradient, want, rtol=2e-5, atol=1e-8)


# ------------------------------------------------------------------------------------------------
# NaN safety


@pytest.mark.parametrize("poison", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("name", VARIANTS)
def test_what_has_no_weight_is_never_read(name, poison):
    spec, x = VARIANTS[name], batch(3)
    clean = {k: np.where(np.isnan(v), np.float32(0), v) for k, v in x.items()}
    dirty = {k: np.where(np.isnan(v), np.float32(poison), v) for k, v in x.items()}
    value, stats, gradient = loss_of(clean, spec)
    dirty_value, dirty_stats, dirty_gradient = loss_of(dirty, spec)
    assert float(value) == float(dirty_value)
    np.testing.assert_array_equal(gradient, dirty_gradient)
    np.testing.assert_array_equal(np.asarray(gradient)[(x["on"] == 0) & (x["off"] == 0)], 0)
    for metric in stats:
        assert float(stats[metric]) == float(dirty_stats[metric]), metric


def test_rows_without_weight_give_nothing():
    x = {k: np.full((len(OWNERS), SLOTS), NAN, np.float32) for k in batch()}
    x["on"], x["off"] = np.zeros_like(x["logp"]), np.zeros_like(x["logp"])
    value, stats, gradient = loss_of(x, VARIANTS["all"])
    assert float(value) == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(x["logp"]))
    assert {float(v) for v in finish_stats(stats).values()} == {0.0}


def test_unknown_log_prob_on_a_weighted_token_is_not_hidden():
    assert math.isnan(one_token(LossSpec(), 0.5, 0.5, NAN)[0])
    assert math.isnan(one_token(LossSpec(), NAN, 0.5, 1.0)[0])


@pytest.mark.parametrize("name", ["nll", "gspo", "all"])
def test_absurd_ratios_stay_finite(name):
    one = np.ones((len(OWNERS), SLOTS), np.float32)
    for logp in (-1, -401):
        for advantage in (one, -one):
            x = {
                "logp": logp * one,
                "old": -201 * one,
                "advantage": advantage,
                "on": one,
                "off": one,
                "entropy": one,
            }
            value, _, gradient = loss_of(
                {**x, **dict.fromkeys(("teacher", "reference", "sampler"), -2 * one)},
                VARIANTS[name],
            )
            assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_shaped_gradient_stays_finite_where_the_probability_underflows():
    one = np.ones((1, 1), np.float32)
    spec = LossSpec(teacher_term="shaped", teacher_weight=1.0)
    value, _, gradient = evaluate(spec, -500 * one, one, one, 0 * one, one)
    assert float(value) == 0 and float(gradient[0, 0]) == 0


# ------------------------------------------------------------------------------------------------
# calls and errors


def test_old_log_probs_none_is_one_update_per_batch():
    x = batch(4)
    advantage = np.nan_to_num(x["advantage"])
    spec = LossSpec(teacher_term="mask")
    value, _, gradient = evaluate(spec, x["logp"], None, advantage, x["on"], x["off"])
    np.testing.assert_allclose(gradient, -x["on"] * advantage, rtol=1e-6)  # plain policy gradient
    assert float(value) == pytest.approx(-np.sum(x["on"] * advantage), rel=1e-5)


def test_only_the_policy_is_differentiated():
    x = {k: jnp.nan_to_num(jnp.asarray(v)) for k, v in batch(5).items()}
    spec = LossSpec(teacher_term="importance", teacher_weight=1.0)

    def loss(old, advantage, on, off, teacher):
        return policy_loss(x["logp"], old, advantage, on, off, spec, teacher_logp_BT=teacher)[0]

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4)))
    for gradient in gradients(x["old"], x["advantage"], x["on"], x["off"], x["teacher"]):
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_one_advantage_per_row_and_traced_lambda():
    x = batch(6)
    row = np.arange(1.0, 9.0, dtype=np.float32)[:, None]
    spec = LossSpec(teacher_term="reinforce")
    run = jax.jit(
        lambda advantage, weight: policy_loss(
            x["logp"], x["old"], advantage, x["on"], x["off"], spec, teacher_weight=weight
        )[0]
    )
    assert float(run(row, 0.3)) == float(run(np.broadcast_to(row, x["on"].shape), 0.3))
    nothing = float(run(row, 0.0))
    assert float(run(row, 0.3)) - nothing == pytest.approx(
        0.3 * (float(run(row, 1.0)) - nothing), rel=1e-4
    )


def test_low_precision_inputs_are_computed_in_float32():
    x = batch(7)
    arguments = (x["advantage"], x["on"], x["off"], LossSpec())
    logp, old = jnp.asarray(x["logp"], jnp.bfloat16), jnp.asarray(x["old"], jnp.bfloat16)
    low, _ = policy_loss(logp, old, *arguments)
    same, _ = policy_loss(logp.astype(jnp.float32), old.astype(jnp.float32), *arguments)
    assert low.dtype == jnp.float32 and float(low) == float(same)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"teacher_term": "clone"},
            "teacher_term = 'clone' is unknown; one of nll, shaped",
        ),
        ({"normaliser": "batch"}, "normaliser = 'batch' is unknown"),
        (
            {"teacher_normaliser": "mine"},
            "teacher_normaliser = 'mine' is unknown; one of shared, own",
        ),
        ({"ratio": "row"}, "ratio = 'row' is unknown"),
        ({"clip_low": 1.5}, "clip_low = 1.5; expected at most 1"),
        ({"clip_high": -0.1}, "clip_high = -0.1"),
        ({"dual_clip": 1.0}, "dual_clip = 1.0; expected a number above 1 or None"),
        ({"teacher_steps": 0}, "teacher_steps = 0; expected at least 1 or None"),
        (
            {"teacher_steps": 9, "teacher_schedule": "constant"},
            "teacher_steps = 9 is of a schedule",
        ),
        ({"teacher_weight": -0.1}, "teacher_weight = -0.1"),
        ({"teacher_weight": None}, "teacher_weight = None"),
        ({"teacher_weight": NAN}, "teacher_weight = nan"),
        ({"shaping_gamma": 0.0}, "shaping_gamma = 0.0; expected a number above 0"),
        ({"importance_cap": "1"}, "importance_cap = '1'"),
        ({"tis_cap": 0}, "tis_cap = 0"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0; expected at least 1"),
        ({"kl_weight": math.inf}, "kl_weight = inf"),
        ({"entropy_bonus": -1}, "entropy_bonus = -1"),
    ],
)
def test_bad_specs_are_named_in_one_line(wrong, message):
    with pytest.raises(ValueError) as error:
        LossSpec(**wrong)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_missing_arguments_and_wrong_shapes_are_named():
    one = jnp.ones((2, 3))
    for spec, name in (
        (LossSpec(teacher_term="importance"), "needs teacher_logp_BT"),
        (LossSpec(kl_weight=0.1), "needs reference_logp_BT"),
        (LossSpec(tis_cap=2.0, old_logp="recompute"), "needs sampler_logp_BT"),
        (LossSpec(entropy_bonus=0.1), "needs entropy_BT"),
    ):
        with pytest.raises(ValueError, match=name):
            policy_loss(one, one, one, one, one, spec)
    with pytest.raises(
        ValueError, match=r"on_BT has shape \(3, 2\); expected that of logp_BT, \(2, 3\)"
    ):
        policy_loss(one, one, one, one.T, one, LossSpec())
    with pytest.raises(ValueError, match="old_logp_BT has shape"):
        policy_loss(one, one[:, :1], one, one, one, LossSpec())
    with pytest.raises(ValueError, match="advantage_BT has shape"):
        policy_loss(one, one, one[:, 0], one, one, LossSpec())
