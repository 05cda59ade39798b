"""The correction room: literal cases for every stage, and whole rescues with writers that are made
by hand.

The writers are bigram models (the layers add nothing, the head is a table "after this character
comes that one") and the process reward model says "wrong from the first 4 on", so that every
expected token, owner and score can be written down.
"""

import dataclasses
import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scope_jax import models
from scope_jax.correction import (
    CorrectionSpec,
    SelectSpec,
    first_error,
    prefix_quality,
    rescue,
    select,
)
from scope_jax.correction.locate import _moved
from scope_jax.learning import (
    LossSpec,
    group_advantages,
    policy_loss,
    token_weights,
    zero_group_share,
)
from scope_jax.prm import ProcessRewardModel
from scope_jax.rollout import (
    Generator,
    SampleSpec,
    cut,
    from_prompts,
    place_rows,
    splice,
    take_rows,
)
from scope_jax.tasks import Arithmetic, Problem
from scope_jax.text import character_tokenizer
from scope_jax.types import Owner, Rollout

NAN = float("nan")
PAD, PROMPT, POLICY, TEACHER = (
    int(o) for o in (Owner.PAD, Owner.PROMPT, Owner.POLICY, Owner.TEACHER)
)


# ---- first error, prefix quality


def test_first_error_literal():
    score = jnp.array(
        [
            [0.4, 0.9, 0.1],  # first step
            [0.9, 0.8, 0.1],  # last step
            [0.9, 0.5, 0.7],  # 0.5 is not below 0.5: nowhere
            [0.9, NAN, 0.2],  # NaN is not below
            [0.9, NAN, 0.7],  # nowhere, with NaN
            [0.9, 0.1, 0.2],  # the low steps do not exist
            [0.9, 0.1, 0.2],  # the second step was not scored, the third was
        ]
    )
    valid = jnp.ones((7, 3), bool).at[5, 1:].set(False).at[6, 1].set(False)
    found = first_error(score, valid, 0.5)
    assert found.dtype == jnp.int32
    assert found.tolist() == [0, 2, 3, 2, 3, 3, 2]
    assert first_error(score[2:3], valid[2:3], 0.55).tolist() == [1]  # the threshold decides


def test_prefix_quality_literal():
    score = jnp.array([[0.9, 0.7, 0.1, 0.0], [0.2, 0.9, 0.0, 0.0], [1.0, 0.8, 0.6, 0.9]])
    valid = jnp.array(
        [[True, True, True, False], [True, True, False, False], [True, True, True, True]]
    )
    quality = prefix_quality(score, valid, jnp.array([2, 0, 4]))
    # mean(0.9, 0.7) * 2/3; no step before the error; mean of four * 4/4
    np.testing.assert_allclose(quality, [0.8 * 2 / 3, 0.0, 0.825], rtol=1e-6)
    assert quality.dtype == jnp.float32
    assert (
        float(prefix_quality(jnp.full((1, 2), NAN), jnp.zeros((1, 2), bool), jnp.array([2]))[0])
        == 0.0
    )


# ---- cut, splice, take, place


def small_rollout() -> Rollout:
    """Two rows in a buffer of 6: a prompt of 2, then 3 POLICY tokens (finished), and a prompt of
    1, then 1 token."""
    return Rollout(
        tokens_BT=jnp.array([[5, 6, 7, 8, 9, 0], [3, 4, 0, 0, 0, 0]], jnp.int32),
        owner_BT=jnp.array([[1, 1, 2, 2, 2, 0], [1, 2, 0, 0, 0, 0]], jnp.int8),
        logp_BT=jnp.array([[0, 0, -1, -2, -3, 0], [0, -4, 0, 0, 0, 0]], jnp.float32),
        length_B=jnp.array([5, 2], jnp.int32),
        prompt_length_B=jnp.array([2, 1], jnp.int32),
        finished_B=jnp.array([True, False]),
        row_id_B=jnp.array([10, 11], jnp.int32),
    )


def test_cut_literal():
    short = cut(small_rollout(), jnp.array([3, 9]))
    assert short.tokens_BT.tolist() == [[5, 6, 7, 0, 0, 0], [3, 4, 0, 0, 0, 0]]
    assert short.owner_BT.tolist() == [[1, 1, 2, 0, 0, 0], [1, 2, 0, 0, 0, 0]]
    assert short.logp_BT.tolist() == [[0, 0, -1, 0, 0, 0], [0, -4, 0, 0, 0, 0]]
    assert short.length_B.tolist() == [3, 2]  # a length past the row's own leaves it as it is
    assert short.finished_B.tolist() == [False, False]
    assert short.prompt_length_B.tolist() == [2, 1] and short.row_id_B.tolist() == [10, 11]
    assert cut(small_rollout(), jnp.array([5, 2])).finished_B.tolist() == [
        True,
        False,
    ]  # nothing cut: still finished


def test_splice_literal():
    start = cut(small_rollout(), jnp.array([3, 2]))
    new = jnp.array([[21, 22, 23], [31, 32, 33]])
    mixed = splice(start, new, jnp.array([2, 0]), finished_B=jnp.array([True, True]))
    assert mixed.tokens_BT.tolist() == [[5, 6, 7, 21, 22, 0], [3, 4, 0, 0, 0, 0]]
    assert mixed.owner_BT.tolist() == [[1, 1, 2, 3, 3, 0], [1, 2, 0, 0, 0, 0]]
    np.testing.assert_array_equal(mixed.logp_BT, [[0, 0, -1, NAN, NAN, 0], [0, -4, 0, 0, 0, 0]])
    assert mixed.length_B.tolist() == [5, 2]
    assert mixed.finished_B.tolist() == [
        True,
        False,
    ]  # count 0: not touched, whatever finished_B says

    known = splice(
        start,
        new,
        jnp.array([1, 2]),
        Owner.POLICY,
        logp_BJ=jnp.array([[-7.0, 0, 0], [-8.0, -9.0, 0]]),
    )
    assert known.owner_BT.tolist() == [[1, 1, 2, 2, 0, 0], [1, 2, 2, 2, 0, 0]]
    assert known.logp_BT.tolist() == [[0, 0, -1, -7, 0, 0], [0, -4, -8, -9, 0, 0]]
    assert known.finished_B.tolist() == [False, False]
    assert (
        known.tokens_BT.dtype == jnp.int32
        and known.owner_BT.dtype == jnp.int8
        and known.logp_BT.dtype == jnp.float32
    )


def test_splice_leaves_off_what_does_not_fit():
    over = splice(
        small_rollout(),
        jnp.array([[21, 22], [31, 32]]),
        jnp.array([2, 2]),
        finished_B=jnp.array([True, True]),
    )
    assert over.tokens_BT.tolist() == [[5, 6, 7, 8, 9, 21], [3, 4, 31, 32, 0, 0]]
    assert over.length_B.tolist() == [6, 4]
    start = cut(small_rollout(), jnp.array([4, 2]))
    over = splice(
        start,
        jnp.array([[21, 22, 23], [31, 32, 33]]),
        jnp.array([3, 3]),
        finished_B=jnp.array([True, True]),
    )
    assert over.length_B.tolist() == [6, 5]
    assert over.finished_B.tolist() == [False, True]  # the end token of the first row was left off


