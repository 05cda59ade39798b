"""What a process reward model is given and says, on models that are made by hand."""

import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.hand_made import PLAIN, TOKENIZER, fours_are_wrong

from scope_jax import models
from scope_jax.prm import ProcessRewardModel
from scope_jax.text import character_tokenizer


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
