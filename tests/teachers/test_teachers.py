"""Teachers: what becomes of a reply, word for word, and whole rescues by every kind of teacher
that needs no network.

The scenes and the hand-made writers are those of support.hand_made: every expected token can be
written down.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from support.hand_made import (
    DOMAIN,
    IDLE,
    LAST,
    PAD,
    POLICY,
    PROBLEM,
    PROMPT,
    RIGHT,
    SPEC,
    TEACHER,
    TOKENIZER,
    WRONG_1,
    WRONG_2,
    WRONG_3,
    bigram,
    run,
    same,
    scene,
    text,
)
from support.tiny_runs import Tiny
from transformers import PreTrainedTokenizerFast

from scope_jax import models
from scope_jax.correction import SelectSpec
from scope_jax.rollout import Generator
from scope_jax.run import read_metrics
from scope_jax.tasks import Arithmetic, Domain, Problem
from scope_jax.teachers import ModelTeacher, ProgramTeacher, ReferenceTeacher, TeacherSpec
from scope_jax.teachers.base import Ask
from scope_jax.teachers.model import has_foreign_ids
from scope_jax.teachers.prompts import prompt_text
from scope_jax.teachers.replies import encode_step, gives_answer_away, read_reply, reference_steps
from scope_jax.text import character_tokenizer
from scope_jax.text.steps import token_bytes
from scope_jax.train import train

BATCH = (RIGHT + "#", WRONG_2 + "#", WRONG_1 + "#", RIGHT + "#")
REWARD = [1, 0, 0, 1]
PROGRAM = ProgramTeacher(TeacherSpec("program", step_tokens=8))
REFERENCE = ReferenceTeacher(TeacherSpec("reference", step_tokens=8))


class Boxed(Domain):
    """Mathematics as far as these tests need it: blank lines between steps, a box around the
    answer."""

    name, separator = "boxed", "\n\n"

    def verify(self, problems, completions):
        return [f"\\boxed{{{p.answer}}}" in c for p, c in zip(problems, completions, strict=True)]

    def answer_marker(self, step):
        return "\\boxed" in step


# ---- from a reply to a step


@pytest.mark.parametrize(
    ("reply", "complete", "last", "expected"),
    [
        ("Add 3.\n\nThen 4.\n\n", True, False, ("Add 3.\n\n", False)),  # the first of two steps
        (
            "\n\n \n\nAdd 3.\n\n\nThen",
            False,
            False,
            ("Add 3.\n\n", False),
        ),  # nothing visible before it
        ("Add 3. \n", True, False, ("Add 3.\n\n", False)),  # a reply ends where its step ends
        (
            "Add 3.",
            True,
            True,
            ("Add 3.\n\n", False),
        ),  # a last step without an answer does not end the solution
        ("So \\boxed{7}.", True, True, ("So \\boxed{7}.", True)),
        ("So \\boxed{7}.\n\nBye", True, True, ("So \\boxed{7}.", True)),
        (
            "So \\boxed{7}.",
            True,
            False,
            ("So \\boxed{7}.\n\n", False),
        ),  # a leak, found where the rows are looked at
        ("Add 3", False, False, "incomplete"),
        ("So \\boxed{7", False, True, "incomplete"),
        ("", True, False, "empty"),
        (" \n\n\n", True, True, "empty"),
    ],
)
def test_read_reply_literal(reply, complete, last, expected):
    assert read_reply(reply, complete, last, Boxed()) == expected


def test_read_reply_where_the_separator_tells_the_last_line():
    # In signed terms only a line without newline ends the solution.
    assert read_reply("+198", True, True, DOMAIN) == ("+198", True)
    assert read_reply("+198\n", True, True, DOMAIN) == ("+198\n", False)
    assert read_reply("-987", True, False, DOMAIN) == ("-987\n", False)


@pytest.mark.parametrize(
    ("step", "answer", "told"),
    [
        ("The answer is 72.\n\n", "72", True),
        ("We add. Final answer: $72$.", "72", True),
        ("Therefore x = 72.", "72", True),
        ("72\n\n", "72", True),
        ("So it is \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}", True),
        # In other spellings.
        ("So the answer is 1,234.", "1234", True),
        ("So the answer is 1234.", "1,234", True),
        ("The answer is \\(42\\).", "42", True),
        ("So the answer is **42**.", "42", True),
        ("So the answer is 5\u3002", "5", True),
        ("The final answer is 42 apples.", "42", True),
        ("Thus x = \\frac{1}{2}.", "\\frac12", True),
        ("**72**\n\n", "72", True),
        ("So the answer is 1,2345.", "1234", False),
        ("Hence there are 42 apples in each of the 7 boxes.", "42", False),
        ("48 + 24 = 72, which we need later.", "72", False),
        ("48 + 24 = 72.", "72", False),  # a result on the way may equal the answer
        ("Therefore x = 172.", "72", False),
        ("Therefore x = -72.", "72", False),
        ("The answer is near. Then 48 + 24 = 72.", "72", False),
        ("", "72", False),
    ],
)
def test_answers_given_away_literal(step, answer, told):
    assert gives_answer_away(step, answer) is told


@pytest.mark.parametrize(
    ("boundary", "reply", "complete", "found"),
    [
        (r"(?<=[.!?])\s+", "We add. Then more.", True, ("We add.", False)),  # the blank is "Then"'s
        (r"(?<=[.!?])\s+", "\n We add.\n\nThen more.", True, (" We add.\n\n", False)),
        (r"(?<=[.!?])\s+", "We add", True, ("We add\n", False)),  # closed by the separator
        (r"(?<=[.!?])\s+", "We add", False, "incomplete"),
        (
            r"(?=Step \d)",
            "Step 3: a.\n\nStep 4: b.",
            True,
            ("Step 3: a.\n\n", False),
        ),  # a look-ahead takes nothing
        (r"(?=Step \d)", "Step 3: a.Step 4: b.", True, ("Step 3: a.\n", False)),
        (r"(?=Step \d)", " \n", True, "empty"),
    ],
)
def test_a_pattern_ends_a_reply(boundary, reply, complete, found):
    class Words(Arithmetic):
        pass

    Words.boundary = boundary
    assert read_reply(reply, complete, False, Words(start="zero")) == found


def test_reference_steps_literal():
    assert reference_steps("One.\n\nTwo.\n\n\nThree.\n", "\n\n") == [
        "One.\n\n",
        "Two.\n\n",
        "Three.",
    ]
    assert reference_steps("One.\nTwo.\n#### 3", "\n\n") == ["One.\n\n", "Two.\n\n", "#### 3"]
    assert reference_steps("One is 1. Two is 2.5! So $3$.", "\n\n") == [
        "One is 1.\n\n",
        "Two is 2.5!\n\n",
        "So $3$.",
    ]
    sentences = re.compile(r"(?<=[.!?])\s+")
    assert reference_steps("One. Two!\nThree.\n\n", "\n\n", sentences) == [
        "One.\n\n",
        "Two!\n\n",
        "Three.",
    ]
    assert reference_steps("One", "\n") == ["One"] and reference_steps(" \n ", "\n") == []


def blank_before_the_first_word(add: str) -> PreTrainedTokenizerFast:
    """A tokenizer in the manner of sentencepiece: blanks belong to the words they stand before."""
    words = ["<s>", "<unk>", "\u2581", "\u2581a", "\u2581ab", "a", "b", "ab", "\n", "c"]
    merges = [("a", "b"), ("\u2581", "a"), ("\u2581", "ab")]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE({w: n for n, w in enumerate(words)}, merges, unk_token="<unk>")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme=add, split=False)
    backend.decoder = tokenizers.decoders.Metaspace(prepend_scheme=add, split=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")


def test_a_step_is_encoded_without_a_blank_of_its_own():
    assert encode_step("+777\n", TOKENIZER) == [12, 9, 9, 9, 16]
    assert encode_step("+7 7\n", TOKENIZER) is None  # the tokenizer drops the blank without a word
    for add in ("first", "always", "never"):
        tokenizer = blank_before_the_first_word(add)
        alone = tokenizer.encode("ab\n", add_special_tokens=False)
        ids = encode_step("ab\n", tokenizer)
        assert ids == [7, 8], add
        assert (alone == [4, 8]) is (add != "never")
        pieces = token_bytes(tokenizer)
        assert b"".join(pieces[i] for i in [5, 8, *ids]) == b"a\nab\n"
        assert encode_step("ab a\n", tokenizer) == [7, 3, 8], add
        assert encode_step("abd\n", tokenizer) is None


def ask(last: bool = False) -> Ask:
    return Ask(Problem("1", "What is 3 + 4?", "7"), ("We add.\n\n",), "So 8.\n\n", last, 5)


def test_templates_show_what_they_say():
    told = {
        name: prompt_text(ask(), TeacherSpec(template=name))
        for name in ("continue", "wrong_step", "wrong_step_and_answer")
    }
    assert all(
        "What is 3 + 4?" in t and "We add." in t and "do not state the final answer" in t
        for t in told.values()
    )
    assert ["So 8." in t for t in told.values()] == [False, True, True]
    assert [t.split().count("7") for t in told.values()] == [0, 0, 1]
    assert "let it state the final answer" in prompt_text(ask(last=True), TeacherSpec())
    own = TeacherSpec(prompt="{prompt}|{kept}|{wrong}|{answer}|{other}|{prompt.__class__}")
    assert (
        prompt_text(ask(), own)
        == "What is 3 + 4?|We add.\n\n|So 8.\n\n|7|{other}|{prompt.__class__}"
    )
    assert own.prompted and own.shows_answer and not TeacherSpec().prompted
    assert [TeacherSpec(template=name).shows_answer for name in told] == [False, False, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kind": "oracle"},
            "teacher.kind = 'oracle' is unknown; one of model, self, reference, program, endpoint",
        ),
        (
            {"template": "all"},
            (
                "teacher.template = 'all' is unknown; one of continue, wrong_step,"
                " wrong_step_and_answer"
            ),
        ),
        ({"prompt_tokens": 0}, "teacher.prompt_tokens = 0 must be at least 1"),
        ({"step_tokens": 0}, "teacher.step_tokens = 0 must be at least 1"),
        ({"temperature": -1.0}, "teacher.temperature = -1.0 must be 0 or more"),
    ],
)
def test_teacher_spec_refuses(settings, message):
    with pytest.raises(ValueError) as caught:
        TeacherSpec(**settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


# ---- rescues


def rescued_row(result, batch, row: int, step: int, *, known: bool):
    """The row is prompt, kept line, a step of `step` teacher tokens, tail; what was kept is bit
    for bit what was sampled."""
    final = result.rollout
    length, kept = int(final.length_B[row]), 7 + 5
    owners = [PROMPT] * 7 + [POLICY] * 5 + [TEACHER] * step + [POLICY] * (length - kept - step)
    assert final.owner_BT[row].tolist() == owners + [PAD] * (23 - length)
    for name in ("tokens_BT", "owner_BT", "logp_BT"):
        np.testing.assert_array_equal(
            getattr(final, name)[row, :kept], getattr(batch, name)[row, :kept]
        )
    logp = np.asarray(final.logp_BT)[row]
    assert (
        np.isnan(logp[kept : kept + step]).all() != known
        and not np.isnan(logp[kept + step :]).any()
    )
    if known:
        assert not np.isnan(logp).any()


def alike(a, b) -> bool:
    """The same, unknown log-probs included."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(
        np.array_equal(x, y, equal_nan=np.issubdtype(x.dtype, np.floating)) for x, y in pairs
    )


