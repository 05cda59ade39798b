"""Batches of supervised training, token by token, and where they go on."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from support.hand_made import DOMAIN, PLAIN, PROBLEM, RIGHT, TOKENIZER
from support.prm_fixtures import _config, byte_level_tokenizer, metaspace_tokenizer

from scope_jax.data import Problems, batch_indices
from scope_jax.prm import ProcessRewardModel
from scope_jax.supervision.batches import (
    BatchSpec,
    DemonstrationBatches,
    LabelledSteps,
    with_step_mark,
)
from scope_jax.supervision.labels import LabelledRow
from scope_jax.tasks import Domain, Problem

# ---- demonstrations

SHORT = DOMAIN.make_problem(["+7", "-9"])  # prompt +7-9=, right lines +777 -987
SPEC = BatchSpec(
    "prompt_order", foreign_prefix=False, in_steps=False, chat=False, max_tokens=40, end_id=0
)
END = [0]


def batches(
    problems: list[Problem] | None,
    spec: BatchSpec = SPEC,
    domain: Domain = DOMAIN,
    *,
    batch: int = 2,
    seed: int = 1,
    width: int | None = None,
) -> DemonstrationBatches:
    listed = None if problems is None else Problems.from_list(problems)
    return DemonstrationBatches(
        domain, listed, TOKENIZER, spec, batch=batch, seed=seed, width=width
    )


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text)


def test_prompts_are_given_and_solutions_learned():
    made = batches([PROBLEM, SHORT])
    batch = next(made)
    order = batch_indices(1, 0, 2, 2).tolist()
    rows = {0: ("+7-9+1=", RIGHT), 1: ("+7-9=", "+777\n-987")}
    assert batch["tokens"].shape == (2, 24)  # 7 + 14 + 1 tokens, rounded up
    for line, weight, number in zip(batch["tokens"], batch["weight"], order, strict=True):
        prompt, solution = rows[number]
        wanted = ids(prompt) + ids(solution) + END
        assert line.tolist() == wanted + [0] * (24 - len(wanted))
        learned = np.flatnonzero(weight)
        assert learned.tolist() == [*range(len(prompt), len(wanted))]
        # One over all the tokens that are learned, of both rows.
        np.testing.assert_allclose(weight[learned], 1 / (15 + 10), rtol=1e-6)
    assert made.position == 2 and set(made.dropped.values()) == {0}


def test_a_width_may_be_given():
    assert next(batches([SHORT], width=20))["tokens"].shape == (2, 20)
    assert next(batches([SHORT]))["tokens"].shape == (2, 16)


def test_epochs_go_through_all_problems_in_an_order_of_their_own():
    problems = [DOMAIN.make_problem(["+7", f"-{n}"]) for n in range(1, 7)]
    made = batches(problems, batch=3)
    prompts = [TOKENIZER.decode(line[:5]) for _ in range(4) for line in next(made)["tokens"]]
    wanted = [problems[n].prompt for n in batch_indices(1, 0, 12, 6)]
    assert prompts == wanted
    assert sorted(prompts[:6]) == sorted(prompts[6:]) and prompts[:6] != prompts[6:]


def test_a_prefix_of_others_is_given_and_the_right_rest_learned():
    """The first lines are in a random order; what follows goes on from them in the order of the
    prompt."""
    made = batches([PROBLEM], dataclasses.replace(SPEC, foreign_prefix=True), batch=32)
    batch, seen = next(made), set()
    for line, weight in zip(batch["tokens"], batch["weight"], strict=True):
        learned = np.flatnonzero(weight)
        assert line[learned[-1]] == 0 and (np.diff(learned) == 1).all()
        given = TOKENIZER.decode(line[7 : learned[0]]).splitlines(keepends=True)
        rest = TOKENIZER.decode(line[learned[:-1]]).splitlines(keepends=True)
        assert DOMAIN.check_steps(PROBLEM, given + rest) == [True] * 3
        left = [term for term in ("+7", "-9", "+1") if term not in "".join(given)]
        assert [step[:2] for step in rest] == left
        seen.add((len(given), given[0][:2] if given else ""))
    # None to all but one line, and any term first.
    assert {count for count, _ in seen} == {0, 1, 2}
    assert {first for _, first in seen} == {"", "+7", "-9", "+1"}


def test_fresh_problems_are_numbered_from_0_on_and_of_the_sizes_asked_for():
    spec = dataclasses.replace(SPEC, sizes=(2, 3), problem_seed=5)
    batch = next(batches(None, spec, batch=6))
    prompts = [TOKENIZER.decode(line).split("=")[0] + "=" for line in batch["tokens"]]
    sizes = [prompt.count("+") + prompt.count("-") for prompt in prompts]
    assert set(sizes) == {2, 3}
    wanted = [DOMAIN.problem(5, "train", n, k).prompt for n, k in enumerate(sizes)]
    assert prompts == wanted


@pytest.mark.parametrize("foreign", [False, True])
def test_demonstrations_go_on_where_they_stood(foreign: bool):
    spec = dataclasses.replace(SPEC, style="mixed", foreign_prefix=foreign, sizes=(2, 3))
    made = batches(None, spec, batch=4)
    next(made)
    state = json.loads(json.dumps(made.state()))
    wanted = [next(made) for _ in range(3)]
    other = batches(None, spec, batch=4, seed=99)
    other.restore(state)
    for one, found in zip(wanted, [next(other) for _ in range(3)], strict=True):
        np.testing.assert_array_equal(one["tokens"], found["tokens"])
        np.testing.assert_array_equal(one["weight"], found["weight"])
    assert other.position == made.position == 16


class FromFile(Domain):
    """Problems whose solutions stand in the data."""

    name, separator = "file", "\n"

    def verify(self, problems: Any, completions: Any) -> Any:
        raise NotImplementedError


def test_rows_that_cannot_be_used_are_left_out_and_counted():
    good = Problem("a", "+7=", "", "+777")
    bad = {
        "too_long": [
            Problem("b", "+7=", "", "+777\n" * 8),  # 3 + 40 + 1 tokens
            Problem("c", "+" * 41, "", "+777"),  # the prompt alone
        ],
        "no_solution": [Problem("d", "+7=", ""), Problem("e", "+7=", "", "")],
        "untokenisable": [
            Problem("f", "+7=", "", "x"),  # no token has that character
            Problem("g", "+7=", "", "+7<extra_0>"),  # would be read as the mark
        ],
    }
    for reason, problems in bad.items():
        for problem in problems:
            made = batches([good, problem], domain=FromFile(), batch=4)
            batch = next(made)
            assert {TOKENIZER.decode(line[:7]) for line in batch["tokens"]} == {"+7=+777"}
            assert made.position == 4 + made.dropped[reason]
            assert sum(made.dropped.values()) == made.dropped[reason] > 0, problem.id
    fits = Problem("h", "+7=", "", ("+777\n" * 8)[:36])
    assert next(batches([fits], domain=FromFile()))["tokens"].shape == (2, 40)


def test_an_epoch_without_a_usable_row_is_an_error():
    made = batches([Problem(str(n), "+7=", "") for n in range(3)], domain=FromFile())
    with pytest.raises(ValueError, match=r"can be used: .*'no_solution': 4"):
        next(made)


def test_solutions_of_a_file_are_divided_into_the_steps_of_the_domain():
    class Paragraphs(FromFile):
        separator = "\n\n"

    problem = Problem("a", "+7=", "", "+777\n-987")
    for in_steps, text in ((True, "+777\n\n-987"), (False, "+777\n-987")):
        spec = dataclasses.replace(SPEC, in_steps=in_steps)
        batch = next(batches([problem], spec, Paragraphs()))
        learned = batch["tokens"][0][np.flatnonzero(batch["weight"][0])]
        assert learned.tolist() == ids(text) + END


# ---- labelled steps


def test_labelled_steps_go_on():
    prm = ProcessRewardModel({}, PLAIN.with_head("prm"), TOKENIZER)
    rows = [
        LabelledRow("+7-9=", ["+777\n", "-987"], [1.0, 0.0], None),
        LabelledRow("+1-2=", ["+100\n", "-200\n", "+3"], [0.0, 0.0, 0.0], None),
        LabelledRow("+1<extra_0>", ["+100\n"], [1.0], None),  # cannot be told from a mark
    ]
    batches = LabelledSteps(prm, rows, batch=6, seed=4)
    assert batches.unscorable == 1
    first = next(batches)
    assert first["label"].dtype == np.int32 and first["weight"].sum() == pytest.approx(1)
    learned = sorted(
        {
            (tuple(line[w > 0]), tuple(t[w > 0]))
            for line, t, w in zip(first["label"], first["tokens"], first["weight"], strict=True)
        }
    )
    assert learned == [
        ((0,), (1,)),
        ((1, 0), (1, 1)),
    ]  # nothing past the first 0; token 1 is the mark
    state = json.loads(json.dumps(batches.state()))
    after = [next(batches) for _ in range(3)]
    other = LabelledSteps(prm, rows, batch=6, seed=99)
    other.restore(state)
    for expected, found in zip(after, [next(other) for _ in range(3)], strict=True):
        assert all(np.array_equal(expected[name], found[name]) for name in expected)
    with pytest.raises(
        ValueError, match="no labelled rollout to train on: 1 rows, 1 of them cannot be scored"
    ):
        LabelledSteps(prm, rows[2:], batch=6, seed=4)


def test_soft_labels_stay_shares():
    prm = ProcessRewardModel({}, PLAIN.with_head("prm"), TOKENIZER)
    rows = [LabelledRow("+7-9=", ["+777\n", "-987"], [0.75, 0.5], None)]
    batch = next(LabelledSteps(prm, rows, batch=2, seed=4, soft=True))
    assert batch["label"].dtype == np.float32
    marks = np.flatnonzero(batch["weight"][0])
    assert batch["tokens"][0][marks].tolist() == [1, 1]
    assert batch["label"][0][marks].tolist() == [0.75, 0.5]
    assert (batch["weight"][0][marks] == 0.25).all()


# ---- tokenizers


def test_a_trunk_without_the_step_mark():
    tokenizer = metaspace_tokenizer()
    size = len(tokenizer)
    same, mark = with_step_mark(tokenizer, "some/dir")
    assert same is tokenizer and mark == size and len(tokenizer) == size + 1
    assert tokenizer.convert_tokens_to_ids("<extra_0>") == size and tokenizer.chat_template
    prm = ProcessRewardModel({}, dataclasses.replace(_config(size + 8), head="prm"), tokenizer)
    ids, marks = prm.encode("1+2", ["Add 1.\n\n", "It is 3."])
    assert [ids[m] for m in marks] == [size, size] and ids.count(size) == 2
    known = byte_level_tokenizer()
    before = len(known)
    assert with_step_mark(known) == (known, 3)  # it has one: nothing is added
    assert len(known) == before
