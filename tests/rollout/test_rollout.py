"""Rollouts against a decoder without cache: one forward pass over the finished rows says which
token must stand where.

Most cases run the same program (same shapes, same spec) on other rows. What an end token, a stop
table or a limit does is compared with a run without them, cut in plain Python: random numbers
depend on row and slot only.
"""

import dataclasses
import functools
import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.fixtures import MESHES, TINY, make_params, mesh_of, on_mesh, tiny_params

from scope_jax import models, rollout
from scope_jax.devices.mesh import put_rows
from scope_jax.devices.programs import program
from scope_jax.models import attention, decoder
from scope_jax.rollout import cut, decoding, refill
from scope_jax.rollout.sampling import row_keys, sample
from scope_jax.types import Owner, Rollout

SLOTS = 32  # of the buffer
NEW = 14
PROMPTS = [[5, 6, 7], [11], [1, 2, 3, 4, 5, 6, 7, 8], [40, 41, 42, 43, 44]]
GROUP = 2
FREE = rollout.SampleSpec(temperature=1.0, max_new_tokens=NEW)
KEY = jax.random.key(7)
draw = jax.jit(sample, static_argnums=(3, 4, 5))
# The module; the package exports the function under the same name.
generate_module = importlib.import_module("scope_jax.rollout.generate")


@functools.partial(jax.jit, static_argnames="config")
def every_logit(params, config, tokens_BT):
    return models.logits(params, config, tokens_BT, jnp.full(len(tokens_BT), tokens_BT.shape[1]))


@functools.partial(jax.jit, static_argnames=("config", "temperature"))
def teacher_forced(params, config, tokens_BT, temperature=1.0):
    return models.token_logprobs(params, config, tokens_BT, temperature=temperature)[0]


def fresh_rows() -> Rollout:
    return rollout.from_prompts(PROMPTS, GROUP, SLOTS)


def run(
    rows: Rollout,
    spec: rollout.SampleSpec = FREE,
    params=None,
    seats: int | None = None,
    unrolled: bool | None = None,
    **options,
) -> Rollout:
    config = dataclasses.replace(TINY, scan_layers=None if unrolled is None else not unrolled)
    generator = rollout.Generator(tiny_params() if params is None else params, config)
    spec = dataclasses.replace(spec, seats=seats)
    return jax.device_get(generator.extend(rows, KEY, spec, **options))


def traced_anew():
    """`generate_program` as a new function: else programs that were traced before a patch would be
    found again."""
    inner = generate_module.generate_program.__wrapped__
    return program(lambda *arguments: inner(*arguments), static_argnums=(2, 3))


@functools.cache
def free_run() -> Rollout:
    """No end token, no stop table: every row writes NEW tokens."""
    return run(fresh_rows())


def assert_same(found: Rollout, wanted: Rollout, logp: float = 1e-5) -> None:
    for field in ("tokens_BT", "owner_BT", "length_B", "prompt_length_B", "finished_B", "row_id_B"):
        np.testing.assert_array_equal(getattr(found, field), getattr(wanted, field), err_msg=field)
    np.testing.assert_allclose(found.logp_BT, wanted.logp_BT, atol=logp, rtol=0)


def take(rows: Rollout, index) -> Rollout:
    return jax.tree.map(lambda x: np.asarray(x)[np.asarray(index)], rows)


def truncated(full: Rollout, lengths, finished) -> Rollout:
    """`full` as it would be, had row b stopped at `lengths[b]` tokens: by numpy alone."""
    kept = np.arange(SLOTS)[None] < np.asarray(lengths)[:, None]
    return full.replace(
        tokens_BT=np.where(kept, full.tokens_BT, 0),
        owner_BT=np.where(kept, full.owner_BT, 0).astype(np.int8),
        logp_BT=np.where(kept, full.logp_BT, 0.0),
        length_B=np.asarray(lengths, np.int32),
        finished_B=np.asarray(finished, bool),
    )


def first_end(full: Rollout, ends) -> tuple[list[int], list[bool]]:
    """(length, finished) of each row of `full`, had it stopped after the first of `ends` that was
    written."""
    lengths, finished = [], []
    for tokens, prompt, length in zip(
        full.tokens_BT, full.prompt_length_B, full.length_B, strict=True
    ):
        hits = [t for t in range(prompt, length) if tokens[t] in ends]
        lengths.append(hits[0] + 1 if hits else int(length))
        finished.append(bool(hits))
    return lengths, finished