def test_take_and_place_rows_literal():
    rows = take_rows(small_rollout(), jnp.array([1, 0, 0]), jnp.array([True, True, False]))
    assert rows.tokens_BT[:, :2].tolist() == [[3, 4], [5, 6], [5, 6]]
    assert rows.row_id_B.tolist() == [11, 10, 10]
    assert rows.finished_B.tolist() == [
        False,
        True,
        True,
    ]  # the row that only fills the batch is not continued

    changed = dataclasses.replace(
        rows, tokens_BT=rows.tokens_BT + 100, length_B=jnp.array([4, 4, 1])
    )
    placed = place_rows(
        small_rollout(), jnp.array([0, 1, 0]), changed, jnp.array([True, False, False])
    )
    assert placed.tokens_BT[:, :2].tolist() == [[103, 104], [3, 4]]
    assert placed.length_B.tolist() == [4, 2]
    assert placed.prompt_length_B.tolist() == [1, 1]
    assert placed.row_id_B.tolist() == [
        10,
        11,
    ]  # the identity of the place, not of the row that came


# ---- selection


def chosen(eligible, quality, failed, group, seed=0, **spec) -> list[int]:
    rows = select(
        np.array(eligible, bool),
        np.array(quality, float),
        np.array(failed, bool),
        group,
        SelectSpec(**spec),
        seed,
    )
    assert rows.dtype == np.int64
    return rows.tolist()


def test_band_uses_quantiles_of_all_eligible_rows():
    # Two groups of 6. Eligible qualities 0.0, 0.1 ... 1.0 but for one row; quantiles 0.1 and 0.9
    # of them are 0.1 and 0.9.
    quality = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 99.0]
    eligible = [True] * 11 + [False]
    everything = {"rule": "band", "per_group": 6, "keep_failure": False}
    assert chosen(eligible, quality, [True] * 12, 6, **everything) == [5, 4, 3, 2, 1, 9, 8, 7, 6]
    assert chosen(eligible, quality, [True] * 12, 6, **everything, quantiles=(0.0, 1.0)) == [
        5,
        4,
        3,
        2,
        1,
        0,
        10,
        9,
        8,
        7,
        6,
    ]
    assert chosen(eligible, quality, [True] * 12, 6, **{**everything, "rule": "all"})[-5:] == [
        10,
        9,
        8,
        7,
        6,
    ]
    # By group alone, row 5 (the best of its group) would be outside and row 6 (the worst of its
    # own) too.
    assert chosen(eligible, quality, [True] * 12, 6, rule="band", per_group=1) == [5, 9]


def test_cap_ties_and_the_failure_that_stays():
    quality = [0.5, 0.7, 0.7, 0.2]
    assert chosen([1, 1, 1, 1], quality, [1, 1, 1, 1], 4, rule="top", per_group=2) == [
        1,
        2,
    ]  # a tie goes to the lower row
    assert chosen([1, 1, 1, 1], quality, [1, 1, 1, 1], 4, rule="top", per_group=9) == [
        1,
        2,
        0,
    ]  # failures - 1
    assert chosen(
        [1, 1, 1, 1], quality, [1, 1, 1, 1], 4, rule="top", per_group=9, keep_failure=False
    ) == [1, 2, 0, 3]
    # One failure only: repairing it would leave the group without an advantage.
    assert chosen([0, 1, 0, 0], quality, [0, 1, 0, 0], 4, rule="all", per_group=2) == []
    assert chosen(
        [0, 1, 0, 0], quality, [0, 1, 0, 0], 4, rule="all", per_group=2, keep_failure=False
    ) == [1]
    assert chosen([0, 0, 0, 0], quality, [0, 0, 0, 0], 4, rule="band") == []
    # A failed row that is not eligible still is the one that stays.
    assert chosen([0, 1, 1, 0], quality, [1, 1, 1, 0], 4, rule="all") == [1, 2]


def test_all_takes_every_eligible_row_and_top_the_best():
    quality = [0.5, 0.7, 0.7, 0.2, 0.1, 0.9]
    assert chosen([1] * 6, quality, [1] * 6, 6, rule="all", per_group=2) == [
        5,
        1,
        2,
        0,
        3,
    ]  # one failure stays
    assert chosen([1] * 6, quality, [1] * 6, 6, rule="all", per_group=2, keep_failure=False) == [
        5,
        1,
        2,
        0,
        3,
        4,
    ]
    assert chosen([1] * 6, quality, [1] * 6, 6, rule="top", per_group=2) == [5, 1]
    assert (
        SelectSpec(rule="all", per_group=2).most(6) == 5
        and SelectSpec(rule="top", per_group=2).most(6) == 2
    )
    assert (
        SelectSpec(per_group=9).most(6) == 5
        and SelectSpec(per_group=9, keep_failure=False).most(6) == 6
    )
    assert SelectSpec().most(1) == SelectSpec(rule="all").most(0) == 0


def test_all_failed_groups_only():
    quality = [0.9, 0.8, 0.7, 0.6]
    assert chosen(
        [1, 1, 1, 1], quality, [1, 1, 1, 0], 2, rule="top", groups="all_failed", per_group=1
    ) == [0]
    assert chosen(
        [1, 1, 1, 0],
        quality,
        [1, 1, 1, 0],
        2,
        rule="top",
        groups="any",
        per_group=1,
        keep_failure=False,
    ) == [0, 2]