def test_a_program_writes_the_step():
    batch = scene(*BATCH)
    result = run(batch, REWARD, teacher=PROGRAM, policy=LAST)
    assert text(
        result.rollout, 1
    ) == "+777\n" + "-987\n" + "+198#" and result.reward_B.tolist() == [1, 1, 0, 1]
    rescued_row(result, batch, 1, 5, known=False)
    assert same(result.rollout, batch, [0, 2, 3])
    assert (result.metrics["scope/corrected"], result.metrics["scope/teacher_failed"]) == (1, 0)
    again = run(batch, REWARD, teacher=PROGRAM, policy=LAST)
    assert alike(again.rollout, result.rollout)
    other = run(
        batch,
        REWARD,
        teacher=ProgramTeacher(dataclasses.replace(PROGRAM.spec, style="sorted")),
        policy=bigram("\n-9#"),
    )
    assert [s["text"] for s in other.gallery[0]["steps"] if s["owner"] == "teacher"] == ["-987\n"]


def test_a_last_step_ends_the_solution_with_the_policys_end_token():
    batch = scene(RIGHT + "#", WRONG_3 + "#", WRONG_1 + "#", RIGHT + "#")
    result = run(batch, REWARD, teacher=PROGRAM, policy=IDLE)
    assert (
        text(result.rollout, 1) == RIGHT + "#"
        and bool(result.rollout.finished_B[1])
        and result.reward_B[1] == 1
    )
    assert result.rollout.owner_BT[1].tolist() == [PROMPT] * 7 + [POLICY] * 10 + [TEACHER] * 5 + [
        PAD
    ]
    assert result.rollout.tokens_BT[1, 21] == 0 and result.rollout.length_B[1] == 22
    np.testing.assert_array_equal(
        np.isnan(result.rollout.logp_BT[1]), [False] * 17 + [True] * 5 + [False]
    )


