"""The rivals' losses as their papers write them, in numpy, against the switches of their config
files.

One batch goes through the library's own chain (rewards, advantages, token weights, loss). The
oracles start again from rewards and log-probs, and never see a token weight.
"""

import dataclasses
import functools
import importlib
import math

import jax
import numpy as np
import pytest

from scope_jax.configs import run
from scope_jax.configuration import Process, Pure, train_config
from scope_jax.learning.advantages import group_advantages
from scope_jax.learning.credit import GoodPrefix, WorstStep
from scope_jax.learning.losses import policy_loss, token_weights
from scope_jax.learning.process_rewards import (
    Rows,
    Steps,
    overlong_penalty,
    prefix_advantages,
    summed_step_advantages,
    worst_step_advantages,
)
from scope_jax.types import Owner, Rollout

GROUP, SLOTS, MAX_NEW = 4, 12, 9
LETTERS = {"q": Owner.PROMPT, "p": Owner.POLICY, "t": Owner.TEACHER}
# Prompts of 2 and 3 tokens; rows of 2 to 9 tokens.
OWNERS = ["qqppp", "qqppppppppp", "qqpp", "qqppppp", "qqqpppp", "qqqpp", "qqqpppppppp", "qqqppp"]
REWARD = np.array([1, 0, 0, 1, 0, 1, 0, 0], np.float32)


def rollout_of(owners):
    owner = np.array(
        [[LETTERS[c] if c != " " else Owner.PAD for c in row.ljust(SLOTS)] for row in owners],
        np.int8,
    )
    B = len(owners)
    return Rollout(
        tokens_BT=np.zeros((B, SLOTS), np.int32),
        owner_BT=owner,
        logp_BT=np.zeros((B, SLOTS), np.float32),
        length_B=np.array([len(row) for row in owners], np.int32),
        prompt_length_B=np.array([row.count("q") for row in owners], np.int32),
        finished_B=np.ones(B, bool),
        row_id_B=np.arange(B, dtype=np.int32),
    )


def log_probs(spread, seed=0):
    """(log pi, log pi_old): their ratios lie within exp(+-spread), far enough from the bounds 0.8,
    1.2 and 1.28."""
    rng = np.random.default_rng(seed)
    old = rng.uniform(-2.5, -0.2, (len(OWNERS), SLOTS))
    ratio = np.exp(rng.uniform(-spread, spread, old.shape))
    for bound in (0.8, 1.2, 1.28):
        ratio = np.where(np.abs(ratio - bound) < 0.01, bound + 0.02, ratio)
    return (old + np.log(ratio)).astype(np.float32), old.astype(np.float32)


@functools.cache
def switches(name):
    """(LossSpec, AdvantageSpec, Credit) of a method, for rows of MAX_NEW tokens."""
    config = run.get_config(f"{name},arithmetic")
    config.rollout.new_tokens = MAX_NEW
    settings = train_config(config)
    return settings.loss, settings.advantage, settings.credit


@functools.partial(
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0}
)
def evaluate(spec, logp, old, advantage, on, off, entropy=None):
    def loss(logp):
        return policy_loss(logp, old, advantage, on, off, spec, entropy_BT=entropy)[0]

    return jax.value_and_grad(loss)(logp)


def chain(name, logp, old, owners=OWNERS, reward=REWARD):
    """(loss, gradient) of the library for a config."""
    loss, advantage, _ = switches(name)
    rows = rollout_of(owners)
    if advantage.overlong_tokens:
        written = rows.length_B - rows.prompt_length_B
        reward = reward + overlong_penalty(
            written, MAX_NEW, advantage.overlong_tokens, advantage.overlong_penalty
        )
    row = np.asarray(group_advantages(reward, GROUP, std=advantage.std))
    on, off = token_weights(rows, loss)
    value, gradient = evaluate(loss, logp, old, row[:, None], on, off)
    return float(value), np.asarray(gradient)


def written(owners):
    """[(row, its slots)] of what was written after the prompt."""
    return [(b, [t for t, c in enumerate(row) if c != "q"]) for b, row in enumerate(owners)]


def group_z(reward, std):
    out = []
    for first in range(0, len(reward), GROUP):
        values = [float(x) for x in reward[first : first + GROUP]]
        mean = sum(values) / GROUP
        scale = math.sqrt(sum((v - mean) ** 2 for v in values) / GROUP) + 1e-6 if std else 1.0
        out += [(v - mean) / scale for v in values]
    return out