def test_random_is_reproducible_and_blind_to_quality():
    draw = lambda seed, quality: chosen(
        [1] * 8, quality, [1] * 8, 8, seed, rule="random", per_group=3
    )
    rising = list(np.linspace(0, 1, 8))
    assert draw(1, rising) == draw(1, rising[::-1])
    assert len({tuple(draw(seed, rising)) for seed in range(20)}) > 10
    assert set().union(*(draw(seed, rising) for seed in range(20))) == set(range(8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "best"}, "selection rule 'best' is unknown; one of top, band, random, all"),
        ({"groups": "some"}, "selection groups 'some' is unknown"),
        ({"quantiles": (0.9, 0.1)}, "must ascend in [0, 1]"),
        ({"quantiles": (0.1, 1.5)}, "must ascend in [0, 1]"),
        ({"per_group": 0}, "per_group 0 be >= 1"),
    ],
)
def test_select_spec_refuses(settings, message):
    with pytest.raises(ValueError) as caught:
        SelectSpec(**settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"localiser": "guess"}, "correction.localiser = 'guess' is unknown; one of prm, oracle"),
        ({"tail": "nobody"}, "correction.tail = 'nobody' is unknown"),
        ({"accept": "all"}, "correction.accept = 'all' is unknown"),
        (
            {"place": "everywhere"},
            (
                "correction.place = 'everywhere' is unknown; one of replace_parent,"
                " replace_random_failure, append"
            ),
        ),
        ({"threshold": 1.0}, "threshold must lie in (0, 1)"),
        ({"step_tokens": 0}, "step_tokens, tails and continuations be at least 1"),
        ({"tails": 0}, "step_tokens, tails and continuations be at least 1"),
        ({"continuations": 0}, "step_tokens, tails and continuations be at least 1"),
        ({"noise": 1.5}, "correction.noise = 1.5 must be a probability"),
        ({"tail": "none"}, "set accept to 'unverified'"),
        ({"accept": "unverified"}, "accept 'unverified' is for tail 'none'"),
    ],
)
def test_correction_spec_refuses(settings, message):
    with pytest.raises(ValueError) as caught:
        CorrectionSpec(**settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


# ---- the process reward model

DOMAIN = Arithmetic(start="zero")
TOKENIZER = character_tokenizer(
    DOMAIN.characters
)  # 0 end, 1 step mark, 2-11 digits, 12 +, 13 -, 14 :, 15 =, 16 newline
V = len(TOKENIZER)
PROBLEM = DOMAIN.make_problem(["+7", "-9", "+1"])  # prompt +7-9+1=, right lines +777 -987 +198
RIGHT = "+777\n-987\n+198"
UNUSED = 20  # an id that no text holds: a free direction of the hand-made models

PLAIN = models.ModelConfig(
    vocab_size=V,
    hidden_size=V,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_size=12,
    ffn_size=8,
    max_positions=64,
    end_ids=(0,),
)


def blank(config: models.ModelConfig) -> dict:
    """Parameters whose layers pass each token's one-hot embedding through."""
    params = jax.tree.map(jnp.zeros_like, models.init(config, jax.random.key(0)))
    ones = {"attention_norm": 1.0, "ffn_norm": 1.0}
    params["layers"] = {name: w + ones.get(name, 0.0) for name, w in params["layers"].items()}
    return params | {"embed": jnp.eye(V), "final_norm": jnp.ones(V)}


def bigram(chain: str) -> Generator:
    """A writer that follows each character of `chain` by the next one; `#` is the end token."""
    ids = [
        0 if c == "#" else TOKENIZER.convert_tokens_to_ids("Ċ" if c == "\n" else c) for c in chain
    ]
    head = np.zeros((V, V), np.float32)
    head[ids[:-1], ids[1:]] = 20.0  # x sqrt(V) after the norm: no other token has a chance
    return Generator(blank(PLAIN) | {"head": jnp.asarray(head)}, PLAIN)


def fours_are_wrong(good: float = 3.0) -> ProcessRewardModel:
    """Good (logit `good`) as long as no 4 was written: uniform attention carries the share of 4s
    to every slot."""
    config = PLAIN.with_head("prm")
    params = blank(config)
    four = TOKENIZER.convert_tokens_to_ids("4")
    layers = params["layers"]
    layers["value"] = layers["value"].at[0, four, 0].set(1.0)
    layers["output"] = layers["output"].at[0, 0, UNUSED].set(1000.0)
    params |= {
        "prm_hidden": jnp.eye(V),
        "prm_output": params["prm_output"].at[UNUSED, 1].set(-2.0),
        "prm_output_bias": jnp.array([0.0, good]),
    }
    return ProcessRewardModel(params, config, TOKENIZER)


def test_prm_encoding_literal_ids():
    prm = fours_are_wrong()
    ids, marks = prm.encode("+7-9=", ["+777\n", "\n-988\n\n", "+1"])
    assert ids == [
        12,
        9,
        13,
        11,
        15,
        12,
        9,
        9,
        9,
        1,
        13,
        11,
        10,
        10,
        1,
        12,
        3,
        1,
    ]  # separators stripped, a mark after each
    assert marks == [9, 14, 17]
    assert prm.encode("+7=", []) == ([12, 9, 15], [])


def test_prm_encoding_uses_the_chat_template():
    tokenizer = character_tokenizer("".join(map(chr, range(32, 127))) + "\n")
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}[end]\n{% endfor %}"
    )
    config = models.ModelConfig(len(tokenizer), 8, 1, 2, 1, 4, 8, head="prm")
    prm = ProcessRewardModel({}, config, tokenizer)
    ids, marks = prm.encode("What is 1 + 1?", ["We add.\n\n", "It is \\boxed{2}."])
    assert (
        tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        == "[system]Please reason step by step, and put your final answer within \\boxed{}.[end]\n"
        "[user]What is 1 + 1?[end]\n"
        "[assistant]We add.<extra_0>It is \\boxed{2}.<extra_0>[end]\n"
    )
    assert [ids[m] for m in marks] == [1, 1]
    assert set(ids) <= set(range(len(tokenizer))) and len(marks) == 2
    assert all(c in string.printable for c in tokenizer.decode(ids))


def test_prm_refuses_other_checkpoints():
    with pytest.raises(ValueError, match="head 'lm' is no known process reward model"):
        ProcessRewardModel({}, PLAIN, TOKENIZER)
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "?": 1}, [])),
        unk_token="?",
    )
    with pytest.raises(ValueError, match="no '<extra_0>' token"):
        ProcessRewardModel({}, PLAIN.with_head("prm"), plain)


def test_prm_score_is_the_probability_at_the_marks():
    config = PLAIN.with_head("prm")
    prm = ProcessRewardModel(models.init(config, jax.random.key(5)), config, TOKENIZER)
    prompts, steps = ["+7-9+1=", "+2="], [["+777\n", "-988\n", "+199"], ["+222"]]
    score, valid, unscored = prm.score(prompts, steps, rows=3)
    assert score.shape == valid.shape == (2, 3) and score.dtype == np.float32 and unscored == 0
    assert valid.tolist() == [[True, True, True], [True, False, False]]
    for row in range(2):
        ids, marks = prm.encode(prompts[row], steps[row])
        alone = models.good_step_probability(
            prm.params, config, jnp.array([ids]), jnp.array([len(ids)])
        )
        np.testing.assert_allclose(score[row, : len(marks)], np.asarray(alone)[0, marks], rtol=1e-5)
    assert (
        len(np.unique(score[valid])) == 4
    )  # random weights: no two the same, or the positions were not looked at


def test_prm_scores_by_hand():
    good, wrong = 1 / (1 + np.exp(-3.0)), 0.001
    score, valid, _ = fours_are_wrong().score(["+7-9+1="], [["+777\n", "-984\n", "+195"]])
    assert valid.all()
    np.testing.assert_allclose(score[0, 0], good, rtol=1e-5)
    assert (score[0, 1:] < wrong * 5).all()