def solved(solution: str | None) -> Problem:
    return dataclasses.replace(PROBLEM, solution=solution)


def test_the_reference_gives_the_step_of_the_same_number():
    batch = scene(*BATCH)
    right = run(batch, REWARD, teacher=REFERENCE, policy=LAST, problem=solved(RIGHT))
    assert text(right.rollout, 1) == RIGHT + "#"
    rescued_row(right, batch, 1, 5, known=False)
    # A step that the policy already wrote is passed over.
    covered = run(
        batch,
        REWARD,
        teacher=REFERENCE,
        policy=LAST,
        problem=solved("-9 1\n+777\n-987\n+198"),
    )
    assert text(covered.rollout, 1) == RIGHT + "#"
    # The last step of the solution corrects the last step of a rollout, and ends it.
    last = run(
        scene(RIGHT + "#", WRONG_3 + "#", WRONG_1 + "#", RIGHT + "#"),
        REWARD,
        teacher=REFERENCE,
        policy=IDLE,
        problem=solved(RIGHT),
    )
    assert (
        text(last.rollout, 1) == RIGHT + "#"
        and last.rollout.owner_BT[1, 17:22].tolist() == [TEACHER] * 5
    )


@pytest.mark.parametrize(
    ("solution", "counter"),
    [
        ("+777\n+198", "leaks"),  # capped at the solution's last step, which would end it too early
        ("+777\n98\n+198", "leaks"),  # the answer alone on a line
        (None, "teacher_failed_no_solution"),
        ("+777\n-9 8 7\n+198", "teacher_failed_untokenisable"),
        ("+777\n-98712345\n+198", "teacher_failed_too_long"),  # 10 tokens; a step may have 8
    ],
)
def test_references_that_do_not_help(solution, counter):
    batch = scene(*BATCH)
    result = run(batch, REWARD, teacher=REFERENCE, policy=LAST, problem=solved(solution))
    assert result.metrics[f"scope/{counter}"] == 1 and result.metrics["scope/corrected"] == 0
    assert same(result.rollout, batch, range(4)) and result.reward_B.tolist() == REWARD
    assert result.gallery[0]["verdict_after"] is False


