"""What updates minimise, on a model whose log-probs numpy knows: values and gradients by hand."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.fixtures import make_params
from support.hand_made import PLAIN, V
from support.prm_fixtures import _config
from support.table_model import (
    GROUP,
    TABLE,
    table_entropy,
    table_logprobs,
    table_params,
    table_rows,
    written_mask,
)

from scope_jax import models
from scope_jax.learning import (
    LossSpec,
    cloning_objective,
    pack,
    policy_objective,
    step_label_objective,
)

ROWS = table_rows()
WRITTEN = written_mask(ROWS)
LOGP = table_logprobs(ROWS.tokens_BT)
ADVANTAGE = np.array([1.0, -0.5, 2.0, 0.0, 0.25, -1.0, 0.5, -2.0], np.float32)
# Every third written token is the teacher's.
OFF = WRITTEN & (np.cumsum(WRITTEN).reshape(WRITTEN.shape) % 3 == 0)
ON = WRITTEN & ~OFF


def policy(
    spec: LossSpec, *, entropy: bool = False, temperature: float = 1.0, **more: Any
) -> tuple[float, dict[str, np.ndarray]]:
    """(loss, statistics) with lambda 0.5; every POLICY token weighs 1/8, every TEACHER token
    1/4."""
    arrays = {"advantage": ADVANTAGE, "on": ON / 8, "off": OFF / 4} | more
    arrays = {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}
    objective = policy_objective(PLAIN, spec, temperature=temperature, entropy=entropy)
    total, stats = jax.jit(objective)(
        table_params(), pack(ROWS, arrays, GROUP), {"teacher_weight": jnp.float32(0.5)}
    )
    return float(total), jax.device_get(stats)


def nll(logp: np.ndarray = LOGP) -> float:
    """The teacher's part, lambda and weights included."""
    return float(-0.5 * (OFF / 4 * logp).sum())


def test_without_old_log_probs_the_ratio_is_1():
    found, stats = policy(LossSpec())
    surrogate = -(ON / 8 * ADVANTAGE[:, None]).sum()
    assert found == pytest.approx(surrogate + nll(), rel=1e-4)
    assert (stats["on_tokens"], stats["off_tokens"]) == (ON.sum(), OFF.sum())
    assert stats["ratio_sum"] == pytest.approx(ON.sum()) and stats["gap_max"] == 0


def test_old_log_probs_reach_the_ratio_and_the_clip():
    """All ratios are 1.1 or all 1.5; the upper bound of 1.28 holds where the advantage is above
    0."""
    clipped = np.where(ADVANTAGE > 0, 1.28, 1.5)
    for ratio, value in ((1.1, np.full(8, 1.1)), (1.5, clipped)):
        found, stats = policy(LossSpec(), old_logp=LOGP - np.log(ratio))
        surrogate = -(ON / 8 * (value * ADVANTAGE)[:, None]).sum()
        assert found == pytest.approx(surrogate + nll(), rel=1e-4)
        assert stats["ratio_max"] == pytest.approx(ratio, rel=1e-4)
    assert stats["clip_count"] == (ON & (ADVANTAGE > 0)[:, None]).sum()


def test_an_advantage_may_differ_along_a_row():
    along = np.random.RandomState(4).standard_normal(WRITTEN.shape)
    found, _ = policy(LossSpec(), advantage=along)
    assert found == pytest.approx(-(ON / 8 * along).sum() + nll(), rel=1e-4)


def test_log_probs_are_those_of_the_temperature():
    found, _ = policy(LossSpec(), advantage=np.zeros(8), temperature=0.5)
    assert found == pytest.approx(nll(table_logprobs(ROWS.tokens_BT, 0.5)), rel=1e-4)


def test_the_reference_holds_the_policy():
    plain, _ = policy(LossSpec())
    found, stats = policy(LossSpec(kl_weight=0.2), reference_logp=LOGP + 0.3)
    k3 = np.exp(0.3) - 0.3 - 1
    assert stats["kl_sum"] == pytest.approx(k3 * ON.sum(), rel=1e-3)
    assert found - plain == pytest.approx(0.2 * k3 * ON.sum() / 8, rel=1e-3)


def test_the_samplers_and_the_teachers_log_probs_reach_their_terms():
    spec = LossSpec(tis_cap=2.0, old_logp="recompute", teacher_term="importance")
    found, stats = policy(
        spec, old_logp=LOGP, sampler_logp=LOGP - np.log(1.5), teacher_logp=LOGP + np.log(4)
    )
    surrogate = -(ON / 8 * 1.5 * ADVANTAGE[:, None]).sum()
    gain = -0.5 * (OFF / 4 * 0.25 * ADVANTAGE[:, None] * LOGP).sum()
    assert stats["tis_sum"] == pytest.approx(1.5 * ON.sum(), rel=1e-4)
    assert found == pytest.approx(surrogate + gain, rel=1e-3)


def test_entropy_is_there_where_it_is_asked_for_or_rewarded():
    entropy = table_entropy(ROWS.tokens_BT)
    plain, stats = policy(LossSpec())
    assert "entropy_sum" not in stats
    shown, stats = policy(LossSpec(), entropy=True)
    assert shown == plain
    assert stats["entropy_sum"] == pytest.approx(entropy[ON].sum(), rel=1e-4)
    rewarded, stats = policy(LossSpec(entropy_bonus=0.1))
    assert stats["entropy_sum"] == pytest.approx(entropy[ON].sum(), rel=1e-4)
    assert plain - rewarded == pytest.approx(0.1 * (ON / 8 * entropy).sum(), rel=1e-3)