def test_rows_that_cannot_be_scored_are_counted():
    prm = fours_are_wrong()
    long = ["+777\n"] * 12  # 3 + 12 x 5 = 63 of 64 positions
    score, valid, unscored = prm.score(
        ["+7="] * 4, [long, long + ["+777\n"], ["+777<extra_0>\n"], ["+777\n", "-984"]]
    )
    assert unscored == 2
    assert valid.sum(axis=1).tolist() == [12, 0, 0, 2]
    assert (score[1:3] == 0).all()
    score, valid, unscored = prm.score(["+7="], [["1<extra_0>"]])
    assert (score.shape, valid.any(), unscored) == ((1, 1), False, 1)
    assert prm.score([], [])[2] == 0


# ---- the whole rescue

GROUP, BUFFER = 4, 7 + 16
SPEC = CorrectionSpec(localiser="oracle", select=SelectSpec(per_group=2), step_tokens=8)
SAMPLE = SampleSpec(temperature=1.0, max_new_tokens=16, end_ids=(0,))
LINE2 = bigram("\n-987\n")  # writes the right second line
LAST = bigram("\n+198#")  # writes the right last line and the end token
IDLE = bigram("++")

WRONG_2 = "+777\n-988\n+199"  # first error in step 1 of 3
WRONG_3 = "+777\n-987\n+190"  # first error in the last step
WRONG_1 = "+778\n-988\n+199"  # no good step
WITH_4 = "+777\n-984\n+195"  # what the hand-made PRM finds at step 1


def scene(*rows: str, problem: Problem = PROBLEM) -> Rollout:
    """One group of rows as the policy wrote them; `#` is the end token. Log-probs are -slot / 100."""
    batch = from_prompts([TOKENIZER.encode(problem.prompt)], GROUP, BUFFER)
    ids = [TOKENIZER.encode(row.removesuffix("#")) + [0] * row.endswith("#") for row in rows]
    tokens = np.zeros((GROUP, 16), np.int32)
    for number, row in enumerate(ids):
        tokens[number, : len(row)] = row
    count = jnp.array([len(row) for row in ids])
    logp = jnp.broadcast_to(-(jnp.arange(16) + 7.0) / 100, (GROUP, 16))
    return splice(
        batch,
        jnp.asarray(tokens),
        count,
        Owner.POLICY,
        logp_BJ=logp,
        finished_B=jnp.array([r.endswith("#") for r in rows]),
    )


def run(
    batch,
    reward,
    spec=SPEC,
    *,
    policy=LAST,
    teacher=LINE2,
    prm=None,
    seed=0,
    problem=PROBLEM,
    sample=SAMPLE,
    domain=DOMAIN,
):
    return rescue(
        batch,
        np.array(reward, np.float32),
        [problem] * len(reward),
        group=GROUP,
        spec=spec,
        sample_spec=sample,
        key=jax.random.key(3),
        domain=domain,
        tokenizer=TOKENIZER,
        policy=policy,
        teacher=teacher,
        prm=prm,
        seed=seed,
    )


def text(rollout: Rollout, row: int) -> str:
    """The written part of a row, `#` for the end token."""
    ids = np.asarray(rollout.tokens_BT)[
        row, int(rollout.prompt_length_B[row]) : int(rollout.length_B[row])
    ].tolist()
    return "".join("#" if i == 0 else TOKENIZER.decode([i]) for i in ids)


def same(a: Rollout, b: Rollout, rows) -> bool:
    rows = np.asarray(rows)
    return all(
        np.array_equal(np.asarray(x)[rows], np.asarray(y)[rows])
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))
    )


def test_a_failure_is_rescued_token_by_token():
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    result = run(batch, [1, 0, 0, 1])
    final = result.rollout
    assert text(final, 1) == "+777\n" + "-987\n" + "+198#"
    kept, step, tail = 7 + 5, 5, 5
    assert (
        final.owner_BT[1].tolist()
        == [PROMPT] * 7 + [POLICY] * 5 + [TEACHER] * step + [POLICY] * tail + [PAD] * 1
    )
    assert final.length_B[1] == kept + step + tail and bool(final.finished_B[1])
    # What was kept is what was sampled: ids and log-probs, bit for bit, and strictly less than the
    # row.
    for name in ("tokens_BT", "owner_BT", "logp_BT"):
        np.testing.assert_array_equal(
            getattr(final, name)[1, :kept], getattr(batch, name)[1, :kept]
        )
    assert kept < int(batch.length_B[1])
    assert (
        final.tokens_BT[1, kept + 3] != batch.tokens_BT[1, kept + 3]
    )  # 7 where the policy wrote 8
    np.testing.assert_allclose(
        final.logp_BT[1, kept : kept + 10], 0.0, atol=1e-6
    )  # these writers are certain
    assert same(final, batch, [0, 2, 3])
    assert final.row_id_B.tolist() == [0, 1, 2, 3]
    assert result.reward_B.tolist() == [1, 1, 0, 1] and result.include_B.all()
    figures = {k.removeprefix("scope/"): v for k, v in result.metrics.items()}
    expected = {
        "failed_share": 0.5,
        "located_share": 1.0,
        "no_good_step": 1,
        "eligible": 1,
        "selected": 1,
        "corrected": 1,
    }
    assert expected.items() <= figures.items()
    assert (
        figures["accepted"],
        figures["accepted_share"],
        figures["leaks"],
        figures["incomplete_steps"],
    ) == (1, 1, 0, 0)
    assert figures["first_error_position"] == pytest.approx((1 / 3 + 0) / 2)
    assert figures["teacher_token_share"] == pytest.approx(5 / (15 * 4))
    (item,) = result.gallery
    assert [(s["text"], s["owner"], s["status"]) for s in item["steps"]] == [
        ("+777\n", "policy", "kept"),
        ("-988\n", "policy", "wrong"),
        ("+199", "policy", "discarded"),
        ("-987\n", "teacher", "corrected"),
        ("+198", "policy", "tail"),
    ]
    assert (item["prompt"], item["first_error"], item["verdict_after"]) == ("+7-9+1=", 1, True)


def test_the_prm_finds_the_step_and_the_threshold_decides():
    batch = scene(RIGHT + "#", WITH_4 + "#", WRONG_2 + "#", WRONG_2 + "#")
    spec = dataclasses.replace(SPEC, localiser="prm")
    result = run(batch, [1, 0, 0, 0], spec, prm=fours_are_wrong())
    # Rows 2 and 3 hold no 4: not located, so not candidates.
    assert result.metrics["scope/located_share"] == pytest.approx(1 / 3)
    assert text(result.rollout, 1) == RIGHT + "#" and result.reward_B.tolist() == [1, 1, 0, 0]
    assert [s["score"] is not None for s in result.gallery[0]["steps"]] == [
        True,
        True,
        True,
        False,
        False,
    ]
    # A PRM that finds every step wrong leaves no prefix to keep; one that is content with 0.2
    # finds the error all the same.
    gloomy = run(batch, [1, 0, 0, 0], spec, prm=fours_are_wrong(good=-1.0))
    assert gloomy.metrics["scope/no_good_step"] == 3 and gloomy.metrics["scope/selected"] == 0
    assert same(gloomy.rollout, batch, range(4))
    lower = run(
        batch,
        [1, 0, 0, 0],
        dataclasses.replace(spec, threshold=0.2),
        prm=fours_are_wrong(good=-1.0),
    )
    assert lower.metrics["scope/selected"] == 1 and lower.metrics["scope/accepted"] == 1