PLAIN = TeacherSpec(
    prompt="{prompt}{kept}", prompt_tokens=20, step_tokens=8
)  # all that a tokenizer without letters can be told


def test_a_prompted_model_with_the_policys_tokenizer_keeps_its_ids():
    batch = scene(*BATCH)
    line = bigram("\n-987\n")
    result = run(batch, REWARD, teacher=ModelTeacher(line, PLAIN), policy=LAST)
    assert text(result.rollout, 1) == RIGHT + "#"
    rescued_row(result, batch, 1, 5, known=True)
    # A chat model ends its reply and not its line: the separator is added, and nobody sampled it.
    ended = run(batch, REWARD, teacher=ModelTeacher(bigram("\n-987#"), PLAIN), policy=LAST)
    assert text(ended.rollout, 1) == RIGHT + "#"
    assert (
        np.isnan(np.asarray(ended.rollout.logp_BT)[1]).tolist()
        == [False] * 16 + [True] + [False] * 6
    )
    shut = run(
        batch,
        REWARD,
        teacher=ModelTeacher(line, dataclasses.replace(PLAIN, prompt_tokens=11)),
        policy=LAST,
    )
    assert shut.metrics["scope/teacher_failed_prompt_too_long"] == 1 and same(
        shut.rollout, batch, range(4)
    )