def differences(loss, logp, owners=OWNERS):
    """Central differences of `loss(logp)` in float64, token by token."""
    out = np.zeros(logp.shape)
    for b, slots in written(owners):
        for t in slots:
            up, down = logp.astype(np.float64), logp.astype(np.float64)
            up[b, t] += 1e-6
            down[b, t] -= 1e-6
            out[b, t] = (loss(up) - loss(down)) / 2e-6
    return out


def clipped(rho, A, low, high):
    return min(rho * A, min(max(rho, 1 - low), 1 + high) * A)


# ---- without any correction


def grpo(logp, old):
    """arXiv 2402.03300, equation 3 without KL: the mean over rows of the mean over each row's
    tokens; rewards over their std."""
    A, total = group_z(REWARD, True), 0.0
    for b, slots in written(OWNERS):
        total += sum(
            clipped(math.exp(logp[b, t] - old[b, t]), A[b], 0.2, 0.2) for t in slots
        ) / len(slots)
    return -total / len(OWNERS)


def dr_grpo(logp, old):
    """arXiv 2503.20783: no std, and every row over the same number of tokens."""
    A, total = group_z(REWARD, False), 0.0
    for b, slots in written(OWNERS):
        total += (
            sum(clipped(math.exp(logp[b, t] - old[b, t]), A[b], 0.2, 0.2) for t in slots) / MAX_NEW
        )
    return -total / len(OWNERS)


def dapo(logp, old):
    """arXiv 2503.14476, equations 8, 9 and 13: the mean over all tokens, clip-higher, rows of 6 to
    9 tokens punished."""
    lengths = np.array([len(slots) for _, slots in written(OWNERS)])
    A, total = group_z(REWARD - np.clip((lengths - 5) / 4, 0, 1), True), 0.0
    for b, slots in written(OWNERS):
        total += sum(clipped(math.exp(logp[b, t] - old[b, t]), A[b], 0.2, 0.28) for t in slots)
    return -total / lengths.sum()


def gspo(logp, old):
    """arXiv 2507.18071, equation 5: one term per row, with the geometric mean of its tokens'
    ratios."""
    A, total = group_z(REWARD, True), 0.0
    for b, slots in written(OWNERS):
        s = math.exp(sum(logp[b, t] - old[b, t] for t in slots) / len(slots))
        total += clipped(s, A[b], 3e-4, 4e-4)
    return -total / len(OWNERS)


@pytest.mark.parametrize(
    ("oracle", "spread"), [(grpo, 0.6), (dr_grpo, 0.6), (dapo, 0.6), (gspo, 0.6), (gspo, 2e-3)]
)
def test_a_config_is_its_paper(oracle, spread):
    logp, old = log_probs(spread)
    value, gradient = chain(oracle.__name__, logp, old)
    old = old.astype(np.float64)
    assert value == pytest.approx(oracle(logp.astype(np.float64), old), rel=1e-5, abs=1e-6)
    want = differences(lambda at: oracle(at, old), logp)
    np.testing.assert_allclose(gradient, want, rtol=2e-4, atol=2e-6)
    assert np.abs(want).max() > 1e-2
    free = sum(bool(want[b, t]) for b, slots in written(OWNERS) for t in slots)
    assert (
        0 < free < sum(len(slots) for _, slots in written(OWNERS))
    )  # the clip took something, and not all


def test_the_rivals_differ_on_this_batch():
    """Else the test above could not tell one from the other."""
    logp, old = log_probs(0.6)
    values = [chain(name, logp, old)[0] for name in ("grpo", "dr_grpo", "dapo", "gspo")]
    assert min(abs(a - b) for i, a in enumerate(values) for b in values[:i]) > 1e-3


def test_gspo_gives_every_token_of_a_row_the_same_gradient():
    logp, old = log_probs(2e-3)
    _, gradient = chain("gspo", logp, old)
    A = group_z(REWARD, True)
    moved = 0
    for b, slots in written(OWNERS):
        s = math.exp(np.mean([logp[b, t] - old[b, t] for t in slots]))
        inside = s <= 1 + 4e-4 if A[b] > 0 else s >= 1 - 3e-4
        np.testing.assert_allclose(
            gradient[b, slots], -inside * s * A[b] / len(slots) / len(OWNERS), rtol=1e-4, atol=1e-8
        )
        moved += inside
    assert 0 < moved < len(OWNERS)


def test_overlong_rows_are_worth_less_to_dapo_only():
    # Four right rows: no advantage, unless their lengths are 3, 9, 2 and 5 tokens and the last 4
    # of 9 cost something.
    reward = np.ones(8, np.float32)
    logp, old = log_probs(0.0)
    assert chain("grpo", logp, old, reward=reward)[0] == 0.0
    _, gradient = chain("dapo", logp, old, reward=reward)
    assert (gradient[1, 2:11] > 0).all() and (
        gradient[0, 2:5] < 0
    ).all()  # down with the longest, up with the short ones