class Coloned(Arithmetic):
    """Signed terms whose lines may end with a colon too."""

    boundary = "[:\\n]"

    def answer_of(self, completion):
        return super().answer_of(completion.replace(":", "\n"))

    def answer_marker(self, step):
        return super().answer_marker(step.replace(":", "\n"))


def test_a_pattern_divides_the_rows_and_ends_the_teachers_step():
    batch = scene("+777:-987:+198#", "+777:-984:+195#", "+777\n-984\n+195#", "+777:-987:+198#")
    spec, domain = dataclasses.replace(SPEC, localiser="prm"), Coloned(start="zero")
    both = dataclasses.replace(spec, select=SelectSpec(per_group=2, keep_failure=False))
    rest = {"prm": fours_are_wrong(), "policy": bigram(":+198#"), "domain": domain}
    result = run(batch, [1, 0, 0, 1], both, teacher=bigram("\n:-987:"), **rest)
    # The teacher goes on and on; what it wrote past its first step is gone, and the policy goes on
    # from there.
    final = result.rollout
    assert text(final, 1) == "+777:" + "-987:" + "+198#"
    assert final.owner_BT[1].tolist() == [PROMPT] * 7 + [POLICY] * 5 + [TEACHER] * 5 + [
        POLICY
    ] * 5 + [PAD]
    assert result.reward_B[1] == 1 and result.metrics["scope/corrected"] == 2
    assert [s["text"] for s in result.gallery[0]["steps"]] == [
        "+777:",
        "-984:",
        "+195",
        "-987:",
        "+198",
    ]
    # A row of lines is divided at the newlines, as before.
    assert [s["text"] for s in result.gallery[1]["steps"]][:3] == ["+777\n", "-984\n", "+195"]
    batch = scene("+777:-987:+198#", "+777:-984:+195#", "+777:-987:+198#", "+777:-987:+198#")
    endless = run(batch, [1, 0, 1, 1], both, teacher=bigram(":--"), **rest)
    assert endless.metrics["scope/corrected"] == 0 and same(endless.rollout, batch, range(4))


def test_rows_the_prm_cannot_score_stay_failures():
    prm = fours_are_wrong()
    prm = dataclasses.replace(prm, config=dataclasses.replace(prm.config, max_positions=20))
    batch = scene(RIGHT + "#", WITH_4 + "#", "+777\n-984#", RIGHT + "#")
    result = run(batch, [1, 0, 0, 1], dataclasses.replace(SPEC, localiser="prm"), prm=prm)
    assert (
        result.metrics["scope/unscored"] == 1
    )  # 7 + 14 ids do not fit 20 positions; the shorter row does
    assert result.reward_B.tolist() == [1, 0, 1, 1]


def test_without_a_prm_or_an_oracle_there_is_an_error():
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_2 + "#", RIGHT + "#")
    with pytest.raises(ValueError, match="localiser 'prm' needs a process reward model"):
        run(batch, [1, 0, 0, 1], dataclasses.replace(SPEC, localiser="prm"))


def test_a_teacher_that_gives_the_answer_away_is_refused():
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    result = run(
        batch, [1, 0, 0, 1], teacher=LAST
    )  # writes the final line where the second was wanted
    assert (
        result.metrics["scope/leaks"],
        result.metrics["scope/corrected"],
        result.metrics["scope/accepted"],
    ) == (1, 0, 0)
    assert result.metrics["scope/selected"] == 1 and result.metrics["scope/accepted_share"] == 0
    assert same(result.rollout, batch, range(4)) and result.reward_B.tolist() == [1, 0, 0, 1]
    assert result.gallery[0]["verdict_after"] is False
    assert [s["owner"] for s in result.gallery[0]["steps"]] == ["policy"] * 3


@pytest.mark.parametrize(
    "chain", ["\n--", "\n\n", "\n#"], ids=["never ends", "separator only", "end token only"]
)
def test_an_incomplete_teacher_step_is_refused(chain):
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    result = run(batch, [1, 0, 0, 1], teacher=bigram(chain))
    assert (
        result.metrics["scope/incomplete_steps"],
        result.metrics["scope/corrected"],
        result.metrics["scope/leaks"],
    ) == (1, 0, 0)
    assert same(result.rollout, batch, range(4)) and result.reward_B.tolist() == [1, 0, 0, 1]


def test_a_corrected_last_step_ends_the_solution():
    batch = scene(RIGHT + "#", WRONG_3 + "#", WRONG_1 + "#", RIGHT + "#")
    result = run(batch, [1, 0, 0, 1], teacher=LAST, policy=IDLE)
    assert text(result.rollout, 1) == RIGHT + "#"
    assert result.rollout.owner_BT[1].tolist() == [PROMPT] * 7 + [POLICY] * 10 + [TEACHER] * 5 + [
        PAD
    ]
    assert result.metrics["scope/leaks"] == 0 and result.reward_B.tolist() == [1, 1, 0, 1]


def test_a_tail_that_fails_leaves_the_failure():
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    wrong = run(batch, [1, 0, 0, 1], policy=bigram("\n+190#"))
    endless = run(
        batch, [1, 0, 0, 1], policy=bigram("\n++"), spec=dataclasses.replace(SPEC, tails=2)
    )
    for result, tries in ((wrong, 1), (endless, 2)):
        assert (result.metrics["scope/corrected"], result.metrics["scope/accepted"]) == (1, 0)
        assert result.metrics["scope/tail_tries"] == tries
        assert same(result.rollout, batch, range(4)) and result.reward_B.tolist() == [1, 0, 0, 1]
    # The row may hold 16 new tokens in all: 5 kept, 5 by the teacher, 6 in the tail.
    assert [s["text"] for s in endless.gallery[0]["steps"]][-1] == "++++++"


def test_without_tail_the_row_is_not_verified():
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    result = run(
        batch,
        [1, 0, 0, 1],
        dataclasses.replace(SPEC, tail="none", accept="unverified"),
        policy=IDLE,
    )
    assert text(result.rollout, 1) == "+777\n-987\n" and not bool(result.rollout.finished_B[1])
    assert (
        result.rollout.owner_BT[1].tolist()
        == [PROMPT] * 7 + [POLICY] * 5 + [TEACHER] * 5 + [PAD] * 6
    )
    assert result.reward_B.tolist() == [1, 0, 0, 1]
    assert result.include_B.tolist() == [True, False, True, True]
    assert result.gallery[0]["verdict_after"] is None