def test_adapters_are_trained_on_top_of_the_base_in_the_scalars():
    """The value is that of the merged weights; only adapters have a gradient."""
    spec = models.LoraSpec(rank=2, alpha=4.0, targets=("value", "output"))
    fresh = models.init_lora(PLAIN, spec, jax.random.key(0))
    stream = np.random.RandomState(1)
    adapters = jax.tree.map(
        lambda x: jnp.asarray(stream.standard_normal(x.shape), jnp.float32), fresh
    )
    arrays = {"advantage": ADVANTAGE, "on": ON / 8, "off": OFF / 4}
    arrays = {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}
    batch, scalars = pack(ROWS, arrays, GROUP), {"teacher_weight": jnp.float32(0.5)}

    def objective(lora: models.LoraSpec | None):
        return policy_objective(PLAIN, LossSpec(), temperature=1.0, entropy=False, lora=lora)

    (found, _), gradient = jax.jit(jax.value_and_grad(objective(spec), has_aux=True))(
        adapters, batch, scalars | {"base": table_params()}
    )
    merged = models.merge(PLAIN, table_params(), adapters, spec)
    wanted, _ = jax.jit(objective(None))(merged, batch, scalars)
    plain, _ = policy(LossSpec())
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)
    assert abs(float(found) - plain) > 0.01  # these adapters do something
    assert jax.tree.structure(gradient) == jax.tree.structure(adapters)
    assert all((np.asarray(g) != 0).any() for g in jax.tree.leaves(gradient))


def test_cloning_is_the_weighted_negative_log_likelihood():
    """And its gradient in the table is the likelihood minus what was there, for each token."""
    tokens = ROWS.tokens_BT
    weight = np.where(WRITTEN, np.random.RandomState(5).rand(*WRITTEN.shape), 0)
    batch = {"tokens": jnp.asarray(tokens), "weight": jnp.asarray(weight, jnp.float32)}
    objective = cloning_objective(PLAIN)
    (found, stats), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(
        table_params(), batch, {}
    )
    assert stats == {}
    assert float(found) == pytest.approx(-(weight * LOGP).sum(), rel=1e-4)
    share = np.exp(TABLE.astype(np.float64))
    share /= share.sum(axis=1, keepdims=True)
    wanted = np.zeros((V, V))
    for row, line in enumerate(tokens):
        for t in range(1, len(line)):
            wanted[line[t - 1]] += weight[row, t] * share[line[t - 1]]
            wanted[line[t - 1], line[t]] -= weight[row, t]
    # The head's rows are read through an embedding that the norm made sqrt(V) long.
    np.testing.assert_allclose(gradient["head"], wanted * np.sqrt(V), rtol=1e-3, atol=1e-4)


def test_a_token_without_weight_may_be_impossible():
    """Its log-prob is minus infinity, and 0 times that would be NaN."""
    params = table_params() | {"head": table_params()["head"].at[:, 4].set(-3e38)}
    loss = jax.jit(cloning_objective(PLAIN))

    def value(*weight: float) -> float:
        batch = {"tokens": jnp.array([[5, 4, 6, 7]]), "weight": jnp.array([weight])}
        return float(loss(params, batch, {})[0])

    assert value(0, 0, 1, 1) < 20 and value(0, 1, 1, 1) == np.inf


def test_soft_labels_mean_soft_cross_entropy():
    config = dataclasses.replace(_config(272), head="prm", num_layers=1)
    params = make_params(config, 5)
    tokens = jnp.array([[5, 6, 7, 8]])
    weight = jnp.array([[0.0, 0.5, 0.0, 0.25]])
    good = np.asarray(
        models.good_step_probability(params, config, tokens, jnp.array([4])), np.float64
    )[0]
    loss = step_label_objective(config)
    soft, _ = loss(
        params, {"tokens": tokens, "label": jnp.array([[0.0, 0.3, 0.0, 1.0]]), "weight": weight}, {}
    )
    by_hand = -0.5 * (0.3 * np.log(good[1]) + 0.7 * np.log(1 - good[1])) - 0.25 * np.log(good[3])
    assert float(soft) == pytest.approx(by_hand, rel=1e-5)
    whole = [
        loss(
            params,
            {"tokens": tokens, "label": jnp.array([[0, 1, 0, 0]], kind), "weight": weight},
            {},
        )[0]
        for kind in ("int32", "float32")
    ]
    assert float(whole[0]) == float(whole[1])


@pytest.mark.parametrize("kind", ["int32", "float32"])
def test_labels_without_weight_are_not_read(kind: str):
    config = dataclasses.replace(_config(272), head="prm", num_layers=1)
    params = make_params(config, 5)
    loss = jax.jit(step_label_objective(config))
    weight = jnp.array([[0.0, 0.5, 0.0, 0.25]])
    found = [
        loss(
            params,
            {
                "tokens": jnp.array([[5, 6, 7, 8]]),
                "label": jnp.array([label], kind),
                "weight": weight,
            },
            {},
        )
        for label in ([0, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0])
    ]
    assert float(found[0][0]) == float(found[1][0]) != float(found[2][0])
    assert found[0][1] == {}