def test_a_prompted_model_with_another_tokenizer_is_encoded_anew():
    # The same characters under other ids, and a larger vocabulary.
    other = character_tokenizer("=:-+ 9876543210\n", multiple=16)
    ids = [other.convert_tokens_to_ids("Ċ" if c == "\n" else c) for c in "\n-987\n"]
    V = len(other)
    assert len(TOKENIZER) != V and ids != TOKENIZER.encode("\n-987\n")
    config = models.ModelConfig(V, V, 1, 2, 1, 16, 8, max_positions=64, end_ids=(0,))
    params = jax.tree.map(jnp.zeros_like, models.init(config, jax.random.key(0)))
    params["layers"] = {
        name: w + (1.0 if name.endswith("norm") else 0.0) for name, w in params["layers"].items()
    }
    head = np.zeros((V, V), np.float32)
    head[ids[:-1], ids[1:]] = 20.0
    params |= {"embed": jnp.eye(V), "final_norm": jnp.ones(V), "head": jnp.asarray(head)}
    batch = scene(*BATCH)
    result = run(
        batch, REWARD, teacher=ModelTeacher(Generator(params, config), PLAIN, other), policy=LAST
    )
    assert text(result.rollout, 1) == RIGHT + "#"
    rescued_row(result, batch, 1, 5, known=False)
    with pytest.raises(ValueError, match="must share the policy's tokenizer"):
        ModelTeacher(Generator(params, config), TeacherSpec(), other)


def test_a_larger_padded_vocabulary_of_the_same_tokenizer_does():
    def padded(chain: str, stray: int | None = None) -> Generator:
        small = bigram(chain)
        head = jnp.pad(small.params["head"], ((0, 0), (0, 8)))
        if stray is not None:
            head = head.at[TOKENIZER.convert_tokens_to_ids("Ċ"), stray].set(30.0)
        params = small.params | {
            "head": head,
            "embed": jnp.pad(small.params["embed"], ((0, 8), (0, 0))),
        }
        return Generator(params, dataclasses.replace(small.config, vocab_size=len(TOKENIZER) + 8))

    batch = scene(*BATCH)
    result = run(batch, REWARD, teacher=padded("\n-987\n"), policy=LAST)
    assert text(result.rollout, 1) == RIGHT + "#"
    astray = padded("\n-987\n", stray=len(TOKENIZER) + 3)
    for teacher, reason in ((astray, "untokenisable"), (ModelTeacher(astray, PLAIN), None)):
        beyond = run(batch, REWARD, teacher=teacher, policy=LAST)  # prompted, its ids are no text
        assert beyond.metrics["scope/corrected"] == 0 and same(beyond.rollout, batch, range(4))
        assert not reason or beyond.metrics[f"scope/teacher_failed_{reason}"] == 1
    found = has_foreign_ids(batch.replace(tokens_BT=batch.tokens_BT.at[2, 3].set(99)), astray, 20)
    assert found.tolist() == [False, False, True, False]
    assert not has_foreign_ids(batch, LAST, len(TOKENIZER)).any()