def test_the_teacher_may_write_the_tail_in_several_tries():
    # Greedy, the teacher ends its line with a newline; sampled, it ends the solution instead in 4
    # of 10 tries.
    short = DOMAIN.make_problem(["+7", "-9"])
    teacher = bigram("\n-987\n")
    teacher.params["head"] = (
        teacher.params["head"].at[TOKENIZER.convert_tokens_to_ids("7"), 0].set(19.9)
    )
    batch = scene("+777\n-987#", "+777\n-988#", "+778\n-988#", "+777\n-987#", problem=short)
    spec = dataclasses.replace(SPEC, tail="teacher", tails=8)
    result = run(batch, [1, 0, 0, 1], spec, teacher=teacher, policy=IDLE, problem=short)
    assert (
        text(result.rollout, 1) == "+777\n" + "-987\n" + "-987#"
    )  # the outcome is right, which is all that is verified
    assert result.rollout.owner_BT[1, :20].tolist() == [PROMPT] * 5 + [POLICY] * 5 + [TEACHER] * 10
    assert result.reward_B.tolist() == [1, 1, 0, 1]
    tries = int(result.metrics["scope/tail_tries"])
    assert 1 <= tries <= 8
    if tries > 1:  # one try less would not have been enough
        fewer = run(
            batch,
            [1, 0, 0, 1],
            dataclasses.replace(spec, tails=tries - 1),
            teacher=teacher,
            policy=IDLE,
            problem=short,
        )
        assert fewer.metrics["scope/accepted"] == 0 and same(fewer.rollout, batch, range(4))


def test_place_parent_or_a_random_failure():
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", WRONG_1 + "#")
    spec = dataclasses.replace(SPEC, place="replace_random_failure")
    places = set()
    for seed in range(12):
        result = run(batch, [1, 0, 0, 0], spec, seed=seed)
        (place,) = np.flatnonzero(result.reward_B - [1, 0, 0, 0])
        places.add(int(place))
        assert text(result.rollout, place) == RIGHT + "#" and result.rollout.row_id_B.tolist() == [
            0,
            1,
            2,
            3,
        ]
        assert same(result.rollout, batch, [row for row in range(4) if row != place])
        again = run(batch, [1, 0, 0, 0], spec, seed=seed)
        assert again.reward_B.tolist() == result.reward_B.tolist()
    assert places == {1, 2, 3}  # never the row that was right
    parent = run(batch, [1, 0, 0, 0], seed=5)
    assert parent.reward_B.tolist() == [1, 1, 0, 0]


def test_rows_without_a_verdict_are_left_out():
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_2 + "#", WRONG_1 + "#")
    result = run(batch, [1, NAN, 0, 0])
    assert result.include_B.tolist() == [True, False, True, True]
    assert result.metrics["scope/failed_share"] == 0.5
    assert same(result.rollout, batch, [0, 1, 3]) and text(result.rollout, 2) == RIGHT + "#"
    np.testing.assert_array_equal(result.reward_B, [1, NAN, 1, 0])


def test_nothing_failed():
    batch = scene(*[RIGHT + "#"] * 4)
    for spec, prm in (
        (SPEC, None),
        (dataclasses.replace(SPEC, localiser="prm"), fours_are_wrong()),
    ):
        result = run(batch, [1, 1, 1, 1], spec, prm=prm)
        assert (
            same(result.rollout, batch, range(4))
            and result.include_B.all()
            and result.gallery == []
        )
        shown = (
            "failed_share",
            "located_share",
            "selected",
            "accepted",
            "accepted_share",
            "teacher_token_share",
        )
        assert [result.metrics[f"scope/{name}"] for name in shown] == [0] * 6


def test_everything_failed_leaves_one_failure():
    batch = scene(*[WRONG_2 + "#"] * 4)
    result = run(batch, [0, 0, 0, 0], SPEC)
    assert result.reward_B.tolist() == [1, 1, 0, 0]
    assert [text(result.rollout, row) for row in range(4)] == [RIGHT + "#"] * 2 + [
        WRONG_2 + "#"
    ] * 2
    assert (result.metrics["scope/failed_share"], result.metrics["scope/selected"]) == (1.0, 2)
    every = run(
        batch, [0, 0, 0, 0], dataclasses.replace(SPEC, select=SelectSpec(rule="all", per_group=2))
    )
    assert every.reward_B.tolist() == [1, 1, 1, 0]
    # Room for them where they are appended: as many places as failures may be repaired.
    beside = run(
        batch,
        [0, 0, 0, 0],
        dataclasses.replace(SPEC, select=SelectSpec(rule="all", per_group=2), place="append"),
    )
    assert beside.group == 7 and beside.reward_B.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_rows_cut_off_by_length_are_no_candidates():
    batch = scene(RIGHT + "#", "+777\n-988\n+199-", "+777\n-988\n+199-", WRONG_2 + "#")
    result = run(batch, [1, 0, 0, 0])
    assert result.metrics["scope/cut_off"] == 2 and result.metrics["scope/selected"] == 1
    assert result.reward_B.tolist() == [1, 0, 0, 1]


def test_an_empty_completion_is_no_candidate():
    batch = scene("#", "#", "#", "#")
    result = run(batch, [0, 0, 0, 0])
    assert result.metrics["scope/selected"] == 0 and same(result.rollout, batch, range(4))


# ---- the first error at either end, and nowhere


def test_a_first_step_that_is_wrong_leaves_nothing_to_keep():
    batch = scene(*[WRONG_1 + "#"] * 4)
    result = run(batch, [0, 0, 0, 0])
    shown = ("located_share", "no_good_step", "eligible", "selected", "first_error_position")
    assert [result.metrics[f"scope/{name}"] for name in shown] == [1.0, 4, 0, 0, 0.0]
    assert same(result.rollout, batch, range(4)) and result.reward_B.tolist() == [0] * 4


def test_with_no_good_step_asked_for_the_teacher_writes_the_first():
    """good_steps 0: the row is cut to its prompt, and the teacher begins (with -9, which is right
    as well)."""
    batch = scene(RIGHT + "#", WRONG_1 + "#", WRONG_1 + "#", RIGHT + "#")
    select = dataclasses.replace(SPEC.select, good_steps=0, per_group=1)
    spec = dataclasses.replace(SPEC, select=select, tail="none", accept="unverified")
    result = run(batch, [1, 0, 0, 1], spec, teacher=bigram("=-910\n"), policy=IDLE)
    assert result.metrics["scope/eligible"] == 2 and result.metrics["scope/corrected"] == 1
    assert text(result.rollout, 1) == "-910\n" and result.include_B.tolist() == [
        True,
        False,
        True,
        True,
    ]
    assert result.rollout.owner_BT[1].tolist() == [PROMPT] * 7 + [TEACHER] * 5 + [PAD] * 11
    assert same(result.rollout, batch, [0, 2, 3])
    (item,) = result.gallery
    assert (
        item["steps"][0]["text"] == "+778\n"
        and item["steps"][0]["status"] == "wrong"
        and item["first_error"] == 0
    )


