"""Log-probs of tokens that are there already, against a table read by numpy."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from support.hand_made import PLAIN, V
from support.table_model import (
    GROUP,
    ROWS,
    table_logprobs,
    table_params,
    table_rows,
    written_mask,
)

from scope_jax import models
from scope_jax.learning import logprobs_program, make_logprobs, pack


@functools.cache
def found(temperature: float = 1.0, micro_batches: int = 1, coarse: bool = False) -> np.ndarray:
    run = make_logprobs(PLAIN, temperature=temperature, micro_batches=micro_batches)
    return np.asarray(run(table_params(), table_rows(), GROUP, coarse))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_written_tokens_get_their_log_prob_and_all_others_0(temperature):
    rows = table_rows()
    written = written_mask(rows)
    wanted = np.where(written, table_logprobs(rows.tokens_BT, temperature), 0.0)
    got = found(temperature)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    assert got.dtype == np.float32 and (got[written] < 0).all() and (got[~written] == 0).all()


@pytest.mark.parametrize("micro_batches", [2, 4, 8])
def test_rows_keep_their_places_however_many_go_through_the_model_at_once(micro_batches):
    """Two groups, one group, and one row at once: a group's prompt is then there for each row."""
    np.testing.assert_allclose(found(1.0, micro_batches), found(), atol=1e-6)


def test_coarse_widths_change_no_number():
    np.testing.assert_allclose(found(1.0, 1, True), found(), atol=1e-6)


def test_rows_that_cannot_be_split_are_refused():
    run = make_logprobs(PLAIN, temperature=1.0, micro_batches=3)
    with pytest.raises(ValueError, match=f"{len(ROWS)} rows cannot be split into 3 micro-batches"):
        run(table_params(), table_rows(), GROUP)


def test_the_program_is_of_the_packed_batch():
    rows = table_rows()
    run = logprobs_program(models.for_device(PLAIN), 1.0, 1)
    got = np.asarray(run(table_params(), pack(rows, {}, GROUP)))
    assert got.shape == (len(ROWS), 8)
    wanted = table_logprobs(rows.tokens_BT)
    for row, (prompt, completion) in enumerate(ROWS):
        of_row = wanted[row, len(prompt) : len(prompt) + len(completion)]
        np.testing.assert_allclose(got[row, : len(completion)], of_row, rtol=1e-4, atol=1e-5)


def test_runs_of_one_process_share_programs_that_are_equal():
    config = models.for_device(PLAIN)
    assert logprobs_program(config, 0.25, 2) is logprobs_program(config, 0.25, 2)
    others = [logprobs_program(config, 0.25, 1), logprobs_program(config, 0.5, 2)]
    assert logprobs_program(config, 0.25, 2) not in others


def test_weights_are_arguments_and_not_part_of_the_program():
    """The same program under other weights: every next token is as likely as any other."""
    flat = table_params() | {"head": jnp.zeros_like(table_params()["head"])}
    run = make_logprobs(PLAIN, temperature=1.0)
    got = np.asarray(run(flat, table_rows(), GROUP))
    np.testing.assert_allclose(got[written_mask(table_rows())], -np.log(V), rtol=1e-6)