def test_the_policy_corrects_itself():
    batch = scene(*BATCH)
    writer = bigram("\n-987\n")  # the tail repeats the line, so no verdict is won
    own = run(batch, REWARD, teacher=ModelTeacher(None, PLAIN), policy=writer)
    assert [s["text"] for s in own.gallery[0]["steps"] if s["owner"] == "teacher"] == ["-987\n"]
    assert own.metrics["scope/corrected"] == 1 and own.metrics["scope/accepted"] == 0
    with pytest.raises(ValueError, match="needs a teacher that is a model on the mesh"):
        run(
            batch,
            REWARD,
            dataclasses.replace(SPEC, tail="teacher"),
            teacher=ModelTeacher(None, PLAIN),
            policy=writer,
        )


def test_rows_fail_alone():
    batch = scene(*[WRONG_2 + "#"] * 4)
    spec = dataclasses.replace(SPEC, select=SelectSpec(per_group=2))

    class Half(ProgramTeacher):
        def _step(self, ask, job):
            return "no_step" if ask.row == 0 else super()._step(ask, job)

    result = run(batch, [0, 0, 0, 0], spec, teacher=Half(PROGRAM.spec), policy=LAST)
    assert result.reward_B.tolist() == [0, 1, 0, 0] and text(result.rollout, 1) == RIGHT + "#"
    assert same(result.rollout, batch, [0, 2, 3])
    assert (result.metrics["scope/selected"], result.metrics["scope/corrected"]) == (2, 1)
    assert (
        result.metrics["scope/teacher_failed"],
        result.metrics["scope/teacher_failed_no_step"],
    ) == (1, 1)


# ---- in a run


def test_runs_with_a_program_and_with_the_policy_itself(checkpoints: Tiny, tmp_path):
    for kind, more in (
        ("program", {}),
        ("self", {"teacher.prompt": "{prompt}{kept}", "teacher.prompt_tokens": 20}),
    ):
        settings = {
            "steps": 2,
            "teacher.kind": kind,
            "models.teacher": None,
            "localiser.kind": "oracle",
            **more,
        }
        config = checkpoints.config("scope", settings)
        train(config, tmp_path / kind)
        rows = read_metrics(tmp_path / kind / "metrics.jsonl")
        assert sum(row["scope/selected"] for row in rows) > 0
        if kind == "program":  # knows the right line, of every row
            assert sum(row["scope/corrected"] for row in rows) == sum(
                row["scope/selected"] for row in rows
            )
        assert all(row["scope/teacher_failed"] == 0 and row["grad/skipped"] == 0 for row in rows)


def test_a_run_without_what_its_teacher_needs(checkpoints: Tiny, tmp_path):
    for settings, message in (
        ({"teacher.kind": "reference"}, "none of the problems looked at has a solution"),
        ({"teacher.kind": "endpoint"}, "teacher.endpoint.url = None"),
        ({"teacher.kind": "program", "method.tail": "teacher"}, "needs teacher.kind 'model'"),
        ({"teacher.kind": "nobody"}, "teacher.kind = 'nobody' is unknown"),
    ):
        with pytest.raises(ValueError) as caught:
            train(checkpoints.config("scope", settings), tmp_path / "run")
        assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