def test_misplaced_errors_are_as_many_as_asked_for_and_anywhere():
    rng = np.random.default_rng(0)
    R, J, error = 4000, 6, 3
    valid = np.arange(J)[None] < np.where(np.arange(R) % 2, 5, 6)[:, None]
    score = np.where(
        np.arange(J)[None] < error, rng.uniform(0.6, 1, (R, J)), rng.uniform(0, 0.4, (R, J))
    ).astype(np.float32)
    score[::10, error:] = 0.9  # rows without an error
    np.testing.assert_array_equal(_moved(score, valid, 0.5, 0.0, 7), score)
    moved = _moved(score, valid, 0.5, 0.4, 7)
    touched = (moved != score).any(axis=1)
    assert not touched[::10].any()
    has_error = np.arange(R) % 10 != 0
    assert touched[has_error].mean() == pytest.approx(0.4, abs=0.03)  # 4 standard errors
    first = np.where((moved < 0.5) & valid, np.arange(J)[None], J).min(axis=1)
    for steps in (5, 6):
        places = first[touched & (valid.sum(axis=1) == steps)]
        counts = np.bincount(places, minlength=steps)
        assert len(counts) == steps  # at some step of the row, the right one included
        np.testing.assert_allclose(counts / len(places), 1 / steps, atol=0.06)
    for r in np.flatnonzero(touched)[:50]:
        steps = int(valid[r].sum())
        assert moved[r, :steps].tolist() == [1.0] * first[r] + [0.0] * (steps - first[r])
    assert not np.array_equal(moved, _moved(score, valid, 0.5, 0.4, 8))
    everywhere = _moved(score, valid, 0.5, 1.0, 7)
    assert (everywhere != score).any(axis=1)[has_error].all()


def test_an_error_that_no_step_shows_is_not_located():
    # The verdict says failed (an answer in another form, say), and every step is right.
    batch = scene(RIGHT + "#", RIGHT + "#", WRONG_3 + "#", WRONG_1 + "#")
    result = run(batch, [1, 0, 0, 0], teacher=LAST, policy=IDLE)
    assert result.metrics["scope/located_share"] == pytest.approx(2 / 3)
    assert (
        result.metrics["scope/selected"] == 1
    )  # the error in the last step; that in the first leaves no prefix
    assert same(result.rollout, batch, [0, 1, 3]) and result.reward_B.tolist() == [1, 0, 1, 0]
    assert result.metrics["scope/first_error_position"] == pytest.approx((2 / 3 + 0) / 2)


def test_a_teacher_step_that_ends_the_solution_needs_no_tail():
    batch = scene(RIGHT + "#", WRONG_3 + "#", WRONG_1 + "#", RIGHT + "#")
    verified = run(batch, [1, 0, 0, 1], teacher=LAST, policy=IDLE)
    assert (
        verified.metrics["cost/tail_tokens"] == 0
    )  # the policy was not asked: a row that ended is not continued
    unverified = run(
        batch,
        [1, 0, 0, 1],
        dataclasses.replace(SPEC, tail="none", accept="unverified"),
        teacher=LAST,
        policy=IDLE,
    )
    assert text(unverified.rollout, 1) == RIGHT + "#" and bool(unverified.rollout.finished_B[1])
    # Whoever asks for no verdict gets none, even where one could be had.
    assert unverified.reward_B.tolist() == [1, 0, 0, 1] and unverified.include_B.tolist() == [
        True,
        False,
        True,
        True,
    ]


# ---- rows as long as they may be


@pytest.mark.parametrize(("most", "accepted"), [(15, 1), (14, 0)])
def test_a_repaired_row_may_fill_its_length_to_the_last_token(most, accepted):
    # 5 tokens kept, 5 by the teacher, 5 of the tail, the end token the last of them.
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    result = run(batch, [1, 0, 0, 1], sample=dataclasses.replace(SAMPLE, max_new_tokens=most))
    assert (result.metrics["scope/corrected"], result.metrics["scope/accepted"]) == (1, accepted)
    assert result.metrics["cost/tail_tokens"] == most - 10
    if accepted:
        assert text(result.rollout, 1) == RIGHT + "#" and result.rollout.length_B[1] == 7 + most
    else:  # "+198" without its end token is right and is not done
        assert same(result.rollout, batch, range(4)) and result.reward_B.tolist() == [1, 0, 0, 1]


def test_a_parent_that_fills_its_buffer_is_repaired_like_any_other():
    full = "+777\n-988\n+1990#"  # 16 tokens of 16, the last an end token
    batch = scene(RIGHT + "#", full, WRONG_1 + "#", RIGHT + "#")
    assert batch.length_B[1] == BUFFER and bool(batch.finished_B[1])
    result = run(batch, [1, 0, 0, 1])
    assert text(result.rollout, 1) == RIGHT + "#" and result.rollout.length_B[1] == 7 + 15
    assert result.rollout.tokens_BT[1, 22:].tolist() == [0] and result.rollout.owner_BT[
        1, 22:
    ].tolist() == [PAD]
    # Full without an end token: cut off by length, so where it would have gone is not known.
    assert (
        run(
            scene(RIGHT + "#", "+777\n-988\n+19900", WRONG_1 + "#", RIGHT + "#"), [1, 0, 0, 1]
        ).metrics["scope/cut_off"]
        == 1
    )


# ---- what a repair does to the advantages of its group


def prefix_push(result, rows, kept=5) -> float:
    """How much a step of gradient descent raises log pi of the tokens that `rows` share, kept from
    one wrong rollout: minus the derivative of the loss, summed over those rows and over the `kept`
    tokens after the prompt; one update per batch."""
    advantage = group_advantages(result.reward_B, result.group, include_B=result.include_B)
    spec = LossSpec(teacher_term="mask", normaliser="constant", max_new_tokens=16)
    on, off = token_weights(result.rollout, spec, include_B=jnp.asarray(result.include_B))
    logp = jnp.where(result.rollout.owner_BT == POLICY, -1.0, 0.0)
    gradient = jax.grad(lambda logp: policy_loss(logp, None, advantage[:, None], on, off, spec)[0])(
        logp
    )
    return -float(gradient[np.asarray(rows), 7 : 7 + kept].sum())


def test_zero_variance_groups_before_and_after():
    share = lambda result: float(zero_group_share(result.reward_B, result.group, result.include_B))
    assert float(zero_group_share(np.zeros(4), GROUP)) == 1.0
    kept = run(scene(*[WRONG_2 + "#"] * 4), [0, 0, 0, 0])
    assert kept.reward_B.tolist() == [1, 1, 0, 0] and share(kept) == 0.0
    # Every failure repaired: all right, so that a group that had an advantage has none; the reason
    # for `keep_failure`.
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_2 + "#", RIGHT + "#")
    spec = dataclasses.replace(SPEC, select=SelectSpec(per_group=2, keep_failure=False))
    everything = run(batch, [1, 0, 0, 1], spec)
    assert everything.reward_B.tolist() == [1] * 4 and share(everything) == 1.0
    assert prefix_push(everything, range(4)) == 0.0
    # Beside their parents the repairs leave a group with both.
    beside = run(batch, [1, 0, 0, 1], dataclasses.replace(spec, place="append"))
    assert beside.reward_B.tolist() == [1, 0, 0, 1, 1, 1] and share(beside) == 0.0