# ---- demonstrations

# One row of each group is the teacher's.
SHOWN = [
    "qqppp",
    "qqppppppppp",
    "qqpp",
    "qqttttt",
    "qqqpppp",
    "qqqpp",
    "qqqpppppppp",
    "qqqttttttttt",
]


def released_luffy(logp, old, A, longest):
    """The loss of the released LUFFY code under its released script, redone in float64.

    mix_core_alg.py, compute_token_on_off_policy_loss, with loss_remove_clip (the policy's tokens:
    -A pi/pi_old as it is), off_policy_reshape p_div_p_0.1 without recorded target probabilities
    (the demonstration's: -A p/(p + 0.1), which is a ratio to a behaviour probability of 1), no
    bound on either, loss_remove_token_mean (the sum over the response tokens, over the padded
    response length and nothing else). Responses stand in a buffer of `longest` slots.
    """
    total = 0.0
    for b, row in enumerate(SHOWN):
        for t, letter in enumerate(row):
            if letter == "p":
                total -= A[b] * math.exp(logp[b, t] - old[b, t])
            elif letter == "t":
                total -= A[b] * math.exp(logp[b, t]) / (math.exp(logp[b, t]) + 0.1)
    return total / longest


def test_luffy_is_the_released_loss_over_the_number_of_rows():
    loss, advantage, _ = switches("luffy")
    assert not advantage.std
    # The script's entropy bonus is a mean over tokens beside a loss that is a sum over them, over
    # `longest`; here both are sums over rows x longest. The script takes the demonstrations'
    # tokens into that mean too, this loss the policy's own only.
    drawn = sum(row.count("p") for row in SHOWN)
    loss = dataclasses.replace(loss, entropy_bonus=1e-3 * MAX_NEW / drawn)
    entropy = np.random.default_rng(5).uniform(0, 3, (len(SHOWN), SLOTS)).astype(np.float32)
    is_drawn = np.array([[c == "p" for c in row.ljust(SLOTS)] for row in SHOWN])
    logp, old = log_probs(1.0)
    old = np.where(
        np.array([[c == "t" for c in row.ljust(SLOTS)] for row in SHOWN]), np.nan, old
    ).astype(np.float32)
    reward = np.array(
        [1, 0, 0, 1, 0, 0, 0, 1], np.float32
    )  # demonstrations are right; they count in the mean
    A = np.asarray(group_advantages(reward, GROUP))
    np.testing.assert_allclose(A, group_z(reward, False), rtol=1e-6)
    on, off = token_weights(rollout_of(SHOWN), loss)
    value, gradient = evaluate(loss, logp, old, A[:, None], on, off, entropy)
    bonus = 1e-3 * entropy[is_drawn].astype(np.float64).mean()
    assert bonus > 1e-3

    def released(at):
        return released_luffy(at, old.astype(np.float64), A.astype(np.float64), MAX_NEW) - bonus

    rows = len(SHOWN)
    assert float(value) * rows == pytest.approx(released(logp.astype(np.float64)), rel=1e-5)
    want = differences(released, logp, SHOWN)
    np.testing.assert_allclose(np.asarray(gradient) * rows, want, rtol=1e-4, atol=1e-7)
    assert np.abs(want[3, 2:7]).min() > 1e-3 and np.abs(want[0, 2:5]).min() > 1e-3


def test_luffys_entropy_bonus_is_that_of_the_script():
    """0.001 x longest / tokens of a mini-batch: 64 rows, one of eight shown, of solutions of five
    and six lines."""
    config = run.get_config("luffy,arithmetic")
    tokens = (
        config.rollout.prompts
        * config.rollout.group
        / config.training.mini_batches
        * (5 * 5 + 5 * 6)
        / 2
    )
    assert config.loss.entropy_bonus == pytest.approx(
        1e-3 * config.rollout.new_tokens / tokens, rel=0.1
    )


def test_luffy_lifts_rare_tokens_more_than_a_likelihood_would():
    """Shaping: the gradient of a demonstrated token, against that of log p, is gamma p / (p +
    gamma)^2, largest at p = gamma."""
    loss = dataclasses.replace(switches("luffy")[0], entropy_bonus=0.0)
    rows = rollout_of(["qt", "qt", "qt", "qp"])
    on, off = token_weights(rows, loss)
    logp = np.zeros((4, SLOTS), np.float32)
    logp[:, 1] = np.log([0.01, 0.1, 0.9, 0.5])
    _, gradient = evaluate(loss, logp, logp, np.ones((4, 1), np.float32), on, off)
    np.testing.assert_allclose(
        np.asarray(gradient)[:, 1] * 4 * MAX_NEW, [-0.001 / 0.0121, -0.25, -0.09, -1.0], rtol=1e-4
    )


