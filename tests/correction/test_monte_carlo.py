"""Monte Carlo values of prefixes: the search against tables, the continuations against rows that
are generated one by one."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.fixtures import CHARACTERS, TINY, tiny_params
from support.tiny_runs import Tiny

from scope_jax import models, rollout, tasks
from scope_jax.correction import Scene, in_steps
from scope_jax.correction.monte_carlo import (
    locate_first_error,
    search_first_error,
    successes,
)
from scope_jax.rollout import Generator, Policy
from scope_jax.text import character_tokenizer, encode_prompts, load_tokenizer
from scope_jax.types import Owner

# ---- the search


def table_probe(good_RJ: np.ndarray):
    """(probe that looks up whether row r succeeds after j steps, list of what was asked)."""
    asked: list[tuple[int, int]] = []

    def probe(rows, prefix):
        asked.extend(zip(rows.tolist(), prefix.tolist(), strict=True))
        return good_RJ[rows, prefix]

    return probe, asked


def test_search_finds_every_first_error():
    # Row by row: n steps, the wrong one at e, for all e < n <= 9. Success survives a prefix of j
    # steps where j <= e.
    cases = [(n, e) for n in range(1, 10) for e in range(n)]
    steps = np.array([n for n, _ in cases])
    table = np.arange(10)[None] <= np.array([e for _, e in cases])[:, None]
    probe, asked = table_probe(table)
    calls = []
    found = search_first_error(
        steps, lambda rows, prefix: calls.append(len(rows)) or probe(rows, prefix)
    )
    assert found.tolist() == [e for _, e in cases]
    assert len(calls) == math.ceil(math.log2(9))  # rounds: all rows together
    assert len(set(asked)) == len(asked) == sum(calls)
    for r, (n, _) in enumerate(cases):
        mine = [j for row, j in asked if row == r]
        assert len(mine) <= math.ceil(math.log2(n)) and all(
            0 < j < n for j in mine
        )  # neither the prompt nor the whole row


def test_search_where_success_comes_and_goes():
    rng = np.random.default_rng(5)
    steps = rng.integers(1, 13, 64)
    table = rng.random((64, 13)) < 0.5
    probe, asked = table_probe(table)
    for r, e in enumerate(search_first_error(steps, probe)):
        # By step e success went: it was there before (or nothing was), and not after (or the row,
        # which failed, was over).
        assert e == 0 or (table[r, e] and (r, e) in asked)
        assert e + 1 == steps[r] or (not table[r, e + 1] and (r, e + 1) in asked)


def test_search_refuses_a_row_without_steps():
    with pytest.raises(ValueError, match="row 1 has no step"):
        search_first_error(np.array([3, 0]), lambda rows, prefix: prefix > 0)
    assert search_first_error(np.zeros(0, int), lambda rows, prefix: prefix > 0).tolist() == []


# ---- continuations


@dataclasses.dataclass(frozen=True)
class EvenTexts(tasks.Domain):
    """A text is right if it has an even number of characters, wrong if odd, and cannot be judged
    without a digit."""

    name = "even"
    separator = "\n"

    def verify(
        self, problems: Sequence[tasks.Problem], completions: Sequence[str]
    ) -> list[bool | None]:
        return [
            len(text) % 2 == 0 if any(c.isdigit() for c in text) else None for text in completions
        ]


K = 4
# So many end tokens that a random model ends its rows soon; the characters behind them are never
# seen.
SPEC = rollout.SampleSpec(max_new_tokens=20, end_ids=(0, *range(20, 30)))
PROBLEMS = [tasks.Problem(str(n), "", "") for n in range(6)]


@pytest.fixture(scope="module")
def made():
    """(tokenizer, policy, key, six finished and unfinished rows)."""
    tokenizer = character_tokenizer(CHARACTERS)
    policy, key = Generator(tiny_params(), TINY), jax.random.key(4)
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [5], [6, 5], [9, 9, 9]]
    batch = rollout.generate(
        policy.params, policy.config, rollout.from_prompts(prompts, 1, 32, first_row=70), key, SPEC
    )
    return tokenizer, policy, key, batch


def ask(made, rows, length, *, continuations=K, stream=9, sampling=SPEC):
    tokenizer, policy, key, batch = made
    scene = Scene(EvenTexts(), Policy(policy, tokenizer, sampling), key)
    return successes(
        batch,
        PROBLEMS,
        np.array(rows),
        np.array(length),
        scene,
        continuations=continuations,
        stream=stream,
    )


def one_by_one(made, row: int, length: int, stream: int) -> tuple[int, int]:
    """(successes, tokens) of one prefix, from a batch built out of its ids alone."""
    tokenizer, policy, key, batch = made
    ids = np.asarray(batch.tokens_BT)[row, :length].tolist()
    prompt = int(batch.prompt_length_B[row])
    alone = rollout.from_prompts([ids], K, 32)
    own = (70 + row) * K + np.arange(K, dtype=np.int32)
    alone = alone.replace(row_id_B=jnp.asarray(own), prompt_length_B=jnp.full(K, prompt, jnp.int32))
    limit = jnp.full(K, prompt + SPEC.max_new_tokens, jnp.int32)
    done = policy.extend(alone, key, SPEC, stream=stream, limit_B=limit)
    text = rollout.completion_texts(done, tokenizer)
    right = [
        bool(f) and any(c.isdigit() for c in t) and len(t) % 2 == 0
        for f, t in zip(done.finished_B, text, strict=True)
    ]
    return sum(right), int(np.sum(done.length_B)) - K * length


def test_successes_are_those_of_rows_generated_alone(made):
    batch = made[3]
    rows = [0, 1, 2, 3, 4, 5]
    prompt, whole = np.asarray(batch.prompt_length_B), np.asarray(batch.length_B)
    length = [int(max(prompt[r], whole[r] - 1 - r)) for r in rows]
    assert np.any(length > prompt) and np.all(length < whole)
    expected = [one_by_one(made, r, n, 9) for r, n in zip(rows, length, strict=True)]
    won, tokens = ask(made, rows, length)
    assert won.tolist() == [e for e, _ in expected]
    assert tokens == sum(n for _, n in expected)
    assert 0 < won.sum() < len(rows) * K  # the table can tell right from wrong


def test_a_row_does_not_depend_on_its_batch(made):
    length = np.asarray(made[3].prompt_length_B)
    won, tokens = ask(made, [0, 1, 2, 3, 4, 5], length)
    alone = [ask(made, [r], [length[r]]) for r in range(6)]
    assert [int(w[0]) for w, _ in alone] == won.tolist() and sum(n for _, n in alone) == tokens
    backwards, _ = ask(made, [5, 3, 1], length[[5, 3, 1]])
    assert backwards.tolist() == won[[5, 3, 1]].tolist()
    other = [ask(made, [0, 1, 2, 3, 4, 5], length, stream=s)[0].tolist() for s in (10, 11)]
    assert won.tolist() not in other and other[0] != other[1]  # each stream its own numbers


def test_whole_rows_are_judged_and_not_continued(made):
    tokenizer, _, _, batch = made
    finished = np.flatnonzero(np.asarray(batch.finished_B))
    assert finished.size
    won, tokens = ask(made, finished, np.asarray(batch.length_B)[finished])
    text = rollout.completion_texts(batch, tokenizer)
    verdicts = EvenTexts().verify(PROBLEMS, text)
    assert tokens == 0 and won.tolist() == [K * (verdicts[b] is True) for b in finished]


def test_unfinished_continuations_are_no_success(made):
    batch = made[3]
    spec = dataclasses.replace(SPEC, max_new_tokens=2, end_ids=(47,))
    won, tokens = ask(made, [0, 2], np.asarray(batch.prompt_length_B)[[0, 2]], sampling=spec)
    assert won.tolist() == [0, 0] and tokens == 2 * K * 2
    with pytest.raises(ValueError, match="continuations = 0 must be at least 1"):
        ask(made, [0], [3], continuations=0)


# ---- a policy that can do the task


def test_first_errors_of_a_trained_policy_against_the_step_check(checkpoints: Tiny):
    config, params = models.load(checkpoints.policy)
    tokenizer = load_tokenizer(checkpoints.policy)
    domain, policy, key = (
        tasks.Arithmetic(start="zero"),
        Generator(params, config),
        jax.random.key(0),
    )
    problems = [domain.problem(3, "test", n, 2) for n in range(32) for _ in range(2)]
    ids, _ = encode_prompts(tokenizer, [p.prompt for p in problems[::2]], max_length=5)
    spec = rollout.SampleSpec(max_new_tokens=12, end_ids=config.end_ids)
    batch = rollout.generate(
        params, config, rollout.from_prompts(ids, 2, 17), key, spec, shared_prefix=2
    )
    text = rollout.completion_texts(batch, tokenizer)
    failed = np.flatnonzero(~np.array(domain.verify(problems, text)) & np.asarray(batch.finished_B))
    rows = in_steps(batch, problems, failed, tokenizer, "\n")
    rows = rows.take(np.flatnonzero(rows.count_R == 2))
    failed, steps, ends = rows.rows_R, rows.steps, rows.ends
    scene = Scene(domain, Policy(policy, tokenizer, spec), key)
    found = locate_first_error(rows, scene, continuations=4)
    assert found.probes == len(failed) > 10 and found.tokens > 0
    truth = np.array(
        [
            domain.check_steps(problems[b], row).index(False)
            for b, row in zip(failed, steps, strict=True)
        ]
    )
    # A policy this weak (it solves one problem in ten) loses many good prefixes, but seldom saves
    # a wrong one by luck.
    assert np.mean(found.error_R <= truth) > 0.9
    assert 0 < np.sum(found.error_R == 1) < np.sum(truth == 1) < len(failed)
    # The same by hand: one prefix of one step each, in the search's only round.
    length = np.asarray(batch.prompt_length_B)[failed] + np.array([row[0] for row in ends])
    won, tokens = successes(batch, problems, failed, length, scene, continuations=4)
    assert found.error_R.tolist() == (won > 0).astype(int).tolist() and tokens == found.tokens
    assert np.all(
        np.asarray(batch.owner_BT)[failed] <= Owner.POLICY
    )  # the rollout itself is left as it was