def two_groups(first: Rollout, second: Rollout) -> Rollout:
    rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)
    return rows.replace(row_id_B=jnp.arange(2 * GROUP, dtype=jnp.int32))


APPEND = dataclasses.replace(SPEC, place="append")


def test_appended_repairs_token_by_token():
    # The first group has one failure to repair (and one to keep); the second has two, and room for
    # both.
    first = scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
    second = scene(WRONG_1 + "#", WRONG_2 + "#", RIGHT + "#", WRONG_2 + "#")
    batch = two_groups(first, second)
    result = run(batch, [1, 0, 0, 1, 0, 0, 1, 0], APPEND)
    final = result.rollout
    assert result.group == 6 and final.tokens_BT.shape == (12, BUFFER)
    # The rollouts are where they were in their groups, as they were.
    here = [0, 1, 2, 3, 6, 7, 8, 9]
    for name in (
        "tokens_BT",
        "owner_BT",
        "logp_BT",
        "length_B",
        "prompt_length_B",
        "finished_B",
        "row_id_B",
    ):
        np.testing.assert_array_equal(
            np.asarray(getattr(final, name))[here], getattr(batch, name), err_msg=name
        )
    for row in (4, 10, 11):
        assert text(final, row) == RIGHT + "#"
        assert final.owner_BT[row].tolist() == [PROMPT] * 7 + [POLICY] * 5 + [TEACHER] * 5 + [
            POLICY
        ] * 5 + [PAD]
        np.testing.assert_array_equal(final.logp_BT[row, :12], batch.logp_BT[1, :12])
        assert bool(final.finished_B[row])
    # The place that was not taken holds the prompt, no written token, and counts nowhere.
    assert text(final, 5) == "" and bool(final.finished_B[5])
    assert final.owner_BT[5].tolist() == [PROMPT] * 7 + [PAD] * 16
    assert final.tokens_BT[5].tolist() == batch.tokens_BT[0, :7].tolist() + [0] * 16
    assert (final.logp_BT[5] == 0).all()
    np.testing.assert_array_equal(result.reward_B, [1, 0, 0, 1, 1, NAN, 0, 0, 1, 0, 1, 1])
    assert result.include_B.tolist() == [True] * 5 + [False] + [True] * 6
    assert len(set(final.row_id_B.tolist())) == 12  # an id of its own for every row
    assert result.metrics["scope/selected"] == 3 and result.metrics["scope/accepted"] == 3
    # The mean is over real rows: 3 of 5 and 3 of 6.
    advantage = np.asarray(group_advantages(result.reward_B, 6, include_B=result.include_B))
    np.testing.assert_allclose(
        advantage, [0.4, -0.6, -0.6, 0.4, 0.4, 0, -0.5, -0.5, 0.5, -0.5, 0.5, 0.5], rtol=1e-6
    )
    on, off = token_weights(
        final,
        LossSpec(normaliser="constant", max_new_tokens=16),
        include_B=jnp.asarray(result.include_B),
    )
    assert float(on[5].sum() + off[5].sum()) == 0.0
    np.testing.assert_allclose(
        on[4, 7:22], np.array([1] * 5 + [0] * 5 + [1] * 5) / (11 * 16), rtol=1e-6
    )  # 11 rows, not 12


def test_appended_rows_where_nothing_is_repaired():
    batch = scene(*[RIGHT + "#"] * 4)
    result = run(batch, [1, 1, 1, 1], APPEND)
    assert result.group == 6 and same(result.rollout, batch, range(4))
    np.testing.assert_array_equal(result.reward_B, [1] * 4 + [NAN] * 2)
    assert result.include_B.tolist() == [True] * 4 + [False] * 2
    assert result.rollout.length_B.tolist()[4:] == [7, 7]
    failed = run(
        scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#"),
        [1, 0, 0, 1],
        APPEND,
        policy=bigram("\n+190#"),
    )
    assert failed.metrics["scope/corrected"] == 1 and failed.metrics["scope/accepted"] == 0
    assert failed.include_B.tolist() == [True] * 4 + [
        False
    ] * 2 and failed.rollout.length_B.tolist()[4:] == [7, 7]


def test_appended_rows_without_a_verdict_give_the_teacher_term_only():
    spec = dataclasses.replace(APPEND, tail="none", accept="unverified")
    result = run(
        scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#"),
        [1, 0, 0, 1],
        spec,
        policy=IDLE,
    )
    assert text(result.rollout, 4) == "+777\n-987\n"
    assert result.include_B.tolist() == [True] * 4 + [False] * 2
    on, off = token_weights(
        result.rollout, LossSpec(normaliser="token"), include_B=jnp.asarray(result.include_B)
    )
    assert (
        float(on[4].sum()) == 0.0
        and (np.asarray(off[4]) > 0).tolist() == [False] * 12 + [True] * 5 + [False] * 6
    )


def test_a_failed_parent_beside_its_repair_cancels_the_shared_prefix():
    # Two of the three failures share their right first line (5 tokens) with the repairs made of
    # them.
    batch = scene(RIGHT + "#", WRONG_2 + "#", WRONG_2 + "#", WRONG_1 + "#")
    beside = run(batch, [1, 0, 0, 0], APPEND)
    assert beside.reward_B.tolist() == [1, 0, 0, 0, 1, 1]
    # Six rows, mean 1/2: each parent pushes its prefix down by as much as its repair pushes it up.
    assert prefix_push(beside, [1, 2]) == pytest.approx(-2 * 5 * 0.5 / (6 * 16))
    assert prefix_push(beside, [4, 5]) == pytest.approx(2 * 5 * 0.5 / (6 * 16))
    assert prefix_push(beside, [1, 2, 4, 5]) == pytest.approx(0, abs=1e-7)
    # In their parents' places: four rows, mean 3/4, nothing against them.
    instead = run(batch, [1, 0, 0, 0])
    assert instead.reward_B.tolist() == [1, 1, 1, 0]
    assert prefix_push(instead, [1, 2]) == pytest.approx(2 * 5 * 0.25 / (4 * 16))
    # With another mean what is left is what the mean leaves: one repair of two failures, 3 of 5
    # right, 0.4 - 0.6.
    one = run(scene(RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#"), [1, 0, 0, 1], APPEND)
    assert prefix_push(one, [1, 4]) == pytest.approx(5 * (0.4 - 0.6) / (5 * 16))