def test_prompts_are_laid_out_as_rows():
    rows = jax.device_get(rollout.from_prompts([[5, 6], [7]], 2, 4, first_row=10))
    np.testing.assert_array_equal(
        rows.tokens_BT, [[5, 6, 0, 0], [5, 6, 0, 0], [7, 0, 0, 0], [7, 0, 0, 0]]
    )
    np.testing.assert_array_equal(
        rows.owner_BT, [[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    )
    assert rows.length_B.tolist() == rows.prompt_length_B.tolist() == [2, 2, 1, 1]
    assert (
        rows.row_id_B.tolist() == [10, 11, 12, 13]
        and not rows.finished_B.any()
        and not rows.logp_BT.any()
    )
    with pytest.raises(ValueError, match=r"prompt 1 has 4 tokens; 1 to 3 fit a buffer of 4"):
        rollout.from_prompts([[1], [1, 2, 3, 4]], 1, 4)
    with pytest.raises(ValueError, match=r"prompt 0 has 0 tokens"):
        rollout.from_prompts([[]], 1, 4)


def test_the_loop_writes_what_a_decoder_without_cache_would_draw():
    rows = free_run()
    np.testing.assert_array_equal(rows.length_B, rows.prompt_length_B + NEW)
    for b in range(8):
        prompt = PROMPTS[b // GROUP]
        assert rows.tokens_BT[b, : len(prompt)].tolist() == prompt
        assert rows.owner_BT[b].tolist() == [1] * len(prompt) + [2] * NEW + [0] * (
            SLOTS - len(prompt) - NEW
        )
    logits = every_logit(tiny_params(), TINY, rows.tokens_BT)
    keys = row_keys(KEY, 0, rows.row_id_B)
    for slot in range(1, SLOTS):
        wanted, logp = jax.device_get(
            draw(logits[:, slot - 1], keys, np.full(8, slot, np.int32), 1.0, 1.0, None)
        )
        written = (rows.owner_BT == Owner.POLICY)[:, slot]
        np.testing.assert_array_equal(rows.tokens_BT[written, slot], wanted[written])
        np.testing.assert_allclose(rows.logp_BT[written, slot], logp[written], atol=1e-5)


def test_sampler_and_teacher_forced_log_probs_agree():
    rows = free_run()
    forced = jax.device_get(teacher_forced(tiny_params(), TINY, rows.tokens_BT))
    written = rows.owner_BT == Owner.POLICY
    assert written.sum() == 8 * NEW
    np.testing.assert_allclose(rows.logp_BT[written], forced[written], atol=1e-5)
    assert not rows.logp_BT[~written].any() and (rows.logp_BT[written] < -0.1).mean() > 0.9


def test_log_probs_are_of_the_scaled_and_untruncated_distribution():
    spec = rollout.SampleSpec(temperature=0.7, top_p=0.6, top_k=5, max_new_tokens=NEW)
    rows = run(fresh_rows(), spec)
    written = rows.owner_BT == Owner.POLICY
    forced = jax.device_get(teacher_forced(tiny_params(), TINY, rows.tokens_BT, temperature=0.7))
    np.testing.assert_allclose(rows.logp_BT[written], forced[written], atol=1e-5)
    # Every token is among the 5 likeliest, and in the smallest set with 0.6 of their mass.
    logits = jax.device_get(every_logit(tiny_params(), TINY, rows.tokens_BT))[:, :-1] / np.float32(
        0.7
    )
    written, tokens = written[:, 1:], rows.tokens_BT[:, 1:]
    better = (logits > np.take_along_axis(logits, tokens[..., None], -1)).sum(-1)
    top = -np.sort(-logits, axis=-1)[..., :5]
    mass = np.exp(top - top[..., :1])
    before = (np.cumsum(mass, -1) - mass) / mass.sum(-1, keepdims=True)
    assert better[written].max() < 5
    assert (
        np.take_along_axis(before, np.minimum(better, 4)[..., None], -1)[..., 0][written] < 0.6
    ).all()


def test_greedy_is_the_argmax_without_cache():
    spec = rollout.SampleSpec(temperature=0.0, max_new_tokens=NEW)
    rows = run(fresh_rows(), spec)
    tokens, lengths = np.array(fresh_rows().tokens_BT), np.array(fresh_rows().length_B)
    for _ in range(NEW):
        logits = jax.device_get(every_logit(tiny_params(), TINY, tokens))
        for b in range(8):
            tokens[b, lengths[b]] = np.argmax(logits[b, lengths[b] - 1])
        lengths += 1
    np.testing.assert_array_equal(rows.tokens_BT, tokens)
    np.testing.assert_array_equal(
        rows.tokens_BT[::2], rows.tokens_BT[1::2]
    )  # the key plays no part
    forced = jax.device_get(teacher_forced(tiny_params(), TINY, tokens))
    written = rows.owner_BT == Owner.POLICY
    np.testing.assert_allclose(rows.logp_BT[written], forced[written], atol=1e-5)


@pytest.mark.parametrize("lengths", [[4, 5, 10, 15, 9, 16, 6, 10], [3, 3, 1, 1, 8, 8, 5, 5]])
def test_a_row_cut_and_resumed_writes_the_same_tokens(lengths):
    full = free_run()
    half = cut(put_rows(full), jnp.asarray(lengths))
    assert np.asarray(half.tokens_BT)[0, lengths[0] :].sum() == 0
    # Other lengths may ask for another prefill width; the tokens must not notice.
    assert_same(run(half, limit_B=jnp.asarray(full.length_B)), full)


def test_another_stream_or_key_writes_other_tokens_after_the_cut():
    full = free_run()
    lengths = full.prompt_length_B + 3
    again = run(
        cut(put_rows(full), jnp.asarray(lengths)), limit_B=jnp.asarray(full.length_B), stream=1
    )
    kept = np.arange(SLOTS)[None] < lengths[:, None]
    np.testing.assert_array_equal(again.tokens_BT[kept], full.tokens_BT[kept])
    tail = (full.owner_BT == Owner.POLICY) & ~kept
    assert (again.tokens_BT[tail] == full.tokens_BT[tail]).mean() < 0.5
    # Rows of one group share their prompt and differ by their id alone.
    assert all((full.tokens_BT[b] != full.tokens_BT[b + 1]).any() for b in range(0, 8, 2))


def test_owner_of_a_continuation_is_recorded_behind_the_cut():
    full = free_run()
    lengths = full.prompt_length_B + 2
    mixed = run(
        cut(put_rows(full), jnp.asarray(lengths)),
        limit_B=jnp.asarray(lengths + 3),
        owner=Owner.TEACHER,
    )
    for b in range(8):
        p = full.prompt_length_B[b]
        assert mixed.owner_BT[b].tolist() == [1] * p + [2] * 2 + [3] * 3 + [0] * (SLOTS - p - 5)


@pytest.mark.parametrize(
    "order", [[7, 2, 5, 0, 1, 6, 3, 4], [3, 3, 3, 6, 6, 0, 0, 0]], ids=["permuted", "subset"]
)
def test_a_row_does_not_depend_on_its_neighbours_or_its_place(order):
    rows = put_rows(take(jax.device_get(fresh_rows()), order))
    assert_same(run(rows), take(free_run(), order))


def test_batch_of_one():
    rows = put_rows(take(jax.device_get(fresh_rows()), [5]))
    assert_same(run(rows), take(free_run(), [5]))


def test_prompts_prefilled_once_per_group():
    assert_same(run(fresh_rows(), shared_prefix=GROUP), free_run())
    with pytest.raises(ValueError, match="8 rows are not a multiple of shared_prefix 3"):
        run(fresh_rows(), shared_prefix=3)


def test_scanned_and_unrolled_layers_write_the_same():
    assert_same(run(fresh_rows(), unrolled=False), run(fresh_rows(), unrolled=True))


@pytest.mark.parametrize(
    ("seats", "unrolled", "shared"), [(1, True, 1), (3, True, 1), (3, False, 2), (99, True, 1)]
)
def test_refilled_seats_write_the_same(seats, unrolled, shared):
    assert_same(run(fresh_rows(), seats=seats, unrolled=unrolled, shared_prefix=shared), free_run())


@pytest.mark.parametrize("name", list(MESHES))
def test_meshes_write_the_same(name):
    with on_mesh(name) as params:
        rows = rollout.generate(params, TINY, fresh_rows(), KEY, FREE)
        assert_same(jax.device_get(rows), free_run())
        spread = {"1": 1, "8x1x1": 8, "2x2x2": 4}[name]
        assert (
            len(
                {
                    str(index)
                    for index in rows.tokens_BT.sharding.devices_indices_map(
                        rows.tokens_BT.shape
                    ).values()
                }
            )
            == spread
        )


@pytest.mark.parametrize(("name", "seats"), [("2x2x2", 4)])
def test_refill_on_a_mesh_writes_the_same(name, seats):
    with on_mesh(name) as params:
        assert_same(run(fresh_rows(), params=params, seats=seats, shared_prefix=GROUP), free_run())


@functools.cache
def uneven_rows() -> tuple[Rollout, np.ndarray, Rollout]:
    """64 rows, the lengths they may reach, and what they are when all are decoded together."""
    rows = rollout.from_prompts(PROMPTS * 8, GROUP, SLOTS)
    new = np.random.RandomState(4).randint(1, NEW + 1, 64)
    limit = np.asarray(rows.prompt_length_B) + new
    return rows, limit, run(rows, limit_B=limit)


@pytest.mark.parametrize(
    ("name", "unrolled"),
    [
        ("1", True),
        ("2x2x2", False),
        pytest.param("1", False, marks=pytest.mark.long),
        pytest.param("2x2x2", True, marks=pytest.mark.long),
    ],
)
def test_a_batch_that_is_halved_as_rows_end_writes_the_same(name, unrolled, monkeypatch):
    """32 seats for 64 rows of lengths of their own; at the end 16 and 8 seats (4 on each of the
    mesh's row devices)."""
    rows, limit, wanted = uneven_rows()
    sizes: set[int] = set()
    inner = decoding.decode_step

    def watched(params, layers, config, cache, token_B, *more):
        sizes.add(len(token_B))
        return inner(params, layers, config, cache, token_B, *more)

    monkeypatch.setattr(decoding, "decode_step", watched)
    monkeypatch.setattr(refill, "SMALLEST_BATCH", 2)
    monkeypatch.setattr(generate_module, "generate_program", traced_anew())
    with on_mesh(name) as params:
        assert_same(
            run(
                rows, params=params, seats=32, limit_B=limit, unrolled=unrolled, shared_prefix=GROUP
            ),
            wanted,
        )
    assert sizes == {32, 16, 8}


@pytest.mark.parametrize(
    ("name", "unrolled", "seats", "cache"),
    [
        ("1", True, None, "auto"),
        ("1", False, None, "int8"),
        ("1", True, 16, "int8"),
        ("2x2x2", False, 32, "auto"),
        pytest.param("1", True, None, "int8", marks=pytest.mark.long),
        pytest.param("1", False, None, "auto", marks=pytest.mark.long),
        pytest.param("1", True, 16, "auto", marks=pytest.mark.long),
        pytest.param("2x2x2", False, 32, "int8", marks=pytest.mark.long),
    ],
)
def test_a_cache_read_by_blocks_gives_the_same(name, unrolled, seats, cache, monkeypatch):
    """Blocks of 4 positions and lanes of 2 seats, put in order as rows end; prompts and rows are of
    several lengths."""
    rows, limit, _ = uneven_rows()
    spec = dataclasses.replace(FREE, cache=cache)
    wanted = run(rows, spec, limit_B=limit)
    monkeypatch.setattr(decoding, "BLOCK", 4)
    heads = TINY.num_kv_heads // (2 if name == "2x2x2" else 1)
    of_seat = 2 * 4 * heads * TINY.head_size * (1 if cache == "int8" else 4)
    monkeypatch.setattr(decoding, "LANE_BYTES", 2 * of_seat)
    monkeypatch.setattr(generate_module, "generate_program", traced_anew())
    used: list = []
    blockwise = attention.blockwise
    monkeypatch.setattr(
        attention, "blockwise", lambda *a, **k: used.append(a[3]) or blockwise(*a, **k)
    )
    with on_mesh(name) as params:
        found = run(
            rows,
            spec,
            params=params,
            seats=seats,
            limit_B=limit,
            unrolled=unrolled,
            shared_prefix=GROUP,
        )
    # The last bit of a key may turn it to the next of its 255 values.
    assert_same(found, wanted, logp=1e-2 if cache == "int8" else 1e-5)
    parts = {"1": 1, "2x2x2": 4}[name]
    own = (seats or 64) // parts
    assert attention.Blocks(4, min(own // 2, 16), parts) in used


def test_a_batch_that_no_mesh_axis_divides():
    with on_mesh("8x1x1") as params:
        assert_same(
            run(put_rows(take(jax.device_get(fresh_rows()), [5])), params=params),
            take(free_run(), [5]),
        )


# Two tokens that the free run writes at different places, one of them as the very first token of a
# row.
def end_pair() -> tuple[int, int]:
    full = free_run()
    return int(full.tokens_BT[0, full.prompt_length_B[0]]), int(
        full.tokens_BT[3, full.prompt_length_B[3] + 5]
    )


def ending() -> rollout.SampleSpec:
    return rollout.SampleSpec(temperature=1.0, max_new_tokens=NEW, end_ids=end_pair())


def test_rows_end_at_the_first_of_several_end_tokens():
    full, pair = free_run(), end_pair()
    lengths, finished = first_end(full, pair)
    assert lengths[0] == full.prompt_length_B[0] + 1  # an end token as the very first one
    assert (
        2 <= sum(finished) < 8
        and len({full.tokens_BT[b, n - 1] for b, n in enumerate(lengths) if finished[b]}) == 2
    )
    ended = run(fresh_rows(), ending())
    assert_same(ended, truncated(full, lengths, finished))
    ids = rollout.completion_ids(put_rows(ended))
    assert ids[0] == [] and all(not set(pair) & set(row) for row in ids)
    assert [len(row) for row in ids] == [
        n - int(p) - f for n, p, f in zip(lengths, full.prompt_length_B, finished, strict=True)
    ]


def test_end_tokens_with_refilled_slots_on_a_mesh():
    wanted = truncated(free_run(), *first_end(free_run(), end_pair()))
    with on_mesh("8x1x1") as params:
        assert_same(run(fresh_rows(), ending(), params=params, seats=3), wanted)


def end_at_once(config: models.ModelConfig, end: int) -> models.Params:
    """Weights under which every next token is `end`: attention weights sum to 1, so a large value
    bias adds the same large vector at every slot, and the head's column of `end` points along it.
    """
    params = jax.tree.map(np.array, make_params(config, 3))
    layers = params["layers"]
    layers["value_bias"][-1] = 100.0
    value = np.repeat(
        layers["value_bias"][-1].reshape(config.num_kv_heads, 1, -1),
        config.num_query_groups,
        axis=1,
    )
    constant = value.reshape(-1) @ layers["output"][-1]
    params["final_norm"][:] = 1.0
    layers["down"][-1] = 0.0
    params["head"][:, end] = 5 * constant / np.linalg.norm(constant)
    return jax.tree.map(jnp.asarray, params)


def test_a_model_that_only_ends_writes_one_token():
    end = end_pair()[1]
    rows = run(fresh_rows(), ending(), params=end_at_once(TINY, end))
    np.testing.assert_array_equal(rows.length_B, rows.prompt_length_B + 1)
    assert rows.finished_B.all()
    assert (rows.tokens_BT[np.arange(8), rows.length_B - 1] == end).all()
    assert (rows.tokens_BT[np.arange(SLOTS)[None] >= rows.length_B[:, None]] == 0).all()
    assert rollout.completion_ids(put_rows(rows)) == [[]] * 8


def test_finished_rows_stay_as_they_are():
    full = free_run()
    lengths, finished = first_end(full, end_pair())
    part = truncated(full, lengths, finished)
    np.testing.assert_array_equal(
        run(put_rows(part), ending(), limit_B=jnp.asarray(full.length_B)).tokens_BT, part.tokens_BT
    )
    # Rows that finished early are left alone while others still write.
    rows = put_rows(fresh_rows().replace(finished_B=np.array([True, False] * 4)))
    some = run(rows)
    assert_same(take(some, [1, 3, 5, 7]), take(full, [1, 3, 5, 7]))
    assert_same(take(some, [0, 2, 4, 6]), take(jax.device_get(rows), [0, 2, 4, 6]))


@pytest.mark.parametrize("seats", [None, 3])
def test_limits_of_single_rows(seats):
    full = free_run()
    # Below the row's own length, at it, one token, several, and past max_new_tokens.
    limit = full.prompt_length_B + np.array([-2, 0, 1, 2, 5, NEW - 1, NEW, NEW + 3])
    wanted = np.clip(limit, full.prompt_length_B, full.prompt_length_B + NEW)
    assert_same(
        run(fresh_rows(), limit_B=jnp.asarray(limit), seats=seats),
        truncated(full, wanted, [False] * 8),
    )


def test_max_new_tokens_of_one():
    full = free_run()
    rows = run(fresh_rows(), rollout.SampleSpec(temperature=1.0, max_new_tokens=1))
    assert_same(rows, truncated(full, full.prompt_length_B + 1, [False] * 8))


def test_a_full_buffer_ends_rows_without_finishing_them():
    prompts = [[1 + i % 40 for i in range(n)] for n in (SLOTS - 1, SLOTS - 2, SLOTS - 5, 3)]
    rows = jax.device_get(rollout.from_prompts(prompts, 2, SLOTS))
    # Row 1 has no free slot at all.
    tokens, owner = rows.tokens_BT.copy(), rows.owner_BT.copy()
    tokens[1, -1], owner[1, -1] = 9, Owner.POLICY
    rows = rows.replace(
        tokens_BT=tokens,
        owner_BT=owner,
        length_B=rows.length_B + np.array([0, 1, 0, 0, 0, 0, 0, 0], np.int32),
    )
    out = run(put_rows(rows))
    assert out.length_B.tolist() == [SLOTS] * 6 + [3 + NEW] * 2
    assert not out.finished_B.any()
    np.testing.assert_array_equal(out.tokens_BT[1], tokens[1])
    forced = jax.device_get(teacher_forced(tiny_params(), TINY, out.tokens_BT))
    written = (out.owner_BT == Owner.POLICY) & (rows.owner_BT == Owner.PAD)
    np.testing.assert_allclose(out.logp_BT[written], forced[written], atol=1e-5)
    assert written.sum() == 1 + 0 + 2 * 2 + 2 * 5 + 2 * NEW


def walk(table: np.ndarray, full: Rollout) -> list[int]:
    """Length of each row of `full`, had it stopped when `table` reached its last state."""
    lengths = []
    for tokens, prompt, length in zip(
        full.tokens_BT, full.prompt_length_B, full.length_B, strict=True
    ):
        state, stop = 0, int(length)
        for t in range(prompt, length):
            state = table[state, tokens[t]]
            if state == len(table) - 1:
                stop = t + 1
                break
        lengths.append(stop)
    return lengths


def separator_table(half: set[int], whole: set[int]) -> np.ndarray:
    """A separator of two equal bytes. Tokens `half` hold one byte, at their end; tokens `whole`
    hold both and then more text (a merged token); all others hold none."""
    table = np.zeros((3, TINY.vocab_size), np.int32)
    table[2] = 2
    for token in half:
        table[0, token], table[1, token] = 1, 2
    for token in whole:
        table[:2, token] = 2
    return table


def test_the_stop_table_pauses_rows_after_the_separator():
    full = free_run()
    # Half of the vocabulary are half separators, so that pairs occur; half separators apart must
    # not stop a row.
    table = separator_table(half=set(range(0, 48, 2)), whole={47})
    lengths = walk(table, full)
    merged = [b for b, n in enumerate(lengths) if full.tokens_BT[b, n - 1] == 47]
    pairs = [b for b, n in enumerate(lengths) if n < full.length_B[b] and b not in merged]
    lone = [
        b
        for b, n in enumerate(lengths)
        if any(full.tokens_BT[b, t] % 2 == 0 for t in range(full.prompt_length_B[b], n - 2))
    ]
    assert pairs and lone
    rows = run(fresh_rows(), rollout.SampleSpec(temperature=1.0, max_new_tokens=NEW, stop=table))
    assert_same(rows, truncated(full, lengths, [False] * 8))


def test_the_stop_table_sees_a_separator_inside_a_merged_token():
    full = free_run()
    merged = int(full.tokens_BT[2, full.prompt_length_B[2] + 4])
    table = separator_table(half=set(), whole={merged})
    lengths = walk(table, full)
    assert lengths[2] <= full.prompt_length_B[2] + 5 and any(
        n == full.length_B[b] for b, n in enumerate(lengths)
    )
    spec = rollout.SampleSpec(temperature=1.0, max_new_tokens=NEW, stop=table)
    rows = run(fresh_rows(), spec)
    assert_same(rows, truncated(full, lengths, [False] * 8))
    # A paused row goes on where it stood, and stops at the next separator.
    again = run(put_rows(rows), spec, limit_B=jnp.asarray(full.length_B))
    for b in range(8):
        later = [
            t + 1 for t in range(lengths[b], full.length_B[b]) if full.tokens_BT[b, t] == merged
        ]
        assert again.length_B[b] == (later[0] if later else full.length_B[b])
        np.testing.assert_array_equal(
            again.tokens_BT[b, : again.length_B[b]], full.tokens_BT[b, : again.length_B[b]]
        )


@pytest.fixture
def steps(monkeypatch):
    """Counts, while the program runs, how often the loop asks the model for a token."""
    counted: list[int] = []
    decode_step = decoding.decode_step

    def counting(*arguments):
        jax.debug.callback(lambda: counted.append(1))
        return decode_step(*arguments)

    monkeypatch.setattr(decoding, "decode_step", counting)
    monkeypatch.setattr(generate_module, "generate_program", traced_anew())

    def count(*arguments, **options) -> tuple[int, Rollout]:
        counted.clear()
        rows = run(*arguments, **options)
        jax.effects_barrier()
        return len(counted), rows

    return count


def test_the_loop_stops_when_all_rows_are_done(steps):
    full = free_run()
    # The first token of a row comes from the prefill, every other one from a step of the loop.
    count, rows = steps(fresh_rows())
    assert count == NEW - 1
    assert_same(rows, full)
    count, _ = steps(
        fresh_rows(), limit_B=full.prompt_length_B + np.array([1, 4, 2, 1, 1, 6, 1, 3])
    )
    assert count == 5
    count, _ = steps(fresh_rows(), limit_B=full.prompt_length_B + 1)
    assert count == 0
    count, rows = steps(put_rows(full.replace(finished_B=np.ones(8, bool))))
    assert count == 0
    assert_same(rows, full.replace(finished_B=np.ones(8, bool)))


def test_refilled_seats_are_never_idle_while_rows_wait(steps):
    new = np.array([1, 14, 2, 1, 3, 9, 1, 5])
    count, _ = steps(fresh_rows(), limit_B=free_run().prompt_length_B + new, seats=3)
    # Each waiting row sits down, in order, at the seat that is free first; rows with one token
    # never sit down.
    seats = [0, 0, 0]
    for work in new - 1:
        if work:
            seats[seats.index(min(seats))] += int(work)
    assert count == max(seats)


def kept_by(scaled: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """Which tokens may be drawn, by the definitions of top-k and top-p."""
    kept = np.zeros(len(scaled), bool)
    order = np.argsort(-scaled)[:top_k]
    mass = np.exp(scaled[order] - scaled.max())
    before = np.cumsum(mass) - mass
    kept[order[before < top_p * mass.sum()]] = True
    return kept


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """Standard deviations by which the statistic exceeds its mean; bins with few expected counts
    are joined."""
    small = expected < 5
    counts = np.append(counts[~small], counts[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize(
    ("V", "temperature", "top_k", "top_p"),
    [
        (48, 1.0, None, 1.0),
        (200, 0.7, None, 1.0),
        (300, 1.3, 7, 1.0),
        (128, 1.0, None, 0.8),
        (257, 0.5, 20, 0.9),
    ],
)
def test_draws_follow_the_softmax(V, temperature, top_k, top_p):
    N = 8000
    logits = np.random.RandomState(V).standard_normal(V).astype(np.float32) * 2
    logits[V // 3] = -np.inf
    keys = row_keys(jax.random.key(1), 0, jnp.arange(N))
    rows = jnp.broadcast_to(jnp.asarray(logits), (N, V))
    token, logp = jax.device_get(draw(rows, keys, jnp.full(N, 3), temperature, top_p, top_k))

    scaled = logits.astype(np.float64) / temperature
    full = np.exp(scaled - scaled.max())
    np.testing.assert_allclose(
        logp, np.log(full[token] / full.sum()), atol=1e-5
    )  # not of the truncated distribution
    kept = kept_by(scaled, top_k, top_p)
    counts = np.bincount(token, minlength=V)
    assert counts[~kept].sum() == 0 and counts[V // 3] == 0
    expected = np.where(kept, full, 0) / full[kept].sum() * N
    assert chi_square(counts, expected) < 5
    # The bound can tell: temperatures 20 % off would be seen.
    wrong = np.where(kept, np.exp((scaled - scaled.max()) / 1.2), 0)
    assert chi_square(counts, wrong / wrong.sum() * N) > 5


def test_draws_depend_on_key_row_and_slot():
    N, V = 2000, 300
    logits = jnp.zeros((N, V))
    tokens = jax.jit(lambda seed, stream, slot: sample(
        logits, row_keys(jax.random.key(seed), stream, jnp.arange(N)), jnp.full(N, slot), 1.0, 1.0, None)[0])  # fmt: skip  # noqa: E501
    first = np.asarray(tokens(1, 0, 3))
    np.testing.assert_array_equal(first, tokens(1, 0, 3))
    # Two independent draws agree in one place out of V.
    for other in (tokens(2, 0, 3), tokens(1, 1, 3), tokens(1, 0, 4), np.roll(first, 1)):
        assert np.mean(first == np.asarray(other)) < 5 / V


def test_top_k_of_one_is_greedy():
    logits = jnp.asarray(np.random.RandomState(0).standard_normal((64, 200)).astype(np.float32))
    keys = row_keys(jax.random.key(1), 0, jnp.arange(64))
    greedy, logp = draw(logits, keys, jnp.arange(64), 0.0, 1.0, None)
    np.testing.assert_array_equal(greedy, np.argmax(logits, -1))
    np.testing.assert_allclose(logp, np.max(jax.nn.log_softmax(logits), -1), atol=1e-6)
    for temperature, top_p, top_k in ((0.7, 1.0, 1), (1.0, 1e-6, None)):
        token, _ = draw(logits, keys, jnp.arange(64), temperature, top_p, top_k)
        np.testing.assert_array_equal(token, greedy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1.0}, r"temperature -1.0 must be a number >= 0 \(0 is greedy\)"),
        ({"top_p": 0.0}, r"top_p 0.0 must be in \(0, 1\]"),
        ({"top_k": 0}, r"top_k 0 must be >= 1, or None for off"),
        ({"max_new_tokens": 0}, r"max_new_tokens 0 must be >= 1"),
    ],
)
def test_bad_sampling_numbers(change, message):
    with pytest.raises(ValueError, match=message):
        rollout.SampleSpec(**change)


def test_a_model_without_vocabulary_head_cannot_write():
    with pytest.raises(
        ValueError, match="head 'prm' and cannot write text; an 'lm' head is needed"
    ):
        rollout.generate({}, TINY.with_head("prm"), fresh_rows(), KEY, FREE)


# --- the compiled loop
# ----------------------------------------------------------------------------------------------

# Large enough for each weight to be larger than anything a step computes for 8 rows.
WIDE = models.ModelConfig(
    vocab_size=512,
    hidden_size=128,
    num_layers=2,
    num_heads=8,
    num_kv_heads=2,
    head_size=16,
    ffn_size=256,
)
COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter)(?:-start)?\("
)


def compiled_loop(monkeypatch, unrolled: bool, name: str = "2x2x2") -> list[str]:
    """Instructions of the decode loop's body, and of all that it calls, in the program that
    `generate` runs on a mesh: compiled with what it passes, and not run."""
    mesh = mesh_of(name)
    passed: list = []
    program = generate_module.generate_program
    with monkeypatch.context() as patch, jax.set_mesh(mesh):
        patch.setattr(
            generate_module, "generate_program", lambda *arguments: passed.extend(arguments)
        )
        params = jax.device_put(make_params(WIDE, 0), models.shardings(WIDE, mesh))
        spec = rollout.SampleSpec(1.0, max_new_tokens=40, end_ids=(0,), prefix_tokens=16)
        config = dataclasses.replace(WIDE, scan_layers=not unrolled)
        rollout.generate(params, config, rollout.from_prompts([[1, 2, 3]], 8, 64), KEY, spec)
        text = program.lower(*passed).compile().as_text()
    computations: dict[str, list[str]] = {}
    for line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            lines = computations.setdefault(header[1], [])
        elif line.startswith("  "):
            lines.append(line)
    loops = [
        line
        for found in computations.values()
        for line in found
        if " while(" in line and 'op_name="jit(generate_program)/while"' in line
    ]
    # The prefill scans its layers in a loop of the same name: the decode loop is the one that
    # carries all 56 positions.
    (decode,) = [line for line in loops if re.search(r"\[[\d,]*,56,16\]", line.split(" while(")[0])]
    reached, todo = set(), [re.search(r"body=%?([\w.\-]+)", decode)[1]]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += re.findall(
                r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)", "\n".join(computations[name])
            )
    return [decode] + [line for name in reached for line in computations[name]]


def collective_sizes(lines: list[str]) -> list[tuple[str, int]]:
    """(kind, elements of the largest array it gives) of every collective."""
    found = [match for line in lines if (match := COLLECTIVE.search(line))]
    shapes = [(match[2], re.findall(r"\[([\d,]*)\]", match[1])) for match in found]
    return [
        (kind, max(int(np.prod([int(n) for n in s.split(",") if n])) for s in sizes))
        for kind, sizes in shapes
    ]


@pytest.mark.parametrize("unrolled", [False, True])
def test_no_step_moves_a_weight_or_the_cache_between_devices(monkeypatch, unrolled):
    """Of the compiled text: inside the loop no collective gives an array as large as one device's
    part of the smallest matrix of a layer, or of one layer's keys; the keys and values are carried
    split over rows and heads, and no instruction copies them."""
    lines = compiled_loop(monkeypatch, unrolled)
    sizes = collective_sizes(lines)
    matrix = WIDE.hidden_size * WIDE.num_kv_heads * WIDE.head_size // 2
    keys = (8 // 4) * (WIDE.num_kv_heads // 2) * 56 * WIDE.head_size
    assert {"all-gather", "all-reduce"} <= {
        kind for kind, _ in sizes
    }  # the parser sees what is there
    assert max(size for _, size in sizes) < min(matrix, keys)
    keys, values = "2,1,16,56", "2,1,56,16"
    carried = [
        shape
        for shape in re.findall(r"f32\[([\d,]*)\]", lines[0].split(" while(")[0])
        if re.search(r",56(,|$)", shape)
    ]
    assert carried == [keys, keys, values, values] if unrolled else carried == ["2," + values] * 2
    assert not [line for line in lines if re.search(rf"\[(2,)?({keys}|{values})\]\S* copy\(", line)]


def test_rows_on_devices_of_their_own_exchange_nothing_in_a_step(monkeypatch):
    """Unrolled, on 8x1x1: no collective in the loop's body. (Whether any row goes on is asked in
    its condition.)"""
    assert collective_sizes(compiled_loop(monkeypatch, True, "8x1x1")) == []


def test_weights_split_over_fsdp_would_be_moved_in_every_step(monkeypatch):
    """What `decode_layout` is there for: without it, the check above finds gathered weights."""
    monkeypatch.setattr(generate_module, "decode_layout", lambda config, params, mesh: params)
    gathered = [
        size
        for kind, size in collective_sizes(compiled_loop(monkeypatch, False))
        if kind == "all-gather"
    ]
    assert max(gathered) >= WIDE.hidden_size * WIDE.ffn_size // 2


@pytest.mark.parametrize("name", ["1", pytest.param("8x1x1", marks=pytest.mark.long), "2x2x2"])
def test_merged_projections_write_the_same(name, monkeypatch):
    """As decoding on a GPU has them: layers apart; queries, keys and values by one product, gate
    and up by another; split over the tensor axis, too."""
    monkeypatch.setattr(generate_module, "platform", lambda: "gpu")
    seen = []
    merge = decoder.merge_projections
    monkeypatch.setattr(
        decoder, "merge_projections", lambda layer: seen.append(merge(layer)) or seen[-1]
    )
    monkeypatch.setattr(generate_module, "generate_program", traced_anew())
    with on_mesh(name) as params:
        assert_same(run(fresh_rows(), params=params, unrolled=True), free_run())
    merged = set(seen[0])
    assert {"query+key+value", "gate+up", "output", "down"} <= merged
    assert not {"query", "key", "value", "gate", "up"} & merged