def test_a_supervised_step_is_the_mean_negative_log_likelihood():
    """ReLIFT's supervised steps and SFT: over demonstrated tokens, whatever else stands in the
    batch's rows."""
    learner = importlib.import_module("scope_jax.training.learner")
    rows = rollout_of(["qqttt", "qttttttt", "q", "qqt"])
    on, off = token_weights(rows, learner.CLONING)
    rng = np.random.default_rng(8)
    logp = rng.uniform(-3, -0.1, (4, SLOTS)).astype(np.float32)
    shown = np.asarray(rows.owner_BT) == Owner.TEACHER
    value, gradient = evaluate(learner.CLONING, logp, logp, np.zeros((4, 1), np.float32), on, off)
    assert shown.sum() == 11
    assert float(value) == pytest.approx(-logp[shown].mean(), rel=1e-5)
    np.testing.assert_allclose(gradient, np.where(shown, -1 / 11, 0), rtol=1e-5)


# ---- rewards along a row


def test_vppo_pushes_the_prefix_up_and_the_rest_down():
    loss, advantage, credit = switches("vppo")
    assert isinstance(credit, GoodPrefix) and (credit.alpha, advantage.std) == (0.5, False)
    rows = rollout_of(OWNERS[:4])
    reward, end = (
        np.array([1.0, 0.0, 0.0, 0.0]),
        np.array([2, 6, 2, 7]),
    )  # 4 good tokens of 9, none of 2, all but none of 5
    token = prefix_advantages(
        Rows.of(rows.prompt_length_B, rows.length_B, SLOTS, GROUP),
        reward,
        end,
        alpha=credit.alpha,
        shorten=credit.shorten,
        shorten_by=credit.shorten_by,
    )
    on, off = token_weights(rows, loss)
    logp = log_probs(0.0)[0][:4]
    _, gradient = evaluate(loss, logp, logp, token, on, off)
    mean = (
        1 + 0.5 * 3 / 9 + 0 + 0.5 * 4 / 5
    ) / 4  # each prefix lost a tenth, rounded up: one token
    tokens = 3 + 9 + 2 + 5
    want = np.zeros((4, SLOTS))
    want[0, 2:5] = 1 - mean
    want[1, 2:11] = [0.5 - mean] * 3 + [-mean] * 6
    want[2, 2:4] = -mean
    want[3, 2:7] = [0.5 - mean] * 4 + [-mean]
    np.testing.assert_allclose(gradient, -want / tokens, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("name", "form"), [("prm_reward", "sum"), ("prm_min", "min")])
def test_dense_rewards_reach_the_tokens_of_their_steps(name, form):
    loss, _, credit = switches(name)
    assert type(credit) is {"sum": Process, "min": Pure}[form]
    rows = rollout_of(["qqpppp", "qqpppp"])
    # Row 0: a good step, then a bad one; row 1: one middling step. Ends in slots of the row.
    score, end, valid = (
        [[0.9, 0.1], [0.6, 0.0]],
        [[4, 6], [6, 0]],
        np.array([[True, True], [True, False]]),
    )
    where = Rows.of(rows.prompt_length_B, rows.length_B, SLOTS, 2)
    found = Steps.of(where, score, end, valid)
    if form == "sum":
        token = summed_step_advantages(where, found)
    else:
        token = worst_step_advantages(where, found, temperature=WorstStep().min_temperature)
    on, off = token_weights(rows, loss)
    logp = log_probs(0.0)[0][:2]
    _, gradient = evaluate(loss, logp, logp, token, on, off)
    if form == "sum":
        values = np.array([0.9, 0.1, 0.6])
        good, bad, middling = (values - values.mean()) / (values.std() + 1e-6)
        want = [[good + bad, bad], [middling, middling]]
    else:
        weight = 1 / (1 + math.exp(-16))  # of the bad step: rewards 0.8 and -0.8 at temperature 0.1
        good, bad, middling = (1 - weight) * 0.8, -weight * 0.8, 0.2
        want = [[good + bad - middling, bad - middling / 2], [middling - good - bad] * 2]
    for b in range(2):
        np.testing.assert_allclose(gradient[b, 2:6], -np.repeat(want[b], 2) / 8, rtol=1e-4)
    assert (np.asarray(gradient)[:, 6:] == 0).all()
